import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.ops import add_soft_assignments_, aligned_rows
from fastreid_rib.ops import sums as module
from fastreid_rib.ops.sums import group_sum


def problem(n, dim, clusters, classes, seed=0, dtype=torch.float32):
    """Embeddings, centroids and labels, some of which are out of range."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(n, dim, generator=generator, dtype=dtype)
    centroids = torch.randn(clusters, dim, generator=generator, dtype=dtype) / dim**0.5
    labels = torch.randint(-1, classes + 1, (n,), generator=generator)
    return embeddings / embeddings.norm(dim=1, keepdim=True), centroids, labels


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


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 9),
    clusters=st.integers(1, 40),
    classes=st.integers(1, 4),
    beta=st.sampled_from([0.5, 60.0]),
    seed=st.integers(0, 1000),
)
def test_adds_the_soft_assignments_of_each_identity(backend, n, clusters, classes, beta, seed):
    embeddings, centroids, labels = problem(n, 6, clusters, classes, seed)
    table = aligned_rows(torch.ones(classes, clusters))
    negentropy = add_soft_assignments_(table, embeddings, centroids, labels, beta, backend=backend)
    sums, entropies = expected(embeddings, centroids, labels, classes, beta)
    assert torch.allclose(table.double() - 1, sums, atol=2e-5)
    assert torch.allclose(negentropy.double(), entropies, atol=2e-5)


def test_float64_is_exact():
    embeddings, centroids, labels = problem(9, 6, 11, 4, dtype=torch.float64)
    table = torch.zeros(4, 11, dtype=torch.float64)
    negentropy = add_soft_assignments_(table, embeddings, centroids, labels, 30.0)
    sums, entropies = expected(embeddings, centroids, labels, 4, 30.0)
    assert torch.allclose(table, sums, rtol=1e-12)
    assert torch.allclose(negentropy, entropies, rtol=1e-12)


def test_it_is_no_part_of_the_graph():
    embeddings, centroids, labels = problem(5, 4, 6, 3)
    table = torch.zeros(3, 6)
    embeddings.requires_grad_()
    assert not add_soft_assignments_(table, embeddings, centroids, labels, 5.0).requires_grad
    assert not table.requires_grad


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.zeros(3, 5), r"\(C, 6\) torch.float32, .* got \(3, 5\)"),
        (torch.zeros(3, 6).double(), "got .* torch.float64"),
        (torch.zeros(6, 3).t(), "table.contiguous"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    embeddings, centroids, labels = problem(5, 4, 6, 3)
    with pytest.raises(ValueError, match=message):
        add_soft_assignments_(table, embeddings, centroids, labels, 5.0)


def test_group_sum_by_hand():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = group_sum(values, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[2, 20], [0, 0], [5, 50], [0, 0]]


def test_group_sum_of_no_rows():
    assert (
        group_sum(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2).tolist() == [[0] * 3] * 2
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_sums_of_the_cpu_and_the_same_bits_each_time(monkeypatch):
    monkeypatch.setattr(module, "_ONE_HOT_ELEMENTS", 100)  # several chunks
    values, groups = torch.randn(1000, 17), torch.randint(0, 9, (1000,))
    sums = [group_sum(values.cuda(), groups.cuda(), 9).cpu() for _ in range(3)]
    assert torch.allclose(sums[0], group_sum(values, groups, 9), atol=1e-4)
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])
