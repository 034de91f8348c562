"""Matrices with fewer weights, and the attention that is made of them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastreid_rib.attention import DCSAttention, DCSMask, SelfAttention
from fastreid_rib.attention.linear import GroupedLinear, LowRankLinear, build_linear

CHANNELS = 8
MATRICES = [{"rank": 3}, {"groups": 2}]
both_ways = pytest.mark.parametrize("matrices", MATRICES, ids=str)


def moved(module):
    """In float64, every parameter moved, as after some training."""
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def dense(layer):
    """``nn.Linear`` of the same matrix, put together by hand, number by number."""
    if isinstance(layer, nn.Linear):
        return layer
    if isinstance(layer, LowRankLinear):
        first, second, bias = layer.narrow.weight, layer.widen.weight, layer.widen.bias
        rank, inputs, outputs = *first.shape, len(second)
        matrix = [
            [sum(second[o, r] * first[r, i] for r in range(rank)).item() for i in range(inputs)]
            for o in range(outputs)
        ]
    else:
        groups, size_in, size_out = layer.weight.shape
        inputs, outputs, bias = groups * size_in, groups * size_out, layer.bias
        matrix = [[0.0] * inputs for _ in range(outputs)]
        for g, i, o in itertools.product(range(groups), range(size_in), range(size_out)):
            matrix[g * size_out + o][g * size_in + i] = layer.weight[g, i, o].item()
    result = nn.Linear(inputs, outputs).double()
    with torch.no_grad():
        result.weight.copy_(torch.tensor(matrix, dtype=torch.float64))
        result.bias.copy_(bias)
    return result


def with_dense_layers(module):
    """The same attention with full matrices that hold the same numbers."""
    settings = {"width": module.width} if module.width < module.channels else {}
    if not isinstance(module.depthwise, nn.Identity):
        settings["depthwise"] = True
    full = type(module)(module.channels, **settings).double()
    state = {
        key: value
        for key, value in module.state_dict().items()
        if not key.startswith(("project.", "mask."))
    }
    full.load_state_dict(state, strict=False)
    full.project = dense(module.project)
    if hasattr(module, "mask"):
        full.mask.logits = dense(module.mask.logits)
    return full


def feature_map(images=2, height=4, width=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        images, CHANNELS, height, width, generator=generator, dtype=torch.float64
    ).requires_grad_()


# The layers


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    number=st.integers(1, 3),
    rows=st.lists(st.integers(0, 3), max_size=3),
    low_rank=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_is_its_matrix(sizes, number, rows, low_rank):
    torch.manual_seed(0)
    inputs, outputs = (number * size for size in sizes)
    matrices = {"rank": number} if low_rank else {"groups": number}
    layer = moved(build_linear(inputs, outputs, **matrices))
    x = torch.randn(*rows, inputs, dtype=torch.float64)
    expected = dense(layer)(x)
    assert layer(x).shape == expected.shape == (*rows, outputs)
    assert torch.allclose(layer(x), expected, rtol=1e-10)


def test_blocks_by_hand():
    """Two groups of two inputs and one output."""
    layer = build_linear(4, 2, groups=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
    assert layer(torch.tensor([1.0, 1.0, 0.0, 2.0])).tolist() == [13.0, 28.0]


def test_a_product_by_hand():
    """(1, 2) . x, then times (3, 4)."""
    layer = build_linear(2, 2, rank=1, bias=0.5)
    with torch.no_grad():
        layer.narrow.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.widen.weight.copy_(torch.tensor([[3.0], [4.0]]))
    assert layer(torch.tensor([1.0, 1.0])).tolist() == [9.5, 12.5]


@pytest.mark.parametrize("matrices", [{}, *MATRICES], ids=str)
def test_at_first_it_gives_its_bias(matrices):
    layer = build_linear(CHANNELS, 2 * CHANNELS, bias=0.25, **matrices)
    assert layer(torch.randn(5, CHANNELS)).unique().tolist() == [0.25]


def test_the_kinds_and_their_weights():
    weights = {}
    for kind, matrices in ((nn.Linear, {}), (LowRankLinear, {"rank": 3})):
        layer = build_linear(8, 12, **matrices)
        assert type(layer) is kind
        weights[kind] = sum(p.numel() for p in layer.parameters())
    layer = build_linear(8, 12, groups=4)
    assert type(layer) is GroupedLinear
    weights[GroupedLinear] = sum(p.numel() for p in layer.parameters())
    assert weights == {
        nn.Linear: 8 * 12 + 12,
        LowRankLinear: 3 * (8 + 12) + 12,
        GroupedLinear: 8 * 12 // 4 + 12,
    }


@both_ways
def test_gradient_of_a_layer(matrices):
    torch.manual_seed(0)
    layer = moved(build_linear(CHANNELS, CHANNELS, **matrices))
    x = torch.randn(3, CHANNELS, dtype=torch.float64, requires_grad=True)
    # Each input, the layer's own parameters too, is moved in place.
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.parameters()))


# The attention


@both_ways
@pytest.mark.parametrize("options", [{}, {"width": 4}, {"depthwise": True}], ids=str)
@pytest.mark.parametrize("kind", [DCSAttention, SelfAttention])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_attention_with_full_matrices(kind, options, matrices, training):
    """Output and gradients of the input, with the same draw of the mask."""
    torch.manual_seed(0)
    module = moved(kind(CHANNELS, **options, **matrices)).train(training)
    full = with_dense_layers(module).train(training)
    x, weight, results = feature_map(), feature_map(seed=2).detach(), []
    for version in (module, full):
        torch.manual_seed(5)
        output = version(x)
        (gradient,) = torch.autograd.grad((output * weight).sum(), x)
        results.append((output, gradient))
    for ours, theirs in zip(*results):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(results[0][0], x)


@both_ways
@pytest.mark.parametrize("bias", [-1.0, 0.0, 2.0])
def test_share_kept_at_the_start(matrices, bias):
    torch.manual_seed(0)
    mask = DCSMask(48, mask_bias=bias, **matrices)
    share = torch.sigmoid(torch.tensor(bias)).item()
    spread = (share * (1 - share) / (400 * 48)) ** 0.5
    kept = mask(10 * torch.randn(400, 48)).mean().item()
    assert kept == pytest.approx(share, abs=4 * spread)
    assert mask.eval()(torch.randn(3, 48)).unique().tolist() == [float(bias > 0)]


@pytest.mark.parametrize("kind", [DCSAttention, SelfAttention])
def test_the_default_has_the_keys_that_it_had(kind):
    keys = set(kind(CHANNELS).state_dict())
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    masks = {"mask.logits.weight", "mask.logits.bias"} if kind is DCSAttention else set()
    assert keys == {"project.weight", "project.bias", *statistics, *masks}


# The convolution


def test_the_convolution_starts_as_none():
    torch.manual_seed(0)
    module, without = SelfAttention(CHANNELS, depthwise=True), SelfAttention(CHANNELS)
    nn.init.normal_(module.project.weight)
    without.load_state_dict(module.state_dict(), strict=False)
    x = feature_map().float()
    assert torch.allclose(module(x), without(x), atol=1e-6)


def test_the_convolution_comes_first():
    """Attention, unchanged, to a map that each channel has averaged with its own neighbours."""
    torch.manual_seed(0)
    module = moved(DCSAttention(CHANNELS, depthwise=True)).eval()
    without = DCSAttention(CHANNELS).double().eval()
    without.load_state_dict(module.state_dict(), strict=False)
    x, kernels = feature_map().detach(), module.depthwise.weight
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    convolved = torch.zeros_like(x)
    for c, row, column in itertools.product(range(CHANNELS), range(height), range(width)):
        window = padded[:, c, row : row + 3, column : column + 3]
        convolved[:, c, row, column] = (window * kernels[c, 0]).sum(dim=(1, 2))
    expected = x + without(convolved) - convolved
    assert torch.allclose(module(x), expected, rtol=1e-10)
    assert torch.equal(module.explain(x).weights, without.explain(module.depthwise(x)).weights)
