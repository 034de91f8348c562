"""DCS-Attention and its mask."""

import math

import pytest
import torch
from by_hand import CHANNELS, attended, inner_tokens, tokens, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastreid_rib.attention import DCSAttention, DCSMask, SelfAttention

# The mask


@given(
    seed=st.integers(0, 2**16),
    bias=st.floats(-20, 20),
    temperature=st.floats(1e-3, 1e3),
    spread=st.sampled_from([0.0, 1.0, 1e3]),
    training=st.booleans(),
    half=st.booleans(),
)
@settings(max_examples=30, deadline=None)
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


@pytest.mark.parametrize("training, temperature", [(True, 0.3), (True, 4.0), (False, 1.0)])
def test_the_gradient_is_that_of_the_relaxed_mask(training, temperature):
    module, x = trained(DCSMask, temperature=temperature).train(training), tokens()
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


@pytest.mark.parametrize("bias, temperature", [(-1.0, 0.1), (0.0, 1.0), (4.0, 10.0)])
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


def test_noise_stays_finite_where_the_uniform_draw_is_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    module, x = trained(DCSMask, mask_bias=20.0), tokens().requires_grad_()
    module(x).sum().backward()
    assert x.grad.isfinite().all() and module.logits.bias.grad.abs().sum() > 0


def test_temperature_falls_geometrically():
    module = DCSMask(CHANNELS, temperature=4.0, final_temperature=0.25)
    seen = []
    for fraction in (0, 0.25, 0.5, 0.75, 1):
        module.set_progress(fraction)
        seen.append(module.temperature)
    assert seen == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25])
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            module.set_progress(fraction)


# The attention


@pytest.mark.parametrize(
    "options",
    [{}, {"width": 4, "scale": "sqrt"}, {"width": 3, "cosine_factor": 16.0, "norm": "none"}],
    ids=str,
)
def test_equals_the_formula_in_eval_and_explains_what_it_did(options):
    module, x = trained(DCSAttention, **options).eval(), tokens()
    # Of a norm that has seen no batch.
    inner = inner_tokens(module, x) / (1 if "norm" in options else math.sqrt(1 + 1e-5))
    masks = inner @ module.mask.logits.weight.T + module.mask.logits.bias > 0
    expected = torch.stack([attended(module, *of) for of in zip(x, inner, masks)])
    assert torch.allclose(module(x), expected, rtol=1e-10)
    for training in (False, True):
        module.train(training)
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
