"""Self-attention, and the softmax attention that it and DCS are made of."""

import pytest
import torch
from by_hand import CHANNELS, attended, inner_tokens, normalised, tokens, trained
from torch import nn

from fastreid_rib.attention import SelfAttention
from fastreid_rib.attention import self_attention as module_of
from fastreid_rib.attention.self_attention import attend, attention_weights

FUSED = hasattr(nn.functional, "scaled_dot_product_attention")


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
    for fused, chunk in ((FUSED, 2**24), (False, 2**24), (False, 8)):
        monkeypatch.setattr(module_of, "_FUSED", fused)
        monkeypatch.setattr(module_of, "_CHUNK_ELEMENTS", chunk)
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


def drawn(d):
    """Keys and values of 7 tokens."""
    torch.manual_seed(0)
    sizes = [(2, 7, d), (2, 7, 4)]
    return [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("way", ["fused", "plain", "chunks of 1", "chunks of 3"])
def test_every_way_gives_the_same_and_its_gradient(way, monkeypatch):
    if way == "fused" and not FUSED:
        pytest.skip("torch has no scaled_dot_product_attention before 2.0")
    monkeypatch.setattr(module_of, "_FUSED", way == "fused")
    if way.startswith("chunks"):  # 2 images of 7 keys: 14 weights for each token of a chunk
        monkeypatch.setattr(module_of, "_CHUNK_ELEMENTS", 14 * int(way[-1]))
    # Products 0 and ln 3, so weights 1/4 and 3/4 in the second row.
    keys = torch.tensor([[[0.0], [2 * 1.0986123**0.5]]])
    values = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    assert attention_weights(keys, keys, 0.25)[0, 1].tolist() == pytest.approx([0.25, 0.75])
    assert attend(keys, values, 0.25)[0, 1].tolist() == pytest.approx([1.0, 6.0])

    tensors = drawn(3)
    assert torch.autograd.gradcheck(lambda *inputs: attend(*inputs, 0.3), tensors)
    ours = attend(*tensors, 0.3)
    with torch.no_grad():
        assert torch.equal(attend(*tensors, 0.3), ours)
    empty = torch.zeros(0, 3, 2)
    assert attend(empty, empty, 1.0).shape == (0, 3, 2)


def test_chunks_never_hold_all_weights(monkeypatch):
    """Nothing of N x N is kept for the backward pass; weights no larger than the keys are held."""
    monkeypatch.setattr(module_of, "_FUSED", False)
    monkeypatch.setattr(module_of, "_CHUNK_ELEMENTS", 42)
    made, kept = [], []
    weights = module_of.attention_weights
    monkeypatch.setattr(
        module_of, "attention_weights", lambda *a: made.append(weights(*a)) or made[-1]
    )
    tensors = drawn(3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixed = attend(*tensors, 1.0)
    assert [x.shape[1] for x in made] == [3, 3, 1]
    assert all(x.shape[-1] != 7 for x in kept)
    mixed.sum().backward()
    assert [x.shape[1] for x in made[3:]] in ([3, 3, 1], [1, 3, 3])  # computed again
    made.clear()
    attend(*drawn(7), 1.0)
    assert [x.shape[1] for x in made] == [7]


def test_the_softmax_is_in_float32_under_autocast():
    module, x = trained(SelfAttention, norm="none").float(), tokens(9).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = module.explain(x).weights
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(2), torch.ones(2, 9), atol=1e-6)
