"""Statistics that follow the batch: one move by hand, what many of them keep, and RIBLoss."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import MOVING
from torch.nn import functional as F

from fastreid_rib import losses
from fastreid_rib.losses import rib_loss
from fastreid_rib.losses.class_table import class_table, weighted_sum
from fastreid_rib.losses.moving import move
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.settings import RIBSettings

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1, **MOVING)

CLASSES, CLUSTERS, DIM = 5, 7, 4


def statistics_of(centroids, q, counts, entries=0, with_marginal=True, floor=1e-6):
    table = class_table(q, entries, floor)
    log_p = None
    if with_marginal:
        log_p = (weighted_sum(counts, table, q.shape[1]) / counts.sum()).log().to(q.dtype)
    means = torch.zeros(len(q), centroids.shape[1])
    return Statistics(centroids, *table, log_p, None, counts, means)


def random_statistics(seed, entries=0, dtype=torch.float32, **settings):
    generator = torch.Generator().manual_seed(seed)
    centroids = F.normalize(torch.randn(CLUSTERS, DIM, generator=generator), dim=1).to(dtype)
    q = (2 * torch.randn(CLASSES, CLUSTERS, generator=generator)).softmax(1).to(dtype)
    counts = torch.randint(1, 9, (CLASSES,), generator=generator)
    return statistics_of(centroids, q, counts, entries, **settings), generator


def copied(statistics):
    return Statistics(*(None if value is None else value.clone() for value in statistics))


def random_batch(generator, n=10, least=0):
    rows = F.normalize(torch.randn(n, DIM, generator=generator), dim=1)
    return rows, torch.randint(least, CLASSES, (n,), generator=generator)


def written_out(statistics):
    """Q, (C, K)."""
    if statistics.log_q_index is None:
        return statistics.log_q.exp()
    shared = statistics.log_q_floor[:, None].repeat(1, CLUSTERS)
    return shared.scatter(1, statistics.log_q_index.long(), statistics.log_q).exp()


def step(statistics, rows, labels, **changes):
    """A move under settings that are simple to compute with."""
    plain = {"beta": 5.0, "momentum": 0.2, "smoothing": 0.0}
    return move(statistics, rows, labels, RIBSettings(**{**plain, **changes}))


def assert_close(mine, theirs, atol=1e-5):
    for name, first, second in zip(Statistics._fields, mine, theirs):
        assert (first is None) == (second is None)
        assert first is None or torch.allclose(first, second, atol=atol), name


def test_one_row_by_hand():
    # Squared distances 1/4 and 5/4: at beta ln 3 the row is assigned (3/4, 1/4).
    centroids = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    q = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    before = statistics_of(centroids, q, torch.tensor([1, 3]))
    assert before.log_p.exp().tolist() == pytest.approx([0.8, 0.2])
    rows, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    after = step(before, rows, labels, beta=math.log(3))
    assert after.centroids.flatten().tolist() == pytest.approx([0.6, 0, 0, 0.5])
    assert after.log_q.exp().flatten().tolist() == pytest.approx([0.55, 0.45, 0.9, 0.1])
    assert after.log_p.exp().tolist() == pytest.approx([0.8125, 0.1875])
    assert torch.equal(after.class_counts, before.class_counts)


def test_one_row_by_hand_in_a_sparse_table():
    # Squared distances 1/4, 5/4 and 5/4: at beta ln 2 the row is assigned (1/2, 1/4, 1/4).
    centroids = torch.tensor([[0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
    before = statistics_of(centroids, torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([4]), 1)
    assert before.log_q_index.tolist() == [[1]]
    rows, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    after = step(before, rows, labels, beta=math.log(2))
    # The listed entry moves from 1/2 towards 1/4, and the others share the rest.
    assert after.log_q_index.tolist() == [[1]]
    assert after.log_q.exp().item() == pytest.approx(0.45)
    assert after.log_q_floor.exp().item() == pytest.approx(0.275)
    assert after.log_p.exp().tolist() == pytest.approx([0.275, 0.45, 0.275])
    assert after.centroids[0].tolist() == pytest.approx([0.6, 0])


def test_the_mean_of_a_group_counts_as_many_times_as_it_has_rows():
    # Two rows beside the first centroid: (1 - 0.2)^2 = 0.64 of it stays.
    centroids = torch.tensor([[0.5, 0.0], [-0.5, 0.0]])
    before = statistics_of(centroids, torch.full((1, 2), 0.5), torch.tensor([1]))
    rows = torch.tensor([[0.6, 0.8], [0.6, -0.8]])
    after = step(before, rows, torch.tensor([0, 0]), beta=1.0)
    assert after.centroids.flatten().tolist() == pytest.approx([0.5 + 0.36 * 0.1, 0, -0.5, 0])
    # Distances 0.01 + 0.64 and 1.21 + 0.64 for both.
    phi = 1 / (1 + math.exp(-1.2))
    assert after.log_q.exp()[0, 0].item() == pytest.approx(0.5 + 0.36 * (phi - 0.5))


tables = pytest.mark.parametrize("entries", [0, 3])


@tables
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), momentum=st.floats(0.01, 0.9))
def test_after_many_moves_p_is_still_the_marginal_of_q(entries, seed, momentum):
    statistics, generator = random_statistics(seed, entries)
    first = copied(statistics)
    for _ in range(30):
        statistics = step(statistics, *random_batch(generator, least=-1), momentum=momentum)
    q, weights = written_out(statistics), statistics.class_counts / statistics.class_counts.sum()
    assert torch.allclose(statistics.log_p.exp(), weights @ q, atol=1e-5)
    assert torch.allclose(q.sum(1), torch.ones(CLASSES), atol=1e-4)
    assert statistics.centroids.norm(dim=1).max() <= 1 + 1e-5
    assert not torch.allclose(q, written_out(first), atol=1e-3)


@tables
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 5))
def test_k_equal_rows_move_as_k_single_ones(entries, seed, k):
    together, generator = random_statistics(seed, entries)
    rows, labels = random_batch(generator, 1)
    one_by_one, start = copied(together), together.centroids.clone()
    together = step(together, rows.repeat(k, 1), labels.repeat(k))
    centroids = start
    for _ in range(k):
        # The assignment is that of the centroids before the batch, whose cluster it also moves.
        one_by_one = step(one_by_one._replace(centroids=start), rows, labels)
        moved = (one_by_one.centroids != start).any(1, keepdim=True)
        centroids = torch.where(moved, centroids + 0.2 * (rows - centroids), centroids)
    assert_close(together, one_by_one._replace(centroids=centroids))


@tables
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_the_batch_does_not_show_stays_as_it_is(entries, seed):
    before, generator = random_statistics(seed, entries)
    after = copied(before)
    rows, labels = random_batch(generator, 3, least=1)
    nearest = torch.cdist(rows, before.centroids).argmin(1).tolist()
    # Rows without a label, also such as are not finite.
    others = torch.cat([random_batch(generator, 3)[0], torch.full((1, DIM), float("nan"))])
    with_others = torch.cat([others, rows]), torch.cat([torch.full((4,), -1), labels])
    after = step(after, *with_others)
    for cluster in set(range(CLUSTERS)) - set(nearest):
        assert torch.equal(after.centroids[cluster], before.centroids[cluster])
    q, q_before = written_out(after), written_out(before)
    for identity in set(range(1, CLASSES)) - set(labels.tolist()):
        assert torch.equal(q[identity], q_before[identity])
    # Rows without a label stand at that of identity 0, which moves by nothing.
    assert torch.allclose(q[0], q_before[0], rtol=1e-5)
    assert_close(after, step(copied(before), rows, labels))


def test_smoothing_by_hand():
    # As above the row is assigned (3/4, 1/4); P is (1/2, 1/2), so half of it makes (5/8, 3/8).
    centroids = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    q = torch.full((1, 2), 0.5)
    before = statistics_of(centroids, q, torch.tensor([4]))
    rows = torch.tensor([[1.0, 0.0]])
    after = step(before, rows, torch.tensor([0]), beta=math.log(3), smoothing=0.5)
    expected = torch.tensor([[0.5 + 0.2 * 0.125, 0.5 - 0.2 * 0.125]])
    assert torch.allclose(after.log_q.exp(), expected)
    assert torch.allclose(after.log_p.exp(), expected[0]), "one identity: P is its Q"


@tables
def test_nothing_but_ignored_rows_moves_nothing(entries):
    before, generator = random_statistics(0, entries)
    after = copied(before)
    rows, labels = random_batch(generator)
    after = step(step(after, rows, torch.full_like(labels, -1)), rows[:0], labels[:0])
    assert torch.equal(after.centroids, before.centroids)
    assert_close(after, before, atol=1e-6)


@tables
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_the_rows_does_not_matter(entries, seed):
    statistics, generator = random_statistics(seed, entries)
    rows, labels = random_batch(generator, 12, least=-1)
    order = torch.randperm(12, generator=generator)
    forwards = step(copied(statistics), rows, labels)
    assert_close(forwards, step(copied(statistics), rows[order], labels[order]))


@tables
def test_the_floor_holds(entries):
    statistics, generator = random_statistics(0, entries, floor=1e-3)
    rows = F.normalize(torch.randn(CLASSES, DIM, generator=generator), dim=1)
    for _ in range(60):
        statistics = step(
            statistics, rows, torch.arange(CLASSES), beta=300.0, momentum=0.5, q_floor=1e-3
        )
    # All but the nearest cluster, of which nothing is left, down to the floor.
    assert written_out(statistics).min().item() == pytest.approx(1e-3, rel=1e-4)
    assert statistics.log_p.min().item() >= math.log(1e-3) - 1e-5


def test_without_a_marginal_there_is_none_afterwards():
    statistics, generator = random_statistics(0, with_marginal=False)
    assert step(statistics, *random_batch(generator)).log_p is None


# In RIBLoss


def batch(seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    means = F.one_hot(labels, 6).float()
    return (means + 0.4 * torch.randn(n, 6, generator=generator)).requires_grad_(), labels


def started(**changes):
    rib = RIBLoss(CLASSES, **{"refreshes": 1, **changes})
    rib.start_epoch(0)
    for seed in range(6):
        rib(*batch(seed))
    rib.start_epoch(1)
    return rib


def frozen(rib):
    """The loss against the statistics as they are now."""
    names = ("centroids", "log_q", "log_p", "mean", "log_q_index", "log_q_floor")
    centroids, log_q, log_p, mean, index, floor = (
        None if getattr(rib, name) is None else getattr(rib, name).clone() for name in names
    )
    return lambda embeddings, labels: rib_loss(
        embeddings, labels, centroids, log_q, beta=rib.beta, gamma=rib.gamma, form=rib.form,
        log_p=log_p, mean=mean, index=index, floor=floor,
    )  # fmt: skip


@tables
@pytest.mark.parametrize("changes", [{}, {"form": "clusters", "gamma": 0.5, "beta": 10.0}])
def test_two_forwards_before_a_backward_each_have_their_own_statistics(entries, changes):
    rib = started(**changes, table_entries=entries)
    total, expected = 0, []
    batches = [batch(seed) for seed in (10, 11)]
    for embeddings, labels in batches:
        against = frozen(rib)  # those before the batch: no loss sees its own
        loss = rib(embeddings, labels)
        expected.append(against(embeddings, labels))
        assert loss.item() == pytest.approx(expected[-1].item(), abs=1e-6)
        assert abs(frozen(rib)(embeddings, labels).item() - loss.item()) > 1e-2  # they did move
        total = total + loss
    for mine, theirs in zip(
        torch.autograd.grad(total, [e for e, _ in batches], retain_graph=True),
        torch.autograd.grad(sum(expected), [e for e, _ in batches]),
    ):
        assert torch.allclose(mine, theirs, atol=1e-6)
        assert mine.abs().max() > 0


def test_they_move_as_the_reservoir_holds_the_rows():
    rib = started()
    before = copied(rib._statistics())
    embeddings, labels = batch(10)
    labels[3] = -1
    rib(embeddings, labels)
    rows = F.normalize(embeddings.detach(), dim=1).half().float()
    rows = F.normalize(rows - before.mean, dim=1)
    expected = move(before, rows, labels, rib.settings)
    assert_close(rib._statistics(), expected, atol=1e-6)
    assert torch.allclose(rib.half_norms, expected.centroids.square().sum(1) / 2)


def test_without_momentum_they_stand_still():
    rib = started(momentum=0.0)
    before = copied(rib._statistics())
    for seed in range(3):
        rib(*batch(seed))
    for mine, theirs in zip(rib._statistics(), before):
        assert mine is theirs is None or torch.equal(mine, theirs)
