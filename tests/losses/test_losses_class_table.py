"""The sparse class table: what is kept, and that what is left out is shared."""

import functools
import io
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import MOVING, PAPER, every_kind
from sums import image_information, sums_of
from torch.nn import functional as F

from fastreid_rib import losses
from fastreid_rib.losses import information, rib_loss, rib_loss_reference
from fastreid_rib.losses.class_table import class_table, sum_of_logs, weighted_sum

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1, **PAPER)

CLASSES, DIM = 9, 6


def whole(table, clusters):
    """A sparse table written out: (C, K)."""
    log_q, index, floor = table
    full = floor[:, None].expand(-1, clusters).clone()
    return full.scatter_(1, index.long(), log_q)


def random_rows(seed, classes=4, clusters=12):
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(classes, clusters, generator=generator)).softmax(1)


def test_by_hand():
    q = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]])
    q[0, 2] += 0.01
    q[0, 3] -= 0.01
    log_q, index, floor = class_table(q, 2, 1e-6)
    assert index.dtype == torch.int32 and index[0].tolist() == [1, 2] and index[2, 0] == 3
    assert log_q.exp()[0].tolist() == pytest.approx([0.5, 0.21])
    assert floor.exp().tolist() == pytest.approx([(0.1 + 0.19) / 2, 0.25, 1e-6])
    assert log_q.exp()[2].tolist() == pytest.approx([1.0, 1e-6])


@pytest.mark.parametrize("entries", [0, 12, 40])
def test_as_many_entries_as_clusters_is_the_whole_table(entries):
    q = random_rows(0)
    log_q, index, floor = class_table(q, entries, 1e-3)
    assert index is None and floor is None
    assert torch.equal(log_q, q.clamp(min=1e-3).log())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), entries=st.integers(1, 11))
def test_rows_sum_to_one_and_no_other_shared_value_diverges_less(seed, entries):
    q = random_rows(seed).double()
    table = class_table(q, entries, 1e-30)
    full = whole(table, 12).double()
    assert torch.allclose(full.exp().sum(1), torch.ones(4).double(), atol=1e-5)
    loss = -(q * full).sum(1)
    for factor in (0.5, 2.0):  # another shared value, the row scaled back to a sum of one
        listed = torch.zeros_like(q).scatter_(1, table.log_q_index.long(), 1.0) > 0
        other = torch.where(listed, full, full + math.log(factor)).log_softmax(1)
        assert (loss <= -(q * other).sum(1) + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), entries=st.integers(1, 12))
def test_sums_over_the_table(seed, entries):
    q, weights = random_rows(seed), 5 * random_rows(seed + 1)
    table = class_table(q, entries, 1e-6)
    full = whole(table, 12) if entries < 12 else table.log_q
    expected = (weights.double() * full.double()).sum().item()
    assert sum_of_logs(weights, table).item() == pytest.approx(expected, rel=1e-5)
    of_identities = torch.tensor([3, 0, 1, 7])
    expected = (of_identities.double() @ full.double().exp()).tolist()
    assert weighted_sum(of_identities, table, 12).tolist() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), entries=st.integers(1, 11))
def test_a_sparse_table_is_still_a_bound_and_more_entries_tighten_it(seed, entries):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(24) % 4
    log_phi = (3 * torch.randn(24, 12, generator=generator, dtype=torch.float64)).log_softmax(1)
    of_labels = torch.zeros(4, 12, dtype=torch.float64).index_add_(0, labels, log_phi.exp())
    bounds = []
    for m in (entries, entries + 1):
        table = class_table(of_labels / 6, m, 1e-30)
        log_q = whole(table, 12) if m < 12 else table.log_q
        sums = sums_of(log_phi, labels, log_q)
        bounds.append(information.conditional_bound(sums).item())
        assert image_information(sums).item() <= bounds[-1] + 1e-5
    assert bounds[1] <= bounds[0] + 1e-5


class Stream:
    """Batches of noisy means of identities, the last of which never appears."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.means = torch.randn(CLASSES, DIM, generator=self.generator)

    def batch(self, n=12, last=CLASSES - 1):
        labels = torch.randint(0, last, (n,), generator=self.generator)
        noise = torch.randn(n, DIM, generator=self.generator)
        return (self.means[labels] + 0.5 * noise).requires_grad_(), labels


def started(epochs=2, **changes):
    rib, stream = RIBLoss(CLASSES, **{"beta": 6.0, "num_clusters": 11, **changes}), Stream()
    report = {}
    for epoch in range(epochs):
        report = rib.start_epoch(epoch)
        for _ in range(8):
            rib(*stream.batch(last=CLASSES - 1 - epoch))
    return rib, stream, rib.start_epoch(epochs) or report


def statistics(rib):
    return rib.centroids, rib.log_q, rib.log_q_index, rib.log_q_floor


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_the_loss_is_that_of_the_table_written_out(backend, gamma):
    rib, stream, _ = started(table_entries=3, backend=backend, gamma=gamma)
    centroids, *table = statistics(rib)
    assert table[0].shape == table[1].shape == (CLASSES, 3) and table[2].shape == (CLASSES,)
    embeddings, labels = stream.batch(40)
    loss = rib(embeddings, labels)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    expected = rib_loss_reference(
        embeddings, labels, centroids, whole(table, 11), beta=6.0, gamma=gamma
    )
    (expected_gradient,) = torch.autograd.grad(expected, embeddings)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@every_kind
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_entries_are_the_largest_of_the_whole_table(native, with_inputs, kind):
    found = []
    for entries in (0, 4):
        settings = {**kind, "smoothing": 0.0, "beta": 60.0, "table_entries": entries}
        rib = RIBLoss(CLASSES, backend="cpu" if native else "torch", **settings)
        stream = Stream()
        for _ in range(8):
            embeddings, labels = stream.batch()
            rib(embeddings, labels, embeddings[:, :4].abs() if with_inputs else None)
        found.append((rib.start_epoch(1), statistics(rib)))
    (report, (centroids, log_q, *nothing)), (sparse_report, (same, *table)) = found
    assert nothing == [None, None]
    assert torch.equal(centroids, same)
    assert torch.equal(table[0], log_q.topk(4, dim=1).values)
    assert torch.equal(table[0], log_q.gather(1, table[1].long()))
    # The information does not depend on Q; the bound is looser, and still above.
    assert sparse_report.keys() == report.keys()
    assert sparse_report["mutual_information"] == report["mutual_information"]
    assert sparse_report["klb"] >= report["klb"] - 1e-6
    # Never seen: the uniform row, exactly.
    assert torch.allclose(whole(table, CLASSES)[-1], torch.tensor(-math.log(CLASSES)))


@every_kind
def test_blocks_of_any_size_give_the_same(monkeypatch, kind):
    from fastreid_rib.losses import clustering

    first, _, report = started(table_entries=3, **kind)
    monkeypatch.setattr(clustering, "_CHUNK_ELEMENTS", 22)  # two identities, two images
    second, _, again = started(table_entries=3, **kind)
    assert report == pytest.approx(again, abs=1e-5)
    for mine, theirs in zip(statistics(first), statistics(second)):
        assert torch.allclose(mine, theirs, atol=1e-5)


@every_kind
def test_an_absent_identity_keeps_its_mean(kind):
    rib, _, _ = started(epochs=2, table_entries=3, **{**kind, "smoothing": 0.0})
    absent = CLASSES - 2  # came in the first epoch and not in the second
    assert rib.class_counts[absent] > 0
    distances = (rib.class_means[absent] - rib.centroids).square().sum(1)
    expected = (-6.0 * distances).softmax(0).topk(3)
    assert rib.log_q_index[absent].tolist() == expected.indices.tolist()
    assert torch.allclose(rib.log_q[absent].exp(), expected.values, rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("epochs", [1, 2])
def test_smoothing_mixes_the_marginal_into_every_row(epochs, gamma):
    kind = {**MOVING, "form": "clusters", "momentum": 0.0, "gamma": gamma}
    (sharp, _, before), (smooth, _, after) = (
        started(epochs=epochs, **{**kind, "smoothing": share}) for share in (0.0, 0.25)
    )
    marginal = sharp.log_p.exp()
    assert torch.allclose(smooth.log_q.exp(), 0.75 * sharp.log_q.exp() + 0.25 * marginal, atol=1e-5)
    assert torch.allclose(smooth.log_p.exp(), marginal, atol=1e-5)
    assert (smooth.log_q - smooth.log_p).min() >= math.log(0.25) - 1e-4
    # What the clusters tell does not depend on Q, and a Q that is off only loosens the bound.
    assert after["mutual_information"] == pytest.approx(before["mutual_information"])
    assert after["slack"] > before["slack"] >= -1e-4


@every_kind
def test_checkpoints_hold_the_sparse_table(kind):
    rib, stream, _ = started(table_entries=3, **kind)
    file = io.BytesIO()
    torch.save(rib.state_dict(), file)
    file.seek(0)
    resumed = RIBLoss(CLASSES, beta=6.0, num_clusters=11, table_entries=3, **kind)
    resumed.load_state_dict(torch.load(file))
    batches = [stream.batch() for _ in range(4)]
    for embeddings, labels in batches:
        assert torch.equal(rib(embeddings, labels), resumed(embeddings, labels))
    assert rib.start_epoch(3) == resumed.start_epoch(3) != {}
    mine, theirs = rib.state_dict(), resumed.state_dict()
    assert {"log_q", "log_q_index", "log_q_floor"} <= mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize(("written", "read"), [(3, 4), (3, 0), (0, 3)])
def test_another_number_of_entries_starts_afresh(written, read, caplog):
    state = started(table_entries=written)[0].state_dict()
    rib = RIBLoss(CLASSES, beta=6.0, num_clusters=11, table_entries=read)
    with caplog.at_level(logging.INFO):
        rib.load_state_dict(state)
    assert rib.state_dict() == {}
    assert "start afresh" in caplog.text and "log_q" in caplog.text
    assert rib(*Stream().batch()).item() == 0


def test_a_sparse_table_without_its_floor_loads_nothing(caplog):
    state = started(table_entries=3)[0].state_dict()
    del state["log_q_floor"]
    rib = RIBLoss(CLASSES, beta=6.0, num_clusters=11, table_entries=3)
    with caplog.at_level(logging.INFO):
        rib.load_state_dict(state, strict=False)
    assert rib.state_dict() == {} and "log_q_floor" in caplog.text


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="table_entries must be >= 0"):
        RIBLoss(CLASSES, table_entries=-1)
    arguments = (torch.eye(3), torch.arange(3), torch.eye(5, 3), torch.zeros(3, 2))
    index, floor = torch.zeros(3, 2).int(), torch.zeros(3)
    rib_loss(*arguments, beta=1.0, index=index, floor=floor)
    with pytest.raises(ValueError, match="index and floor belong together"):
        rib_loss(*arguments, beta=1.0, index=index)
    with pytest.raises(ValueError, match=r"log_q and index must be \(C, m\) and floor \(C,\)"):
        rib_loss(*arguments, beta=1.0, index=index[:, :1], floor=floor)


@every_kind
def test_training_with_a_sparse_table_lowers_the_bound(kind):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, DIM, generator=generator)
    layer = torch.nn.Linear(DIM, DIM)
    rib = RIBLoss(CLASSES, beta=10.0, table_entries=2, **kind)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    bounds = []
    for epoch in range(10):
        bounds.append(rib.start_epoch(epoch).get("bound"))
        for _ in range(20):
            labels = torch.randint(CLASSES, (24,), generator=generator)
            images = means[labels] + 0.7 * torch.randn(24, DIM, generator=generator)
            loss = rib(layer(F.normalize(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    # Of the distance to the least value, which is 0 or, of the full bound, -log C.
    least = 0 if kind["relevance"] == "paper" else -math.log(CLASSES)
    assert bounds[-1] - least < 0.8 * (bounds[1] - least)
