"""Self-attention, and the softmax attention that it and DCS are made of."""

import pytest
import torch
from by_hand import CHANNELS, attended, inner_tokens, normalised, tokens, trained
from torch import nn

from fastreid_rib.attention import SelfAttention
from fastreid_rib.attention import self_attention as module_of
from fastreid_rib.attention.self_attention import attend, attention_weights

FUSED = hasattr(nn.functional, "scaled_dot_product_attention")
NEEDS_FUSED = pytest.mark.skipif(not FUSED, reason="torch has none before 2.0")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"width": 4, "scale": "sqrt"},
        {"width": 3, "cosine_factor": 3.0, "norm": "layer"},
        {"norm": "none"},
    ],
    ids=str,
)
def test_equals_the_formula(settings, monkeypatch):
    """By each way to compute it; N = 9 tokens, as fewer than channels get plain products."""
    module, x = trained(SelfAttention, **settings), tokens(9)
    inner = normalised(inner_tokens(module, x), settings.get("norm", "batch"))
    expected = torch.stack([attended(module, *pair, 1.0) for pair in zip(x, inner)])
    for fused in (FUSED, False):
        monkeypatch.setattr(module_of, "_FUSED", fused)
        assert torch.allclose(module(x), expected, rtol=1e-10)
    weights, mask, kept = module.explain(x)
    assert mask is None and kept is None and not weights.requires_grad
    assert torch.allclose(weights.sum(2), torch.ones(2, 9).double())
    assert torch.allclose(x + module.project(weights @ inner), expected)


def test_eval_normalises_by_running_statistics():
    """Means and variances that a seen batch has moved a tenth of the way."""
    module, x = trained(SelfAttention), tokens() * 3 + 1
    module(x)
    module.eval()
    flat = x.flatten(0, 1)
    mean, variance = flat.mean(0) * 0.1, 0.9 + 0.1 * flat.var(0)
    inner = (x - mean) / (variance + 1e-5).sqrt()
    expected = torch.stack([attended(module, *pair, 1.0) for pair in zip(x, inner)])
    assert torch.allclose(module(x), expected, rtol=1e-10)


def test_a_lone_token_in_training_gets_the_running_statistics():
    module, x = trained(SelfAttention), tokens(1, images=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    output = module(x)
    assert torch.allclose(output, module.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_what_all_tokens_share_teaches_the_projection_nothing():
    """Why "batch" is the default: after a ReLU what they share is most of what there is."""
    x = torch.rand(8, 4, CHANNELS, dtype=torch.float64) + 5
    for norm, learns in (("batch", False), ("none", True)):
        module = SelfAttention(CHANNELS, norm=norm).double()
        module(x).sum().backward()
        assert (module.project.weight.grad.abs().max() > 1) == learns


def test_empty_tokens_have_finite_gradients():
    module = trained(SelfAttention, scale="cosine", norm="none")
    x = torch.zeros(1, 3, CHANNELS, dtype=torch.float64)
    x[0, 0] = 1
    x.requires_grad_()
    module(x).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e5


# Softmax attention


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=NEEDS_FUSED)])
def test_each_way_by_hand_and_its_gradient(fused, monkeypatch):
    monkeypatch.setattr(module_of, "_FUSED", fused)
    # Products 0 and ln 3, so weights 1/4 and 3/4 in the second row.
    keys = torch.tensor([[[0.0], [2 * 1.0986123**0.5]]])
    values = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    assert attention_weights(keys, 0.25)[0, 1].tolist() == pytest.approx([0.25, 0.75])
    assert attend(keys, values, 0.25)[0, 1].tolist() == pytest.approx([1.0, 6.0])
    torch.manual_seed(0)
    tensors = [torch.randn(2, 7, size, dtype=torch.float64, requires_grad=True) for size in (3, 4)]
    assert torch.autograd.gradcheck(lambda *inputs: attend(*inputs, 0.3), tensors)
    empty = torch.zeros(0, 3, 2)
    assert attend(empty, empty, 1.0).shape == (0, 3, 2)


def test_the_softmax_is_in_float32_under_autocast():
    module, x = trained(SelfAttention, norm="none").float(), tokens(9).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = module.explain(x).weights
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(2), torch.ones(2, 9), atol=1e-6)
