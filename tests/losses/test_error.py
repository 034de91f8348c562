"""The shares of images that the statistics mistake, and the compression that follows them."""

import math

import pytest
import torch
from torch.testing import assert_close

from fastreid_rib import RIBLoss, rib_loss


def on_circle(*degrees):
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def refreshed(embeddings, labels, cameras=None, **settings):
    """A loss whose statistics are those of one batch, and the report of their refresh."""
    rib = RIBLoss(int(labels.max()) + 1, warmup_epochs=0, **settings)
    rib.start_epoch(0)
    rib(embeddings, labels, cameras=cameras)
    return rib, rib.start_epoch(1)


def test_it_counts_the_images_that_are_nearer_to_another_identity():
    # The third image of identity 0 lies among those of identity 1. By hand, without an image in
    # its own mean: scores F.m - |m|^2 / 2 of 0.18, 0.31 and -0.50 against -0.58, -0.41 and 0.50.
    embeddings = on_circle(0.0, 10.0, 95.0, 90.0, 100.0)
    _, report = refreshed(embeddings, torch.tensor([0, 0, 0, 1, 1]), center=False)
    assert report["error"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("degrees", "labels", "error"),
    [
        ((0.0, 5.0, 120.0, 125.0), [0, 0, 1, 1], 0.0),
        ((0.0, 120.0, 0.0, 120.0), [0, 0, 1, 1], 1.0),  # each with an image of the other
        ((30.0, 30.0, 30.0, 30.0), [0, 0, 1, 1], 1.0),  # a tie tells nothing apart
        ((0.0, 90.0, 180.0), [0, 1, 2], 1.0),  # one image each: nothing to judge by
        ((0.0, 5.0, 120.0), [0, 0, 1], 0.0),  # the lone image is not judged
        ((0.0, 50.0), [0, 0], 0.0),  # one identity cannot be mistaken
    ],
)
def test_its_ends(degrees, labels, error):
    _, report = refreshed(on_circle(*degrees), torch.tensor(labels), center=False)
    assert report["error"] == error


def test_an_identity_that_the_epoch_lacked_can_still_be_mistaken_for():
    embeddings = on_circle(0.0, 5.0, 90.0, 95.0)
    rib, report = refreshed(embeddings, torch.tensor([0, 0, 1, 1]), center=False)
    assert report["error"] == 0
    rib(on_circle(92.0, 2.0), torch.tensor([0, 0]))  # the first lies where identity 1 was
    assert rib.start_epoch(2)["error"] == 0.5


# Two identities, each by two cameras, which look like the cameras rather than like the identities.
BY_CAMERA = (0.0, 4.0, 80.0, 84.0, 20.0, 24.0, 100.0, 104.0)
IDENTITIES, CAMERAS = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1]


def mistakes_by_hand(embeddings, labels, left_out):
    """How many images are mistaken, against means without those that `left_out` names for each."""
    wrong = []
    for i, (image, label) in enumerate(zip(embeddings, labels)):
        score = {}
        for other in set(labels):
            rows = [j for j, of in enumerate(labels) if of == other and j not in left_out(i)]
            mean = embeddings[rows].mean(0)
            score[other] = float(image @ mean - mean.square().sum() / 2)
        wrong.append(max(score, key=score.get) != label)
    return sum(wrong)


def test_across_cameras_the_images_of_the_own_camera_are_left_out():
    embeddings, labels = on_circle(*BY_CAMERA), torch.tensor(IDENTITIES)
    rib, report = refreshed(embeddings, labels, torch.tensor(CAMERAS), center=False)
    alone = mistakes_by_hand(embeddings, IDENTITIES, lambda i: [i])
    own = [{j for j in range(8) if (IDENTITIES[j], CAMERAS[j]) == pair} for pair in
           zip(IDENTITIES, CAMERAS)]  # fmt: skip
    across = mistakes_by_hand(embeddings, IDENTITIES, lambda i: own[i])
    assert 0 < alone < across
    assert report["error"] == alone / 8 and report["error_across"] == across / 8
    alone, across = ((wrong + 0.5) / (8 - wrong + 0.5) for wrong in (alone, across))
    assert report["gamma"] == pytest.approx(alone / across)
    assert report["gamma"] == rib.statistics.compression


@pytest.mark.parametrize("cameras", [None, range(8), [0] * 8])
def test_where_no_camera_can_be_left_out_it_is_the_error(cameras):
    """No cameras, cameras of one image each, and one camera for all."""
    cameras = None if cameras is None else torch.tensor(list(cameras))
    embeddings, labels = on_circle(*BY_CAMERA), torch.tensor(IDENTITIES)
    _, report = refreshed(embeddings, labels, cameras, center=False)
    assert 0 < report["error"] == report["gamma"] < 1
    assert "error_across" not in report


@pytest.mark.parametrize("apart", [2.0, 60.0])
def test_cameras_that_change_nothing_leave_all_of_it(apart):
    """Of identities that lie in one heap, and of those that everybody tells apart."""
    first = [0.0, 0.5, 1.0, 1.5]
    embeddings = on_circle(*first, *(angle + apart for angle in first))
    _, report = refreshed(embeddings, torch.tensor(IDENTITIES), torch.tensor(CAMERAS))
    assert report["error"] == report["error_across"] and report["gamma"] == 1


@pytest.mark.parametrize("form", ["clusters", "embedding"])
def test_the_compression_counts_as_gamma_times_it(form):
    torch.manual_seed(0)
    embeddings, labels = torch.randn(60, 8), torch.arange(60) % 6
    embeddings += 2 * torch.eye(8)[labels]
    for gamma in (0.0, 0.5, 1.0):
        rib, report = refreshed(embeddings, labels, form=form, gamma=gamma)
        assert 0 < report["error"] < 1
        of = rib.statistics
        expected = rib_loss(
            embeddings, labels, of.centroids, of.log_q, beta=rib.beta,
            gamma=gamma * report["error"], form=form, log_p=of.log_p, mean=of.mean,
        )  # fmt: skip
        assert_close(rib(embeddings, labels), expected)
        assert report["bound"] == pytest.approx(float(expected), abs=2e-3)  # of rows in float16


def test_a_resumed_run_knows_it():
    torch.manual_seed(0)
    embeddings, labels = torch.randn(60, 8), torch.arange(60) % 6
    rib, report = refreshed(embeddings, labels)
    other = RIBLoss(6, warmup_epochs=0)
    other.load_state_dict(rib.state_dict())
    other.start_epoch(1)
    assert torch.equal(other(embeddings, labels), rib(embeddings, labels))
    # Those of 0.2 do not hold it: until the next refresh there is no compression, as there was.
    old = {name: value for name, value in rib.state_dict().items() if name != "compression"}
    other.load_state_dict(old)
    plain = RIBLoss(6, warmup_epochs=0, gamma=0.0)
    plain.load_state_dict(rib.state_dict())
    assert report["error"] > 0
    assert torch.equal(other(embeddings, labels), plain(embeddings, labels))
