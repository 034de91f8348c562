"""The information bottleneck of Gaussian embeddings, in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fastreid_rib.losses import gaussian_bottleneck


def people(seed, identities=40, images=6, size=12):
    """Embeddings (N, size) whose identities differ in four directions, and images in the others."""
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(size, size, generator=draw)).Q
    labels = torch.arange(identities).repeat_interleave(images)
    told, noise = torch.zeros(size), torch.full((size,), 1.0)
    told[:4], noise[:4] = 1, 0.1
    rows = (torch.randn(identities, size, generator=draw) * told)[labels]
    rows = rows + torch.randn(len(labels), size, generator=draw) * noise
    return rows @ turn + 5, labels, turn


def retrieved(rows, labels):
    """The share of images whose nearest one is of their identity."""
    alike = F.normalize(rows) @ F.normalize(rows).t()
    nearest = alike.fill_diagonal_(-2).argmax(dim=1)
    return float((labels[nearest] == labels).float().mean())


def test_people_it_was_not_fitted_to_are_told_apart():
    rows, labels, _ = people(0, identities=80)
    fitted, others = labels < 40, labels >= 40
    mean, projection = gaussian_bottleneck(rows[fitted], labels[fitted], 4)
    assert projection.shape == (12, 4) and mean.shape == (12,)
    assert mean.dtype == projection.dtype == torch.float32
    before = retrieved(rows[others], labels[others])
    after = retrieved((rows[others] - mean) @ projection, labels[others])
    assert before < 0.4 and after > 0.8


def test_it_is_the_limit_of_the_gaussian_bottleneck():
    """Chechik et al. 2005: v of S v = lambda T v, weighted by (b (1 - lambda) - 1) / (lambda r)."""
    rows, labels, _ = people(1)
    rows = rows.double()
    mean, projection = gaussian_bottleneck(rows, labels, 12)
    centred = rows - rows.mean(dim=0)
    means = torch.stack([centred[labels == label].mean(dim=0) for label in labels.unique()])
    own = centred - means[labels]
    within, total = own.t() @ own / len(rows), centred.t() @ centred / len(rows)
    ridge = within.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    within, total = within + ridge, total + ridge
    values, left = torch.linalg.eig(within @ torch.inverse(total))
    found = torch.linalg.inv(left).real  # rows: left eigenvectors
    values, weight, beta = values.real, torch.zeros(12, 12, dtype=torch.float64), 1e9
    for value, vector in zip(values, found):
        size = vector @ total @ vector
        weight += (beta * (1 - value) - 1) / (value * size) / beta * torch.outer(vector, vector)
    metric = (projection @ projection.t()).double()
    assert torch.allclose(metric, weight, atol=1e-5 * float(weight.abs().max()))


@given(seed=st.integers(0, 2**16), dim=st.integers(1, 9), scale=st.floats(1e-2, 1e2))
def test_moved_turned_and_scaled_embeddings_have_the_same_cosines(seed, dim, scale):
    rows, labels, turn = people(seed, identities=10)
    found = []
    for given_rows in (rows, (rows * scale) @ turn - 2):
        mean, projection = gaussian_bottleneck(given_rows, labels, dim)
        projected = F.normalize((given_rows - mean) @ projection)
        found.append(projected @ projected.t())
    assert torch.allclose(*found, atol=5e-3)


def test_columns_come_by_what_they_tell():
    rows, labels, _ = people(3)
    _, all_of_them = gaussian_bottleneck(rows, labels, 12)
    sizes = all_of_them.norm(dim=0)
    assert bool((sizes[:-1] >= sizes[1:]).all()) and float(sizes[3]) > 2 * float(sizes[4])
    assert torch.equal(gaussian_bottleneck(rows, labels, 5)[1], all_of_them[:, :5])


@pytest.mark.parametrize(("dim", "identities", "most"), [(-1, 40, 12), (13, 40, 12), (8, 8, 7)])
def test_a_size_out_of_its_range(dim, identities, most):
    rows, labels, _ = people(0, identities)
    with pytest.raises(ValueError, match=rf"dim must be in 0\.\.{most}, as .* got {dim}"):
        gaussian_bottleneck(rows, labels, dim)


def test_columns_beyond_the_identities_would_be_zero():
    rows, labels, _ = people(0, identities=8)
    _, projection = gaussian_bottleneck(rows, labels, 7)
    assert projection.shape == (12, 7)
    assert float(projection[:, -1].norm()) > 1e-3
    metric = projection.double() @ projection.double().t()
    assert torch.linalg.matrix_rank(metric, rtol=1e-4) == 7


def test_of_few_identities_no_direction_is_lost():
    """Four people differ in three directions, others in a fourth, too: it must tell them apart."""
    rows, labels, _ = people(0, identities=200)
    few, others = labels < 4, labels >= 4
    mean, narrow = gaussian_bottleneck(rows[few], labels[few], 3)
    mean, wide = gaussian_bottleneck(rows[few], labels[few])
    assert wide.shape == (12, 12) and float(wide[:, -1].norm()) > 1e-3
    of_narrow, of_wide = (
        retrieved((rows[others] - mean) @ projection, labels[others])
        for projection in (narrow, wide)
    )
    assert of_wide > of_narrow + 0.2
    assert gaussian_bottleneck(rows, labels)[1].shape == (12, 12)


def test_of_many_identities_it_is_as_narrow_as_they_allow():
    rows, labels, _ = people(0, identities=200, images=2, size=300)
    _, projection = gaussian_bottleneck(rows, labels)
    assert projection.shape == (300, 199)
    assert torch.equal(projection, gaussian_bottleneck(rows, labels, 199)[1])


def test_one_identity():
    with pytest.raises(ValueError, match="two identities or more, got 1"):
        gaussian_bottleneck(torch.randn(6, 4), torch.zeros(6).long())


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.full((6, 4), float("nan")), torch.arange(6) % 3, "6 embeddings hold NaN"),
        (torch.randn(6, 4), torch.arange(6) - 1, "labels must be >= 0, got -1"),
        (torch.randn(6, 4), torch.arange(6.0), "one for each embedding.*write labels.long()"),
        (torch.randn(6, 4), torch.arange(7), r"labels must be \(6,\) int64"),
    ],
)
def test_what_it_cannot_fit(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        gaussian_bottleneck(embeddings, labels)


def test_equal_embeddings_of_each_identity():
    with pytest.raises(ValueError, match="differ within an identity"):
        gaussian_bottleneck(torch.eye(6), torch.arange(6), 2)
