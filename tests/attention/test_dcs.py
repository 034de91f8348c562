import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastreid_rib.attention import DCSAttention, DCSMask, SelfAttention

CHANNELS = 6


def mask_module(seed=0, **options):
    """A mask in float64 whose logits depend on the token."""
    torch.manual_seed(seed)
    module = DCSMask(CHANNELS, **options).double()
    nn.init.normal_(module.logits.weight)
    return module


def tokens(n=5, images=2):
    torch.manual_seed(1)
    return torch.randn(images, n, CHANNELS, dtype=torch.float64)


# The mask


@given(
    seed=st.integers(0, 2**16),
    bias=st.floats(-20, 20),
    temperature=st.floats(1e-3, 1e3),
    spread=st.sampled_from([0.0, 1.0, 1e3]),
    training=st.booleans(),
    half=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_it_is_binary_whatever_the_logits(seed, bias, temperature, spread, training, half):
    torch.manual_seed(seed)
    module = DCSMask(CHANNELS, temperature=temperature, mask_bias=bias).train(training)
    nn.init.normal_(module.logits.weight, std=spread)
    dtype = torch.bfloat16 if half else torch.float32
    x = torch.randn(3, CHANNELS, dtype=dtype, requires_grad=True)
    mask = module.to(dtype)(x)
    assert mask.dtype == dtype and set(mask.unique().tolist()) <= {0.0, 1.0}
    mask.sum().backward()
    assert x.grad.isfinite().all()


def test_eval_is_the_sign_of_the_logits():
    module, x = mask_module(mask_bias=0.3).eval(), tokens()
    expected = (x @ module.logits.weight.T + 0.3) > 0
    assert 0 < expected.double().mean() < 1
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(module(x), expected.double())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_gradient_is_that_of_the_relaxed_mask(training, temperature):
    module, x = mask_module(temperature=temperature).train(training), tokens()
    x.requires_grad_()
    weight = torch.randn(x.shape, dtype=x.dtype)
    parameters = [x, *module.parameters()]
    torch.manual_seed(3)
    straight = torch.autograd.grad((module(x) * weight).sum(), parameters)
    torch.manual_seed(3)
    theta = x @ module.logits.weight.T + module.logits.bias
    if training:  # the logistic distribution by its quantiles
        chance = torch.rand(x.shape, dtype=x.dtype)
        theta = theta + torch.log(chance / (1 - chance))
    relaxed = 1 / (1 + torch.exp(-theta / temperature))
    expected = torch.autograd.grad((relaxed * weight).sum(), parameters)
    for ours, theirs in zip(straight, expected):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0, 4.0])
def test_share_kept_at_the_start(bias, temperature):
    """sigmoid(bias), whatever the temperature; in eval all or nothing."""
    torch.manual_seed(0)
    module = DCSMask(50, mask_bias=bias, temperature=temperature)
    x = 10 * torch.randn(400, 50)
    share = 1 / (1 + math.exp(-bias))
    spread = math.sqrt(share * (1 - share) / x.numel())
    assert module(x).mean().item() == pytest.approx(share, abs=4 * spread)
    assert module.eval()(x).unique().tolist() == [float(bias > 0)]


def test_a_channel_that_is_almost_sure_keeps_its_gradient_under_autocast():
    # sigmoid(8) = 0.99966 would be 1 in bfloat16, and its gradient 0.
    module = DCSMask(CHANNELS, mask_bias=8.0).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask = module(torch.randn(1, CHANNELS))
    mask.sum().backward()
    share = 1 / (1 + math.exp(-8))
    expected = [share * (1 - share)] * CHANNELS
    assert module.logits.bias.grad.tolist() == pytest.approx(expected, rel=1e-2)


def test_noise_is_determined_by_the_seed():
    module, x = mask_module(), tokens()
    torch.manual_seed(5)
    first, second = module(x), module(x)
    torch.manual_seed(5)
    assert torch.equal(module(x), first) and not torch.equal(second, first)


def test_noise_stays_finite_where_the_uniform_draw_is_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    module, x = mask_module(mask_bias=20.0), tokens().requires_grad_()
    module(x).sum().backward()
    assert x.grad.isfinite().all() and module.logits.bias.grad.abs().sum() > 0


def test_temperature_falls_geometrically():
    module = DCSMask(CHANNELS, temperature=4.0, final_temperature=0.25)
    seen = []
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        module.set_progress(fraction)
        seen.append(module.temperature)
    assert seen == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25])
    module.set_progress(0)
    assert module.temperature == 4.0 and "temperature" not in " ".join(module.state_dict())


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_progress_outside_its_range(fraction):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        DCSMask(CHANNELS).set_progress(fraction)


def test_temperature_changes_the_gradient_and_nothing_else():
    module, x = DCSAttention(CHANNELS), tokens().float()
    nn.init.normal_(module.project.weight)
    outputs, gradients = [], []
    for fraction in (0, 1):
        module.set_progress(fraction)
        module.zero_grad()
        torch.manual_seed(4)
        outputs.append(module(x))
        outputs[-1].square().sum().backward()
        gradients.append(module.mask.logits.weight.grad.clone())
    assert torch.equal(*outputs) and not torch.allclose(*gradients)


# The attention


def attention(**options):
    torch.manual_seed(0)
    module = DCSAttention(CHANNELS, **options).double()
    nn.init.normal_(module.mask.logits.weight)
    nn.init.normal_(module.project.weight, std=0.5)
    nn.init.normal_(module.project.bias)
    return module


def written_out(module, image):
    """One image in eval, (N, C): the affinity from the channels that both tokens keep."""
    inner = image @ module.reduce.weight.T if module.width < CHANNELS else image
    if not isinstance(module.norm, nn.Identity):  # as one that has seen no batch
        inner = inner / math.sqrt(1 + 1e-5)
    theta = inner @ module.mask.logits.weight.T + module.mask.logits.bias
    rows = []
    for i in range(len(inner)):
        scores = []
        for j in range(len(inner)):
            kept = [c for c in range(module.width) if theta[i, c] > 0 and theta[j, c] > 0]
            product = sum((inner[i, c] * inner[j, c]).item() for c in kept)
            if module.scale == "cosine":
                norms = [inner[t][theta[t] > 0].norm().item() for t in (i, j)]
                scores.append(module.cosine_factor * product / math.prod(norms) if kept else 0.0)
            else:
                scores.append(product / math.sqrt(module.width))
        shares = [math.exp(score) for score in scores]
        mixed = sum(share * value for share, value in zip(shares, inner)) / sum(shares)
        rows.append(module.project.weight @ mixed + module.project.bias)
    return image + torch.stack(rows)


SETTINGS = [
    {},
    {"width": 3},
    {"scale": "sqrt"},
    {"width": 4, "scale": "sqrt"},
    {"width": 4, "cosine_factor": 16.0},
    {"width": 3, "norm": "none"},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_equals_the_formula_in_eval(options):
    module, x = attention(**options).eval(), tokens()
    expected = torch.stack([written_out(module, image) for image in x])
    assert torch.allclose(module(x), expected, rtol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_explanation_is_what_was_done(options, training):
    module, x = attention(**options).train(training), tokens()
    torch.manual_seed(6)
    output = module(x)
    torch.manual_seed(6)
    weights, mask, kept = module.explain(x)
    assert mask.dtype == torch.bool and mask.shape == (2, 5, module.width)
    assert torch.allclose(kept.double(), mask.double().mean(2)) and 0 < kept.mean() < 1
    assert torch.allclose(weights.sum(2), torch.ones(2, 5).double())
    assert torch.allclose(x + module.project(weights @ module.norm(module.reduce(x))), output)


def test_with_every_channel_kept_it_is_plain_self_attention():
    module = DCSAttention(CHANNELS, width=4, mask_bias=20.0)
    nn.init.normal_(module.project.weight)
    dense = SelfAttention(CHANNELS, width=4)
    missing, unexpected = dense.load_state_dict(module.state_dict(), strict=False)
    assert not missing and all(key.startswith("mask.") for key in unexpected)
    x = tokens().float()
    assert torch.allclose(module(x), dense(x), atol=1e-6)


def test_with_no_channel_kept_it_takes_the_mean():
    module = DCSAttention(CHANNELS, mask_bias=-20.0, scale="cosine", norm="none").double().eval()
    nn.init.normal_(module.project.weight)
    x = tokens().requires_grad_()
    mean = x.mean(1, keepdim=True).expand_as(x)
    assert torch.allclose(module(x), x + module.project(mean))
    module(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_the_mask_learns():
    """Tokens are to find those of their kind, which one channel shows; the others are noise."""
    torch.manual_seed(0)
    module = DCSAttention(CHANNELS, mask_bias=0.0, scale="sqrt", norm="none")
    nn.init.eye_(module.project.weight)
    dense = SelfAttention(CHANNELS, scale="sqrt", norm="none")
    dense.load_state_dict(module.state_dict(), strict=False)
    optimizer = torch.optim.Adam(module.mask.parameters(), lr=0.1)

    def errors(*modules):
        kind = torch.randint(0, 2, (16, 8, 1)).float() * 2 - 1
        x = torch.cat([4 * kind, 4 * torch.randn(16, 8, CHANNELS - 1)], dim=2)
        return [((m(x) - x)[:, :, :1] / 4 - kind).square().mean() for m in modules]

    for _ in range(100):
        optimizer.zero_grad()
        errors(module)[0].backward()
        optimizer.step()
    with torch.no_grad():
        ours, without = errors(module.eval(), dense)
    bias = module.mask.logits.bias
    assert ours < without / 3, (ours, without)
    assert bias[0] > 2 and bias[1:].max() < 0, bias


def test_settings_reach_the_mask():
    module = DCSAttention(CHANNELS, width=3, temperature=3.0, final_temperature=0.75, mask_bias=2.0)
    assert module.mask.logits.weight.shape == (3, 3)
    assert module.mask.logits.bias.tolist() == [2.0] * 3
    assert module.mask.temperature == 3.0
    module.set_progress(0.5)
    assert module.mask.temperature == pytest.approx(1.5)
