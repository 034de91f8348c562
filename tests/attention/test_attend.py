import pytest
import torch

from fastreid_rib.attention import attend as module
from fastreid_rib.attention.attend import attend, attention_weights

FUSED = hasattr(torch.nn.functional, "scaled_dot_product_attention")


def drawn(n=7, m=5, d=3, e=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, n, d), (2, m, d), (2, m, e)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in sizes]


@pytest.fixture(params=["fused", "plain", "chunks of 1", "chunks of 3"])
def path(request, monkeypatch):
    if request.param == "fused" and not FUSED:
        pytest.skip("torch has no scaled_dot_product_attention before 2.0")
    monkeypatch.setattr(module, "_FUSED", request.param == "fused")
    if request.param.startswith("chunks"):
        # 2 images of 5 keys: 10 weights for each query of a chunk.
        monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 10 * int(request.param[-1]))
    return request.param


def test_by_hand(path):
    # Scores 0 and ln 3, so weights 1/4 and 3/4.
    queries = torch.tensor([[[2.0]]])
    keys = torch.tensor([[[0.0], [1.0986123]]])
    values = torch.tensor([[[4.0, 0.0], [0.0, 8.0]]])
    assert attention_weights(queries, keys, 0.5).flatten().tolist() == pytest.approx([0.25, 0.75])
    assert attend(queries, keys, values, 0.5).flatten().tolist() == pytest.approx([1.0, 6.0])


def written_out(queries, keys, values, scale):
    images = []
    for q, k, v in zip(queries, keys, values):
        rows = []
        for query in q:
            shares = torch.stack([torch.exp(scale * (query * key).sum()) for key in k])
            rows.append(sum(share * value for share, value in zip(shares, v)) / shares.sum())
        images.append(torch.stack(rows))
    return torch.stack(images)


@pytest.mark.parametrize("scale", [0.3, -1.0])
def test_every_path_equals_the_formula_and_its_gradient(path, scale):
    tensors = drawn()
    ours, theirs = attend(*tensors, scale), written_out(*tensors, scale)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).reshape(ours.shape)
    gradients = [torch.autograd.grad((x * weight).sum(), tensors) for x in (ours, theirs)]
    assert torch.allclose(ours, theirs, rtol=1e-10)
    for mine, expected in zip(*gradients):
        assert torch.allclose(mine, expected, rtol=1e-8, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(attend(*tensors, scale), ours)


@pytest.mark.parametrize("m, d, plain", [(5, 4, False), (5, 5, True), (4, 5, True)])
def test_weights_smaller_than_the_queries_are_held(monkeypatch, m, d, plain):
    monkeypatch.setattr(module, "_FUSED", False)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1)
    calls, stock = [], module._attend_plainly
    monkeypatch.setattr(
        module, "_attend_plainly", lambda *a: calls.append(len(a[0][0])) or stock(*a)
    )
    tensors = drawn(m=m, d=d)
    mixed = attend(*tensors, 0.5)
    assert calls == ([7] if plain else [1] * 7)
    assert torch.allclose(mixed, written_out(*tensors, 0.5), rtol=1e-10)


def test_chunks_never_hold_all_weights(monkeypatch):
    """Nothing of N x M is kept for the backward pass, and none is made on the way."""
    monkeypatch.setattr(module, "_FUSED", False)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 30)
    made, kept = [], []
    weights = module.attention_weights
    monkeypatch.setattr(
        module, "attention_weights", lambda *a: made.append(weights(*a)) or made[-1]
    )
    tensors = drawn()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mixed = attend(*tensors, 1.0)
    assert [x.shape[1] for x in made] == [3, 3, 1]
    assert all(x.shape[-1] != 5 for x in kept)
    mixed.sum().backward()
    assert [x.shape[1] for x in made[3:]] in ([3, 3, 1], [1, 3, 3])  # computed again


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (3, 1)])
def test_one_query_or_one_key(path, n, m):
    queries, keys, values = drawn(n, m)
    mixed = attend(queries, keys, values, 0.7)
    assert mixed.shape == (2, n, 4)
    if m == 1:
        assert torch.allclose(mixed, values.expand(2, n, 4))


def test_no_images(path):
    empty = torch.zeros(0, 3, 2)
    assert attend(empty, empty, empty, 1.0).shape == (0, 3, 2)


def test_weights_of_half_precision_are_float32():
    queries, keys, _ = drawn(dtype=torch.bfloat16)
    weights = attention_weights(queries, keys, 1.0)
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(2), torch.ones(2, 7), atol=1e-6)
