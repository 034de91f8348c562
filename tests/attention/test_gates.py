"""SE, ECA and CBAM's channel half."""

import math

import pytest
import torch
from by_hand import CHANNELS, normalised, trained
from torch import nn

from fastreid_rib.attention import ECA, SE, CBAMChannel


def feature_map(height=3, width=2, images=2):
    torch.manual_seed(1)
    return torch.randn(images, CHANNELS, height, width, dtype=torch.float64)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def two_layers(module, pooled, norm):
    first, _, _, second = module.excite
    hidden = normalised((pooled @ first.weight.T).clamp(min=0), norm)
    return hidden @ second.weight.T


def se(module, x, norm):
    return two_layers(module, x.flatten(2).mean(2), norm)


def cbam(module, x, norm):
    rows = x.flatten(2)
    both = two_layers(module, torch.cat((rows.mean(2), rows.max(2).values)), norm)
    return both[: len(x)] + both[len(x) :]


def eca(module, x, norm):
    kernel = module.conv.weight.flatten().tolist()
    half = len(kernel) // 2
    logits = torch.zeros(x.shape[:2], dtype=x.dtype)
    for image, means in enumerate(normalised(x.flatten(2).mean(2), norm).tolist()):
        for c in range(CHANNELS):
            near = [(c + k - half, kernel[k]) for k in range(len(kernel))]
            logits[image, c] = sum(means[at] * w for at, w in near if 0 <= at < CHANNELS)
    return logits


GATES = [
    (SE, {"reduction": 2}, se),
    (CBAMChannel, {"reduction": 3}, cbam),
    (ECA, {}, eca),
    (ECA, {"kernel_size": 5}, eca),
]
each_gate = pytest.mark.parametrize("kind, settings, logits", GATES)


@each_gate
def test_gate_equals_the_formula(kind, settings, logits):
    x = feature_map(images=3)
    ways = [("identity", 2, "batch"), ("identity", 2, "layer"), ("published", 1, "none")]
    for start, factor, norm in ways:
        module = trained(kind, start=start, norm=norm, **settings)
        output, expected = module(x), logits(module, x, norm)
        for image, gates, out, written_out in zip(x, module.gate(x), output, expected):
            values = [factor * sigmoid(value) for value in written_out.tolist()]
            assert gates.tolist() == pytest.approx(values)
            for channel in range(CHANNELS):
                assert torch.allclose(out[channel], values[channel] * image[channel])


@each_gate
def test_a_gate_cannot_become_a_constant_scale(kind, settings, logits):
    """Why "batch" is the default: whatever is learnt, a channel's logits have mean 0."""
    x = feature_map(images=5) + 5
    assert trained(kind, **settings).logits(x).mean(0).abs().max() < 1e-9
    assert trained(kind, norm="none", **settings).logits(x).mean(0).abs().max() > 1


def test_the_kernel_of_eca_is_as_published():
    for channels, size in [(1, 1), (64, 3), (256, 5), (512, 5), (2048, 7)]:
        (kernel,) = ECA(channels).parameters()
        assert kernel.shape == (1, 1, size)


@pytest.mark.parametrize("module", [SE(64), CBAMChannel(64), ECA(64)])
def test_a_small_change_of_the_gate_is_not_rounded_away_under_autocast(module):
    # 2 sigmoid(z) = 1.002 is no bfloat16 number.
    nn.init.constant_(list(module.parameters())[-1], 0.0)
    module.logits = lambda x: torch.full((1, 64), 0.004, dtype=torch.bfloat16)
    assert module(torch.ones(1, 64, 1, 1)).mean().item() == pytest.approx(1.002, abs=1e-4)
