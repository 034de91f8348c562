"""Camera noise: what is drawn, what it is added to, and what a classifier learns of it."""

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastreid_rib.losses import RIBLoss
from fastreid_rib.losses.noise import between_cameras
from fastreid_rib.losses.table import Rows

pytestmark = pytest.mark.published

CLASSES, DIM = 6, 8
COUNTS = [44, 4]  # of an identity's images, by camera


def epoch_of(seed, mostly=0):
    """Images of identities that one camera saw often, even ones the first; it shifts them."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(sum(COUNTS))
    cameras = torch.arange(2).repeat_interleave(torch.tensor(COUNTS)).repeat(CLASSES)
    cameras = (cameras + labels + mostly) % 2
    images = torch.zeros(len(labels), DIM)
    images[:, :CLASSES] = F.one_hot(labels, CLASSES).float()
    images[:, CLASSES] = 3.0 * (2 * cameras - 1)
    return images + 0.3 * torch.randn(images.shape, generator=draw), labels, cameras


def refreshed(**changes):
    images, labels, cameras = epoch_of(0)
    rib = RIBLoss(CLASSES, warmup_epochs=1, **changes)
    rib.start_epoch(0)
    rib(images, labels, cameras if changes.pop("given", True) else None)
    rib.start_epoch(1)
    return rib


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_two_images_of_one_identity_and_two_cameras_differ(seed, number, identities, cameras):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, identities, (number,), generator=draw)
    seen = torch.randint(0, cameras, (number,), generator=draw)
    # An identity weighs 100, a camera 1, an image next to nothing, each in a column.
    rows = Rows(torch.stack([labels * 100.0 + seen, torch.arange(number)], 1).float(), labels, seen)
    found = between_cameras(rows, rows.pairs(), random.Random(seed))
    several = {int(y) for y in labels.unique() if len(seen[labels == y].unique()) > 1}
    if not several:
        assert found is None
        return
    assert found.shape == (number, 2)
    assert found[:, 0].abs().min() >= 1 and found[:, 0].abs().max() < cameras
    again = between_cameras(rows, rows.pairs(), random.Random(seed))
    assert torch.equal(found, again)


def test_each_image_that_another_camera_shows_is_drawn_alike():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    seen = torch.tensor([0, 0, 1, 0, 1, 1])  # the last identity has one camera
    rows = Rows(torch.eye(6).repeat(1, 1), labels, seen)
    draws = [between_cameras(rows, rows.pairs(), random.Random(i)) for i in range(400)]
    first = torch.cat(draws).clamp(min=0).sum(0) / 2400
    second = -torch.cat(draws).clamp(max=0).sum(0) / 2400
    assert torch.allclose(first, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2, 0.0]), atol=0.03)
    assert torch.allclose(second, torch.tensor([0.1, 0.1, 0.4, 0.2, 0.2, 0.0]), atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_is_the_plain_pytorch_of_its_docstring(dtype):
    rib = refreshed(camera_noise=0.8)
    embeddings = epoch_of(1)[0].to(dtype).requires_grad_()
    torch.manual_seed(3)
    found = rib.add_camera_noise(embeddings)
    torch.manual_seed(3)
    differences = rib.statistics.differences
    drawn = differences[torch.randint(len(differences), (len(embeddings),))].float()
    share = 0.8 * (1 - rib.statistics.compression)
    assert 0.1 < share <= 0.8
    lengths = embeddings.detach().float().norm(dim=1, keepdim=True)
    assert found.dtype == dtype
    assert torch.equal(found, embeddings + (share * lengths * drawn).to(dtype))
    found.sum().backward()
    assert torch.equal(embeddings.grad, torch.ones_like(embeddings))


def test_where_there_is_none():
    embeddings = epoch_of(1)[0]
    assert refreshed().add_camera_noise(embeddings) is not embeddings
    without = [
        RIBLoss(CLASSES),
        refreshed(camera_noise=0.0),
        refreshed(cross_camera=False),
        refreshed().eval(),
    ]
    later = refreshed()
    later.statistics = later.statistics._replace(compression=1.0)
    unknown = RIBLoss(CLASSES, warmup_epochs=1)
    unknown.start_epoch(0)
    unknown(*epoch_of(0)[:2])
    unknown.start_epoch(1)
    for rib in (*without, later, unknown):
        assert rib.add_camera_noise(embeddings) is embeddings
    with torch.no_grad():  # PreciseBN counts clean embeddings
        assert refreshed().add_camera_noise(embeddings) is embeddings


def test_it_is_saved_and_copied():
    rib = refreshed()
    loaded = RIBLoss(CLASSES, warmup_epochs=1)
    loaded.load_state_dict(rib.state_dict())
    other = RIBLoss(CLASSES, warmup_epochs=1, cross_camera=False)
    other.load_state_dict(rib.state_dict())
    assert other.statistics.differences is None
    embeddings, found = epoch_of(1)[0], []
    for each in (rib, loaded, copy.deepcopy(rib)):
        torch.manual_seed(7)
        found.append(each.add_camera_noise(embeddings))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_activation_checkpointing_repeats_it():
    rib, layer = refreshed(), torch.nn.Linear(DIM, 4)
    embeddings, labels, cameras = epoch_of(1)

    gradients = []
    for repeat in (False, True):
        torch.manual_seed(2)
        rows, layer.weight.grad = embeddings.clone().requires_grad_(), None
        if repeat:
            given = checkpoint(rib.add_camera_noise, rows, use_reentrant=False)
        else:
            given = rib.add_camera_noise(rows)
        F.softplus(layer(given)).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert torch.equal(*gradients)


def accuracy_on_the_other_camera(noise):
    """Of a classifier that could tell identities by the camera that saw them most."""
    images, labels, cameras = epoch_of(0)
    rib = RIBLoss(CLASSES, warmup_epochs=1, camera_noise=noise)
    torch.manual_seed(0)
    classifier = torch.nn.Linear(DIM, CLASSES)
    optimizer = torch.optim.Adam(classifier.parameters(), 0.02)
    for epoch in range(40):
        rib.start_epoch(epoch)
        for part in torch.arange(len(labels)).split(32):
            rib(images[part], labels[part], cameras[part])
            loss = F.cross_entropy(classifier(rib.add_camera_noise(images[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    rare, whose, _ = epoch_of(1, mostly=1)
    return float((classifier(rare).argmax(dim=1) == whose).float().mean())


def test_a_classifier_learns_not_to_look_at_what_cameras_change():
    assert accuracy_on_the_other_camera(1.0) > accuracy_on_the_other_camera(0.0) + 0.08
