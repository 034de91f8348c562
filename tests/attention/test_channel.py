import math

import pytest
import torch
from torch import nn

from fastreid_rib.attention import CAM, ECA, SE, CBAMChannel

CHANNELS = 6


def feature_map(height=3, width=2):
    torch.manual_seed(1)
    return torch.randn(2, CHANNELS, height, width, dtype=torch.float64)


def trained(kind, **settings):
    torch.manual_seed(0)
    module = kind(CHANNELS, **settings).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def two_layers(module, vector):
    first, _, second = module.excite
    return second.weight @ (first.weight @ vector).clamp(min=0)


def se(module, image):
    return two_layers(module, image.flatten(1).mean(1))


def cbam(module, image):
    rows = image.flatten(1)
    return two_layers(module, rows.mean(1)) + two_layers(module, rows.max(1).values)


def eca(module, image):
    means = image.flatten(1).mean(1).tolist()
    kernel = module.conv.weight.flatten().tolist()
    half = len(kernel) // 2
    logits = []
    for c in range(CHANNELS):
        near = [(c + k - half, kernel[k]) for k in range(len(kernel))]
        logits.append(sum(means[at] * w for at, w in near if 0 <= at < CHANNELS))
    return torch.tensor(logits, dtype=image.dtype)


GATES = [
    (SE, {"reduction": 2}, se),
    (CBAMChannel, {"reduction": 3}, cbam),
    (ECA, {}, eca),
    (ECA, {"kernel_size": 5}, eca),
]


@pytest.mark.parametrize("start, factor", [("identity", 2), ("published", 1)])
@pytest.mark.parametrize("kind, settings, logits", GATES)
def test_gate_equals_the_formula(kind, settings, logits, start, factor):
    module, x = trained(kind, start=start, **settings), feature_map()
    output = module(x)
    for image, gates, out in zip(x, module.gate(x), output):
        expected = [factor * sigmoid(value) for value in logits(module, image).tolist()]
        assert gates.tolist() == pytest.approx(expected)
        for channel in range(CHANNELS):
            assert torch.allclose(out[channel], expected[channel] * image[channel])


@pytest.mark.parametrize("kind, settings", [(kind, settings) for kind, settings, _ in GATES])
def test_published_start_is_near_a_half(kind, settings):
    torch.manual_seed(0)
    gate = kind(CHANNELS, start="published", **settings).double().gate(feature_map())
    assert gate.min() > 0.2 and gate.max() < 0.8 and gate.std() > 0


@pytest.mark.parametrize("channels, size", [(1, 1), (64, 3), (256, 5), (512, 5), (2048, 7)])
def test_kernel_of_eca_grows_with_the_channels(channels, size):
    assert ECA(channels).conv.weight.shape == (1, 1, size)


def test_parameters_are_as_published():
    assert sum(p.numel() for p in SE(64).parameters()) == 2 * 64 * 4
    assert sum(p.numel() for p in CBAMChannel(64).parameters()) == 2 * 64 * 4
    assert sum(p.numel() for p in ECA(64).parameters()) == 3
    assert sum(p.numel() for p in CAM(64).parameters()) == 1


def test_cam_equals_the_published_formula():
    module, x = trained(CAM), feature_map()
    for image, out, weights in zip(x, module(x), module.weights(x)):
        rows = image.flatten(1)
        mixed = torch.zeros_like(rows)
        for i in range(CHANNELS):
            energy = [(rows[i] * rows[j]).sum().item() for j in range(CHANNELS)]
            shares = [math.exp(max(energy) - value) for value in energy]
            shares = [share / sum(shares) for share in shares]
            assert weights[i].tolist() == pytest.approx(shares)
            mixed[i] = sum(share * row for share, row in zip(shares, rows))
        assert torch.allclose(out, image + module.gamma * mixed.reshape(image.shape))


def test_cam_keeps_its_precision_under_autocast():
    # Affinities of about 500; in bfloat16 they would be off by up to 1.
    torch.manual_seed(0)
    x = 2 + torch.randn(1, 8, 16, 8)
    module = CAM(8)
    nn.init.ones_(module.gamma)
    module.double()
    exact = module.weights(x.double()), module(x.double())
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights, output = module.weights(x), module(x)
    assert torch.allclose(weights.double(), exact[0], rtol=1e-2)
    assert torch.allclose(output.double(), exact[1], rtol=1e-4)


@pytest.mark.parametrize("module", [SE(64), CBAMChannel(64), ECA(64)])
def test_a_small_change_of_the_gate_is_not_rounded_away_under_autocast(module):
    # 2 sigmoid(z) = 1.002 is no bfloat16 number.
    nn.init.constant_(list(module.parameters())[-1], 0.0)
    module.logits = lambda x: torch.full((1, 64), 0.004, dtype=torch.bfloat16)
    assert module(torch.ones(1, 64, 1, 1)).mean().item() == pytest.approx(1.002, abs=1e-4)
