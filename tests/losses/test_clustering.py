import random

import pytest
import torch

from fastreid_rib.losses import clustering
from fastreid_rib.losses.clustering import kmeans, spread_seeds
from fastreid_rib.ops import sums


def inertia(rows, centroids):
    return torch.cdist(rows.double(), centroids.double()).min(dim=1).values.square().sum().item()


def nearest(rows, centroids):
    return torch.cdist(rows.double(), centroids.double()).argmin(dim=1)


@pytest.fixture
def blobs():
    """30 points around each of 5 far-apart centres."""
    torch.manual_seed(0)
    centres = 20 * torch.eye(5, 8)
    return centres, (centres.repeat_interleave(30, 0) + torch.randn(150, 8))[torch.randperm(150)]


def test_by_hand():
    rows = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    assert kmeans(rows, torch.tensor([[3.0], [9.0]]), 1).tolist() == [[1.0], [12.0]]
    # Start (0, 1): 0 | 2, 10, 14 -> (0, 8.67) -> 0, 2 | 10, 14 -> (1, 12).
    assert kmeans(rows, torch.tensor([[0.0], [1.0]]), 1).tolist() == [
        [0.0],
        [pytest.approx(26 / 3)],
    ]
    assert kmeans(rows, torch.tensor([[0.0], [1.0]]), 2).tolist() == [[1.0], [12.0]]


def test_stops_when_nothing_moves_with_the_same_result(monkeypatch):
    rows = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    passes = []
    nearest_of = clustering._nearest
    monkeypatch.setattr(clustering, "_nearest", lambda *a: passes.append(1) or nearest_of(*a))
    # Two iterations move something, as above, the third sees that nothing does.
    assert kmeans(rows, torch.tensor([[0.0], [1.0]]), 50).tolist() == [[1.0], [12.0]]
    assert len(passes) == 3


def test_reseeding_by_hand():
    rows = torch.tensor([[0.0], [1.0], [9.0]])
    # All rows go to 1; the farthest from it is 9, the next 0.
    start = torch.tensor([[1.0], [50.0], [60.0]])
    assert kmeans(rows, start, 1).flatten().tolist() == [pytest.approx(10 / 3), 9.0, 0.0]


@pytest.mark.parametrize("rows", [torch.eye(3), torch.ones(4, 3), torch.ones(1, 1)])
def test_more_clusters_than_rows(rows):
    seeds = spread_seeds(rows, 7, random.Random(0))
    centroids = kmeans(rows, seeds, 4)
    assert centroids.shape == (7, rows.shape[1])
    assert inertia(rows, centroids) == pytest.approx(0, abs=1e-12)


def test_seeds_are_rows_and_distinct_points_come_first():
    rows = torch.tensor([[0.0, 0.0]] * 50 + [[1.0, 0.0]] + [[0.0, 5.0]])
    for seed in range(20):
        seeds = spread_seeds(rows, 3, random.Random(seed))
        assert sorted(map(tuple, seeds.tolist())) == [(0, 0), (0, 5), (1, 0)]


def test_many_seeds_beat_random_rows():
    torch.manual_seed(0)
    rows = torch.randn(900, 5) * torch.rand(900, 1) ** 3
    spread = [inertia(rows, spread_seeds(rows, 130, random.Random(s))) for s in range(5)]
    uniform = [inertia(rows, rows[torch.randperm(900)[:130]]) for _ in range(5)]
    assert max(spread) < min(uniform)


def test_same_result_for_the_same_seed_and_for_other_chunks(blobs, monkeypatch):
    _, rows = blobs
    first = kmeans(rows, spread_seeds(rows, 9, random.Random(3)), 5)
    assert torch.equal(first, kmeans(rows, spread_seeds(rows, 9, random.Random(3)), 5))
    assert not torch.equal(first, kmeans(rows, spread_seeds(rows, 9, random.Random(4)), 5))
    monkeypatch.setattr(sums, "_CHUNK_ELEMENTS", 9 * 7)
    assert torch.allclose(first, kmeans(rows, spread_seeds(rows, 9, random.Random(3)), 5))


def test_half_precision_rows_are_clustered_in_float32():
    rows = torch.full((4000, 1), 1.0009765625).half()  # in float16 their sum would stop at 4096
    assert kmeans(rows, torch.zeros(1, 1), 1).item() == 1.0009765625


def test_the_start_is_left_alone(blobs):
    _, rows = blobs
    start = torch.zeros(3, 8)
    kmeans(rows, start, 0)[0] = 7
    kmeans(rows, start, 2)
    assert start.abs().max() == 0
