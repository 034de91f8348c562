"""A small network with two groups of channels, and its space."""

import torch
from torch import nn

from fastreid_rib.search import Channels, Layer, Space

GROUPS = {"front": (8, 6, 3), "back": (12, 8, 5, 4)}
IMAGES = torch.randn(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Expansion by 2, depthwise, projection; a residual where the width stays."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.residual = inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, 2 * inputs, 1, bias=False),
            nn.BatchNorm2d(2 * inputs),
            nn.ReLU(),
            nn.Conv2d(2 * inputs, 2 * inputs, 3, 1, 1, groups=2 * inputs, bias=False),
            nn.BatchNorm2d(2 * inputs),
            nn.ReLU(),
            nn.Conv2d(2 * inputs, outputs, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 12), Block(12, 12))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(12, 7)

    def forward(self, x):
        return self.last(self.pool(self.blocks(self.stem(x))).flatten(1))


def space(groups=GROUPS):
    front, back = Channels("front"), Channels("back")
    layers = [
        Layer("stem.0", Channels(), front),
        Layer("stem.1", front, front, masked=True),
    ]
    for i, (before, after) in enumerate([(front, front), (front, back), (back, back)]):
        path = f"blocks.{i}.conv"
        inside = Channels(before.group, 2, path)
        layers += [
            Layer(f"{path}.0", before, inside),
            Layer(f"{path}.1", inside, inside),
            Layer(f"{path}.3", inside, inside),
            Layer(f"{path}.4", inside, inside, masked=True),
            Layer(f"{path}.6", inside, after),
            Layer(f"{path}.7", after, after, masked=True),
        ]
    layers.append(Layer("last", back, Channels()))
    return Space(groups, layers)


def trained(network, steps=3):
    """Running statistics and weights as after some steps."""
    with torch.no_grad():
        for _ in range(steps):
            network.train()(torch.randn(8, 3, 16, 8))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()  # what is zero in front of a norm is not behind it
    return network.eval()
