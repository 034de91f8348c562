import math

import pytest
import torch
from torch import nn

from fastreid_rib.attention import SelfAttention
from fastreid_rib.attention import attend as attend_module

CHANNELS = 6


def trained(seed=0, **settings):
    """A module in float64 whose projection is no longer zero."""
    torch.manual_seed(seed)
    module = SelfAttention(CHANNELS, **settings).double()
    nn.init.normal_(module.project.weight, std=0.5)
    nn.init.normal_(module.project.bias)
    return module


def tokens(n=4, images=2):
    torch.manual_seed(1)
    return torch.randn(images, n, CHANNELS, dtype=torch.float64)


def normalised(module, inner):
    """(B, N, D) inner tokens as the module's norm makes them."""
    if isinstance(module.norm, nn.Identity):
        return inner
    axes = (2,) if isinstance(module.norm, nn.LayerNorm) else (0, 1)
    mean = inner.mean(axes, keepdim=True)
    return (inner - mean) / ((inner - mean).square().mean(axes, keepdim=True) + 1e-5).sqrt()


def written_out(module, image, inner):
    """One image, (N, C), token by token; ``inner`` are its normalised inner tokens, (N, D)."""
    rows = []
    for i in inner:
        scores = []
        for j in inner:
            product = sum(a * b for a, b in zip(i.tolist(), j.tolist()))
            if module.scale == "cosine":
                scores.append(module.cosine_factor * product / (i.norm() * j.norm()).item())
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
    {"width": 4, "scale": "cosine", "cosine_factor": 3.0},
    {"norm": "layer"},
    {"width": 3, "norm": "none"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_formula(settings):
    module, x = trained(**settings), tokens()
    inner = x @ module.reduce.weight.T if module.width < CHANNELS else x
    inner = normalised(module, inner)
    expected = torch.stack([written_out(module, *pair) for pair in zip(x, inner)])
    assert torch.allclose(module(x), expected, rtol=1e-10)


def test_eval_normalises_by_running_statistics():
    """Means and variances that a seen batch has moved a tenth of the way."""
    module, x = trained(), tokens() * 3 + 1
    module(x)
    module.eval()
    flat = x.flatten(0, 1)
    mean, variance = flat.mean(0) * 0.1, 0.9 + 0.1 * flat.var(0)
    inner = (x - mean) / (variance + 1e-5).sqrt()
    expected = torch.stack([written_out(module, *pair) for pair in zip(x, inner)])
    assert torch.allclose(module(x), expected, rtol=1e-10)


def test_a_lone_token_in_training_gets_the_running_statistics():
    module, x = trained(), tokens(1, images=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    output = module(x)
    assert torch.allclose(output, module.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_all_tokens_share_teaches_the_projection_nothing():
    """Why "batch" is the default: behind a ReLU what they share is most of what there is."""
    x = torch.rand(8, 4, CHANNELS, dtype=torch.float64) + 5
    for norm, learns in (("batch", False), ("none", True)):
        module = SelfAttention(CHANNELS, norm=norm).double()
        module(x).sum().backward()
        assert (module.project.weight.grad.abs().max() > 1) == learns


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_explanation_is_what_was_done(settings):
    module, x = trained(**settings), tokens()
    weights, mask, kept = module.explain(x)
    assert mask is None and kept is None and not weights.requires_grad
    assert torch.allclose(weights.sum(2), torch.ones(2, 4).double())
    assert torch.allclose(x + module.project(weights @ module.norm(module.reduce(x))), module(x))


@pytest.mark.skipif(not attend_module._FUSED, reason="torch has no fused attention before 2.0")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_fused_attention_the_same(settings, monkeypatch):
    module, x = trained(**settings), tokens(9)  # more than channels: fewer get plain products
    fused = module(x)
    monkeypatch.setattr(attend_module, "_FUSED", False)
    assert torch.allclose(module(x), fused, rtol=1e-10)
    monkeypatch.setattr(attend_module, "_CHUNK_ELEMENTS", 8)
    assert torch.allclose(module(x), fused, rtol=1e-10)


def test_gradient():
    module = trained(width=3, scale="cosine", cosine_factor=2.0)
    assert torch.autograd.gradcheck(module, tokens(3).requires_grad_())


def test_empty_tokens_have_finite_gradients():
    module, x = (
        trained(scale="cosine", norm="none"),
        torch.zeros(1, 3, CHANNELS, dtype=torch.float64),
    )
    x[0, 0] = 1
    x.requires_grad_()
    module(x).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e5


def test_cosine_does_not_depend_on_the_length_of_a_token():
    module, x = trained(scale="cosine", norm="none"), tokens()
    longer = x * torch.tensor([1.0, 5.0, 0.3, 20.0]).double()[:, None]
    assert torch.allclose(module.explain(x).weights, module.explain(longer).weights)
