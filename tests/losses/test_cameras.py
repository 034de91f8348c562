"""Rows of the class table for the cameras of identities, against loops written out."""

import logging
import math

import pytest
import torch
from files import on_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fastreid_rib.losses import RIBLoss
from fastreid_rib.losses.table import row_of

pytestmark = pytest.mark.published

CLASSES, DIM, CAMERAS = 5, 6, 3
ROUNDING = 5e-4  # of embeddings kept in float16, in a probability


def epoch_of(seed, n=40, cameras=CAMERAS):
    """Images of an epoch; identity 3 is seen by camera 1 alone, identity 4 by none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES - 1, (n,), generator=generator)
    seen = torch.randint(0, cameras, (n,), generator=generator)
    seen[labels == 3] = 1
    means = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    shift = 0.4 * torch.randn(cameras, DIM, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(n, DIM, generator=generator)
    labels[0] = -1
    return means[labels] + shift[seen] + 0.4 * noise, labels, seen


def refreshed(seed=0, n=40, cameras=CAMERAS, **changes):
    """A loss whose statistics come from one epoch, its report, and that epoch."""
    rib = RIBLoss(CLASSES, warmup_epochs=1, **changes)
    images, labels, seen = epoch_of(seed, n, cameras)
    rib.start_epoch(0)
    for part in range(0, n, 8):
        some = slice(part, part + 8)
        rib(images[some], labels[some], cameras=seen[some])
    return rib, rib.start_epoch(1), (images, labels, seen)


def soft_assignments(rib, images):
    rows = F.normalize(images, dim=1).half().float()
    if rib.statistics.mean is not None:
        rows = F.normalize(rows - rib.statistics.mean, dim=1)
    distances = torch.cdist(rows.double(), rib.statistics.centroids.double()).square()
    return (-rib.settings.beta * distances).log_softmax(1)


def rows_written_out(rib, images, labels, seen):
    """Q_v(a|y) of every pair of an identity, seen by two cameras or more, and one of them."""
    usable = labels >= 0
    phi, labels, seen = soft_assignments(rib, images)[usable].exp(), labels[usable], seen[usable]
    unsmoothed = phi.mean(0)
    rows = {}
    for identity in range(CLASSES):
        theirs = {int(camera) for camera in seen[labels == identity]}
        for camera in theirs if len(theirs) > 1 else ():
            q = phi[(labels == identity) & (seen != camera)].mean(0)
            rows[identity, camera] = q.lerp(unsmoothed, rib.settings.smoothing)
    return rows


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.1]), st.booleans())
def test_an_image_is_compared_with_what_other_cameras_saw(seed, smoothing, center):
    rib, _, epoch = refreshed(seed, smoothing=smoothing, center=center)
    expected = rows_written_out(rib, *epoch)
    assert expected, "the epoch has pairs"
    found = {
        (y, int(camera)): int(rib.statistics.camera_rows[y, place])
        for y in range(CLASSES)
        for place, camera in enumerate(rib.statistics.cameras)
        if int(rib.statistics.camera_rows[y, place]) != y
    }
    assert found.keys() == expected.keys()
    assert sorted(found.values()) == list(range(CLASSES, len(rib.statistics.log_q)))
    for pair, place in found.items():
        assert torch.allclose(
            rib.statistics.log_q[place].exp().double(), expected[pair], atol=ROUNDING
        )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from(["clusters", "embedding"]),
)
def test_the_loss_bounds_what_is_told_about_identity_and_camera(seed, gamma, form):
    """-I(F~;(Y,V)), by the rows and their marginal as they are; the report has the mean loss."""
    rib, report, (images, labels, seen) = refreshed(seed, gamma=gamma, form=form)
    usable = labels >= 0
    images, labels, seen = images[usable], labels[usable], seen[usable]
    with torch.no_grad():
        loss = float(rib(F.normalize(images, dim=1).half().float(), labels, cameras=seen))
    assert report["bound"] == pytest.approx(loss, rel=1e-3, abs=1e-3)
    assert "slack" not in report
    log_phi = soft_assignments(rib, images)
    joint = torch.zeros(CLASSES * CAMERAS, rib.settings.num_clusters, dtype=torch.float64)
    joint.index_add_(0, labels * CAMERAS + seen, log_phi.exp())
    joint /= joint.sum()
    separate = joint.sum(0) * joint.sum(1, keepdim=True)
    told = float((torch.xlogy(joint, joint) - torch.xlogy(joint, separate)).sum())
    phi = log_phi.exp()
    kept = float((phi * (log_phi - phi.mean(0).log())).sum(1).mean())
    if form == "clusters":
        assert loss >= report["gamma"] * kept - told - 1e-4
    # Sums to one over the images: what makes it a bound.
    row = row_of(labels, seen, rib.statistics.camera_rows, rib.statistics.cameras)
    marginal = rib.statistics.log_q[row].exp().double().mean(0)
    assert torch.allclose(rib.statistics.log_p.exp().double(), marginal, atol=1e-5)


def test_without_cameras_nothing_changes():
    """Neither where none come, nor where they are not asked for, nor where there is one alone."""

    def run(one, **changes):
        rib = RIBLoss(CLASSES, warmup_epochs=1, **changes)
        losses = []
        for epoch in range(3):
            rib.start_epoch(epoch)
            images, labels, seen = epoch_of(epoch)
            seen = {"none": None, "one": torch.full_like(seen, 7), "all": seen}[one]
            losses.append(rib(images, labels, cameras=seen))
        return rib, torch.stack(losses)

    plain, losses = run("none")
    for other, of_other in (run("all", cross_camera=False), run("one")):
        assert torch.equal(losses, of_other)
        assert other.statistics.camera_rows is None and torch.equal(
            other.statistics.log_q, plain.statistics.log_q
        )
    crossed, of_crossed = run("all")
    assert crossed.statistics.camera_rows is not None and not torch.equal(
        losses[1:], of_crossed[1:]
    )


def test_the_row_of_an_image():
    rows, known = torch.tensor([[3, 0, 4], [1, 5, 6], [2, 2, 2]]), torch.tensor([1, 4, 9])
    cases = {  # label, camera: row
        (0, 1): 3, (0, 4): 0, (0, 9): 4, (1, 4): 5, (1, 9): 6, (2, 4): 2,
        (0, 0): 0, (1, 2): 1, (1, 10): 1,  # unknown cameras
        (-1, 1): -1, (-7, 9): -1, (3, 1): -1, (99, 4): -1,  # no identities
    }  # fmt: skip
    labels, cameras = (torch.tensor(column) for column in zip(*cases))
    assert row_of(labels, cameras, rows, known).tolist() == list(cases.values())


def test_a_camera_that_the_epoch_did_not_show_and_a_batch_without_cameras():
    rib, _, (images, labels, _) = refreshed()
    plain = rib(images, labels)
    assert torch.equal(plain, rib(images, labels, cameras=torch.full_like(labels, 77)))
    assert math.isfinite(float(plain))


class Run:
    """Epochs of five steps, that can be killed behind any of them."""

    def __init__(self, **changes):
        self.rib = RIBLoss(CLASSES, warmup_epochs=1, bank_size=30, **changes)
        self.losses = []

    def go(self, first, last):
        for step in range(first, last):
            epoch, part = divmod(step, 5)
            self.rib.start_epoch(epoch)
            images, labels, seen = (t[8 * part : 8 * part + 8] for t in epoch_of(epoch))
            self.losses.append(self.rib(images, labels, cameras=seen))
        return self


@pytest.mark.parametrize("killed", [5, 12])
def test_a_run_that_goes_on_from_a_checkpoint(killed):
    whole, first, again = Run().go(0, 20), Run().go(0, killed), Run()
    again.rib.load_state_dict(on_disk(first.rib))
    again.go(killed, 20)
    assert torch.equal(torch.stack(first.losses + again.losses), torch.stack(whole.losses))
    mine, theirs = whole.rib.state_dict(), again.rib.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert {"camera_rows", "cameras", "bank_cameras"} <= mine.keys()
    assert int(mine["bank_labels"].max()) < CLASSES


def test_a_checkpoint_with_cameras_where_they_are_not_asked_for(caplog):
    first, again = Run().go(0, 12), Run(cross_camera=False)
    with caplog.at_level(logging.INFO):
        again.rib.load_state_dict(on_disk(first.rib))
    assert "RIB statistics loaded" in caplog.text
    assert again.rib.statistics.camera_rows is None and len(again.rib.statistics.log_q) == CLASSES
    assert torch.equal(again.rib.statistics.log_q, first.rib.statistics.log_q[:CLASSES])
    again.go(12, 20)
    assert torch.isfinite(torch.stack(again.losses)).all()


def test_a_checkpoint_without_cameras_where_they_come():
    first = Run(cross_camera=False).go(0, 10)
    again = Run()
    again.rib.load_state_dict(on_disk(first.rib))
    assert again.rib.statistics.camera_rows is None
    again.go(10, 20)
    assert again.rib.statistics.camera_rows is not None


@pytest.mark.parametrize("name", ["camera_rows", "cameras", "bank_cameras"])
def test_a_damaged_checkpoint_starts_afresh(name, caplog):
    state = on_disk(Run().go(0, 12).rib)
    state[name] = state[name][:-1]
    again = Run()
    again.rib.load_state_dict(state)
    told = {"cameras": "camera_rows"}.get(name, name)
    assert f"as {told} is " in caplog.text and "start afresh" in caplog.text
    assert again.rib.statistics is None
