"""Data at the edge of having no meaning, through FastReID's meta-architecture."""

import math

import pytest
import torch
from fastreid.engine import DefaultTrainer
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage

RIB = {
    "MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"),
    "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
    "MODEL.LOSSES.RIB.BETA": 20.0,
}


def train(model, images, labels, epochs=3):
    """A step an epoch; the losses of RIB and the reports of its refreshes."""
    model.train()
    losses, reports = [], []
    with EventStorage() as storage:
        for epoch in range(epochs):
            storage.epoch = epoch
            terms = model({"images": images.clone(), "targets": labels.clone()})
            model.zero_grad()
            sum(terms.values()).backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
            losses.append(terms["loss_rib"].item())
            latest = storage.latest()
            reports.append({k: v[0] for k, v in latest.items() if k.startswith("rib/")})
    return losses, reports


@pytest.fixture
def build(make_cfg):
    def build(**changes):
        torch.manual_seed(0)
        changes = {f"MODEL.{key}".replace("__", "."): value for key, value in changes.items()}
        return build_model(make_cfg({**RIB, **changes}))

    return build


def within(losses, identities):
    """Not 0, and between the best value of the bound and the worst: Q / P is at least SMOOTHING."""
    return all(-math.log(identities) <= loss <= math.log(10) and loss for loss in losses)


def pictures(n):
    return torch.rand(n, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 255


def test_one_identity_has_nothing_to_tell(build, make_cfg):
    with pytest.raises(ValueError, match="has 1: the training set has nothing to tell apart"):
        DefaultTrainer.auto_scale_hyperparams(make_cfg({**RIB, "MODEL.HEADS.NUM_CLASSES": 0}), 1)
    model = build(HEADS__NUM_CLASSES=1, LOSSES__NAME=("RIB",))
    losses, reports = train(model, pictures(8), torch.zeros(8, dtype=torch.int64))
    assert losses[0] == 0 and all(math.isfinite(loss) for loss in losses)
    assert reports[-1]["rib/mutual_information"] == pytest.approx(0, abs=1e-6)


def test_one_image_an_identity_and_more_clusters_than_embeddings(build):
    for labels, changes in (
        (torch.arange(8), {"HEADS__NUM_CLASSES": 8}),
        (torch.arange(8) // 2, {"LOSSES__RIB__NUM_CLUSTERS": 50}),
    ):
        model = build(**changes)
        losses, reports = train(model, pictures(8), labels)
        identities = len(labels.unique())
        assert within(losses[1:], identities)
        assert 0 < reports[-1]["rib/mutual_information"] <= math.log(identities) + 1e-6
        assert (
            model.rib.statistics.class_counts.tolist()[:identities]
            == [8 // identities] * identities
        )
    centroids = model.rib.statistics.centroids
    assert centroids.shape == (50, 512) and centroids.isfinite().all()


def test_an_identity_that_never_appears(build):
    model = build(HEADS__NUM_CLASSES=9)
    losses, _ = train(model, pictures(8), torch.arange(8) // 2)
    assert model.rib.statistics.class_counts.tolist() == [2, 2, 2, 2, 0, 0, 0, 0, 0]
    assert within(losses[1:], identities=4)
    # Where it does appear after all, it is compared with every cluster alike, smoothed as all are.
    rib = model.rib
    expected = 0.9 / 9 + 0.1 * rib.statistics.log_p.exp()
    assert torch.allclose(rib.statistics.log_q[7:].exp(), expected.expand(2, -1), atol=1e-4)
    assert math.isfinite(model.eval().rib(torch.randn(2, 512), torch.tensor([7, 8])).item())


def test_all_pictures_equal(build, caplog):
    model = build()
    losses, reports = train(model, pictures(1).expand(8, -1, -1, -1), torch.arange(8) // 2)
    assert all(math.isfinite(loss) for loss in losses)
    assert reports[-1]["rib/mutual_information"] == pytest.approx(0, abs=1e-3)
    assert "The embeddings lie too close together" in caplog.text
