"""Attention token by token in plain Python, and what the tests feed it with."""

import math

import torch
from torch import nn

CHANNELS = 6


def tokens(n=5, images=2):
    torch.manual_seed(1)
    return torch.randn(images, n, CHANNELS, dtype=torch.float64)


def trained(kind, **settings):
    """A module in float64 with random parameters."""
    torch.manual_seed(0)
    module = kind(CHANNELS, **settings).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def normalised(x, norm):
    """(..., D) as a norm makes it in training."""
    if norm == "none":
        return x
    axes = (-1,) if norm == "layer" else tuple(range(x.dim() - 1))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()


def inner_tokens(module, x):
    """(B, N, D) before the norm."""
    return x @ module.reduce.weight.T if module.width < CHANNELS else x


def attended(module, image, inner, mask):
    """One image, (N, C).

    Args:
        module: for its weights and settings.
        image: (N, C).
        inner: (N, D), its normalised inner tokens.
        mask: (N, D), 0 or 1: the affinity is of the channels that both tokens keep.
    """
    keys, rows = inner * mask, []
    for query in keys:
        scores = []
        for key in keys:
            score = sum(a * b for a, b in zip(query.tolist(), key.tolist()))
            if module.scale == "cosine":
                norms = (query.norm() * key.norm()).item()
                scores.append(module.cosine_factor * score / norms if norms else 0.0)
            else:
                scores.append(score / math.sqrt(module.width))
        shares = [math.exp(score) for score in scores]
        mixed = sum(share * value for share, value in zip(shares, inner)) / sum(shares)
        rows.append(module.project.weight @ mixed + module.project.bias)
    return image + torch.stack(rows)
