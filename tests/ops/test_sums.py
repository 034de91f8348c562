"""Sums of soft assignments by identity, and sums by group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.ops import add_soft_assignments_, aligned_rows
from fastreid_rib.ops import sums as module
from fastreid_rib.ops.sums import group_sum


def expected(embeddings, centroids, labels, classes, beta):
    """From the definition, image by image, in float64."""
    table = torch.zeros(classes, len(centroids), dtype=torch.float64)
    negentropy = torch.zeros(len(labels), dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        if 0 <= label < classes:
            distances = (embeddings[i].double() - centroids.double()).square().sum(1)
            log_phi = (-beta * distances).log_softmax(0)
            table[label] += log_phi.exp()
            negentropy[i] = (log_phi.exp() * log_phi).sum()
    return table, negentropy


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("cpu", torch.float32), ("torch", torch.float32), ("auto", torch.float64)],
)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 9),
    clusters=st.integers(1, 40),
    classes=st.integers(1, 4),
    beta=st.sampled_from([0.5, 60.0]),
    seed=st.integers(0, 1000),
)
def test_adds_the_soft_assignments_of_each_identity(
    backend, dtype, n, clusters, classes, beta, seed
):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, 6, generator=generator, dtype=dtype)
    embeddings = (embeddings / embeddings.norm(dim=1, keepdim=True)).requires_grad_()
    centroids = torch.randn(clusters, 6, generator=generator, dtype=dtype) / 6**0.5
    labels = torch.randint(-1, classes + 1, (n,), generator=generator)  # some of no identity
    table = aligned_rows(torch.ones(classes, clusters, dtype=dtype))
    negentropy = add_soft_assignments_(table, embeddings, centroids, labels, beta, backend=backend)
    sums, entropies = expected(embeddings.detach(), centroids, labels, classes, beta)
    atol = 2e-5 if dtype == torch.float32 else 1e-11
    assert torch.allclose(table.double() - 1, sums, atol=atol)
    assert torch.allclose(negentropy.double(), entropies, atol=atol)
    assert not negentropy.requires_grad and not table.requires_grad


def test_group_sum_by_hand():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = group_sum(values, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[2, 20], [0, 0], [5, 50], [0, 0]]
    assert group_sum(values[:0], torch.tensor([]).long(), 2).tolist() == [[0, 0]] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_sums_of_the_cpu_and_the_same_bits_each_time(monkeypatch):
    monkeypatch.setattr(module, "_ONE_HOT_ELEMENTS", 100)  # several chunks
    values, groups = torch.randn(1000, 17), torch.randint(0, 9, (1000,))
    sums = [group_sum(values.cuda(), groups.cuda(), 9).cpu() for _ in range(3)]
    assert torch.allclose(sums[0], group_sum(values, groups, 9), atol=1e-4)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
