"""The losses that studies compare RIB with, by hand."""

import math

import pytest
import torch
from fastreid.utils.events import EventStorage

pytestmark = pytest.mark.all_only


@pytest.fixture
def rivals(tools):
    import rivals

    return rivals


def at(epoch, rival, *batch):
    with EventStorage() as storage:
        storage.epoch = epoch
        return rival(*batch)


def test_class_means_are_those_of_the_epoch_before_in_the_centred_space(rivals):
    rival = rivals.ClassMeans(2, 7.0)
    # Normalised they are (1, 0) and (0, 1); the mean of both is (1/2, 1/2), so that centred and
    # normalised again they are (1, -1) / sqrt(2) and (-1, 1) / sqrt(2).
    features, labels = torch.tensor([[3.0, 0], [0, 0.5]]), torch.tensor([0, 1])
    for epoch in (0, 1):
        assert at(epoch, rival, features, labels).item() == 0, "before its first epoch"
    # Squared distances 0 from the own mean and 4 from the other's.
    loss = at(2, rival, features.clone().requires_grad_(), labels)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-7.0 * 4)), abs=1e-7)


def test_class_means_across_cameras_leave_out_what_the_own_camera_saw(rivals):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 5, generator=generator)
    labels, cameras = torch.arange(12) % 3, torch.arange(12) // 3 % 2
    cameras[labels == 2] = 1  # one camera alone: its images stay
    rival = rivals.ClassMeans(3, 4.0)
    for epoch in (0, 1, 2):
        loss = at(epoch, rival, features, labels, cameras)
    rows = torch.nn.functional.normalize(features, dim=1)
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    losses = []
    for row, label, camera in zip(rows, labels, cameras):
        means = []
        for identity in range(3):
            others = (labels == identity) & (cameras != camera)
            means.append(rows[others if others.any() else labels == identity].mean(0))
        distances = (torch.stack(means) - row).square().sum(1)
        losses.append((-4.0 * distances).log_softmax(0)[label])
    assert loss.item() == pytest.approx(-torch.stack(losses).mean().item(), abs=1e-5)


def test_center_moves_half_of_the_way_for_many(rivals):
    rival = rivals.Center(2)
    features, labels = torch.tensor([[2.0, 0]]).repeat(3, 1), torch.zeros(3, dtype=torch.int64)
    # The centre begins at 0: half of the squared distance 1; 3 pictures move it by 3 / 4 / 2.
    assert rival(features, labels).item() == pytest.approx(0.5)
    assert rival.centers.tolist() == [[pytest.approx(0.375), 0], [0, 0]]


@pytest.mark.parametrize("name", ["class-means", "class-means-across", "center"])
def test_a_rival_is_added_to_the_losses(rivals, make_cfg, name):
    from fastreid.modeling import build_model

    model = build_model(make_cfg()).train()
    rivals.add(model, name, 2.0, 8, 10.0)
    batch = {"images": torch.rand(8, 3, 64, 32) * 255, "targets": torch.arange(8) // 2}
    batch["camids"] = torch.arange(8) % 2
    with EventStorage() as storage:
        for storage.epoch in (0, 1, 2):
            losses = model({key: value.clone() for key, value in batch.items()})
    assert losses["loss_rival"].item() > 0
    sum(losses.values()).backward()
