"""What a narrow cone of embeddings, as a ReLU and a pooling leave them, does to the clusters."""

import functools
import math

import pytest
import torch
from torch.nn import functional as F

from fastreid_rib import losses

CLASSES, IMAGES, BETA = 40, 10, 10.0


@functools.lru_cache(maxsize=None)
def residuals(dim):
    """Embeddings around their mean, which is 0, and their labels. Identities overlap."""
    generator = torch.Generator().manual_seed(dim)
    labels = torch.arange(CLASSES * IMAGES) % CLASSES
    means = F.normalize(torch.randn(CLASSES, dim, generator=generator), dim=1)
    noise = F.normalize(torch.randn(len(labels), dim, generator=generator), dim=1)
    rows = F.normalize(means[labels] + 1.6 * noise, dim=1)
    return rows - rows.mean(dim=0), labels


def in_a_cone(dim, length):
    """The residuals with a common vector added, so that the mean of the unit vectors is so long."""
    rows, labels = residuals(dim)
    common = F.normalize(torch.rand(dim, generator=torch.Generator().manual_seed(0)), dim=0)
    scale = length / math.sqrt(1 - length**2) * rows.norm(dim=1).mean()
    embeddings = rows + scale * common
    assert F.normalize(embeddings, dim=1).mean(dim=0).norm().item() == pytest.approx(
        length, abs=0.01
    )
    return embeddings, labels


def information(embeddings, labels):
    """I(F~;Y) of a refresh from a reservoir that holds them, in float16."""
    rib = losses.RIBLoss(CLASSES, beta=BETA, warmup_epochs=1)
    rib.start_epoch(0)
    rib(embeddings.clone().requires_grad_(), labels)
    assert rib.bank.rows.dtype == torch.float16
    return rib.start_epoch(1)["mutual_information"]


@pytest.mark.parametrize("length", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("dim", [64, 2048])
def test_centred_clusters_tell_as_much_in_any_cone(dim, length):
    of_residuals = information(*residuals(dim))
    assert 0.5 < of_residuals < 0.97 * math.log(CLASSES)  # not all there is to be told
    told = information(*in_a_cone(dim, length))
    assert told == pytest.approx(of_residuals, rel=0.05)


def test_centred_the_gradient_does_not_vanish_in_a_narrow_cone():
    sizes = {}
    for kind in ("centred", "not centred"):
        embeddings, labels = in_a_cone(64, 0.95)
        centred = kind == "centred"
        rib = losses.RIBLoss(CLASSES, beta=BETA, warmup_epochs=1, center=centred)
        rib.start_epoch(0)
        embeddings.requires_grad_()
        rib(embeddings, labels)
        rib.start_epoch(1)
        (gradient,) = torch.autograd.grad(rib(embeddings, labels), embeddings)
        sizes[kind] = gradient.norm(dim=1).mean().item()
    assert sizes["centred"] > 10 * sizes["not centred"] > 0
