import math

import pytest
import torch
from torch import nn

from fastreid_rib.attention import CAM


def test_parameters_are_as_published():
    assert sum(p.numel() for p in CAM(64).parameters()) == 1


def test_cam_equals_the_published_formula():
    torch.manual_seed(0)
    module, x = CAM(6).double(), torch.randn(2, 6, 3, 2, dtype=torch.float64)
    nn.init.normal_(module.gamma)
    for image, out, weights in zip(x, module(x), module.weights(x)):
        rows = image.flatten(1)
        mixed = torch.zeros_like(rows)
        for i in range(6):
            energy = [(rows[i] * rows[j]).sum().item() for j in range(6)]
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
