"""RIB in FastReID's own meta-architectures and in those of other projects."""

import copy
import gc
import weakref

import pytest
import torch
from fastreid.engine.hooks import PreciseBN
from fastreid.modeling import META_ARCH_REGISTRY, build_model
from fastreid.modeling.meta_arch import MGN, Baseline, Distiller, MoCo
from fastreid.utils.events import EventStorage

from fastreid_rib.integration.rib.meta_arch import with_rib
from fastreid_rib.ops import native, proof

# From the second epoch on, so that tests need no third.
SOON = {"MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), **SOON}


def batch(seed=0, size=8):
    """Images in FastReID's range, large enough for MGN, and pairs of four identities."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 96, 32, generator=generator) * 255
    return {"images": images, "targets": torch.arange(size) // 2}


def step(model, epoch, seed=0, storage=None):
    """One forward pass in training mode, as FastReID's trainer makes it."""
    model.train()
    with storage or EventStorage() as used:
        used.epoch = epoch
        return model(batch(seed))


@pytest.mark.parametrize("architecture", [Baseline, MoCo])
def test_loss_rib_joins_the_losses(make_small_cfg, architecture):
    name = architecture.__name__
    model = build_model(make_small_cfg({**RIB, "MODEL.META_ARCHITECTURE": name}))
    assert isinstance(model, architecture) and type(model).__name__ == name
    losses = step(model, epoch=0)
    stock = {"loss_cls"} | ({"loss_mb"} if name == "MoCo" else set())
    assert set(losses) == stock | {"loss_rib"}
    assert losses["loss_rib"].item() == 0.0 and losses["loss_rib"].requires_grad
    storage = EventStorage()
    losses = step(model, epoch=1, seed=1, storage=storage)
    assert set(losses) == stock | {"loss_rib"}, "the report is in the objective"
    reported = {name for name in storage.latest() if name.startswith("rib/")}
    assert {"rib/mutual_information", "rib/klb", "rib/bound"} <= reported
    assert losses["loss_rib"].item() != 0
    losses["loss_rib"].backward()
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)


def test_scale_multiplies_the_bound(make_small_cfg):
    values = []
    for scale in (1.0, 2.5):
        torch.manual_seed(0)
        model = build_model(make_small_cfg({**RIB, "MODEL.LOSSES.RIB.SCALE": scale}))
        step(model, epoch=0)
        values.append(step(model, epoch=1)["loss_rib"].item())
    assert values[1] == pytest.approx(2.5 * values[0], rel=1e-5)


def test_a_backend_that_cannot_work_is_told_when_the_model_is_built(make_small_cfg, monkeypatch):
    with pytest.raises(ValueError, match="backend 'cuda' works on cuda tensors"):
        build_model(make_small_cfg({**RIB, "MODEL.LOSSES.RIB.BACKEND": "cuda"}))

    def require(kind, device):
        raise native.Unavailable("the cpu kernels are not built; build them")

    monkeypatch.setattr(proof, "require", require)
    with pytest.raises(native.Unavailable, match="build them"):
        build_model(make_small_cfg({**RIB, "MODEL.LOSSES.RIB.BACKEND": "cpu"}))


def test_rib_alone_trains_and_the_config_is_left_as_written(make_small_cfg):
    cfg = make_small_cfg({"MODEL.LOSSES.NAME": ("RIB",)})
    cfg.freeze()
    losses = step(build_model(cfg), epoch=0)
    assert list(losses) == ["loss_rib"] and cfg.MODEL.LOSSES.NAME == ("RIB",)
    sum(losses.values()).backward()


def test_a_config_without_rib_gets_fastreid_s_own_class(make_small_cfg):
    model = build_model(make_small_cfg({"MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet")}))
    assert type(model) is Baseline
    assert not [key for key in model.state_dict() if "rib" in key]
    assert set(step(model, epoch=1)) == {"loss_cls", "loss_triplet"}


def test_mgn_uses_the_embedding_that_it_retrieves_with(make_small_cfg):
    changes = {
        "MODEL.META_ARCHITECTURE": "MGN",
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.DEPTH": "50x",
        "MODEL.BACKBONE.FEAT_DIM": 2048,
        "MODEL.HEADS.EMBEDDING_DIM": 16,
        "MODEL.HEADS.NECK_FEAT": "after",
    }
    model = build_model(make_small_cfg({**RIB, **changes}))
    assert isinstance(model, MGN)
    assert step(model, epoch=0)["loss_rib"].item() == 0.0
    losses = step(model, epoch=1)
    assert losses["loss_rib"].item() != 0 and len(losses) == 9
    model.eval()
    with torch.no_grad():
        retrieved = model(batch())
    assert model.rib.statistics.centroids.shape == (8, retrieved.shape[1]) == (8, 128)
    losses["loss_rib"].backward()
    for branch in (model.b1, model.b2, model.b3):
        assert all(p.grad is not None for p in branch.parameters())


def test_distiller_student_takes_rib(make_small_cfg, distill):
    model = build_model(make_small_cfg({**RIB, **distill(RIB)}))
    assert isinstance(model, Distiller)
    step(model, epoch=0)
    losses = step(model, epoch=1)
    assert set(losses) == {"loss_cls", "loss_jsdiv", "loss_rib"}
    assert losses["loss_rib"].item() != 0
    assert all(not teacher.rib.state_dict() for teacher in model.model_ts), (
        "teachers keep statistics"
    )


def test_passes_without_gradient_do_not_enter(make_small_cfg):
    model = build_model(make_small_cfg(RIB))
    step(model, epoch=0)
    step(model, epoch=1)
    with torch.no_grad(), EventStorage():
        assert model(batch())["loss_rib"].item() == 0.0
    statistics = copy.deepcopy(model.rib.state_dict())
    norm = next(m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    running = norm.running_mean.clone()
    # FastReID runs it over another data set, whose labels it marks by negative ones.
    other = [dict(batch(seed), targets=torch.full((8,), -1)) for seed in (3, 4)]
    PreciseBN(model, other, num_iter=2).update_stats()
    assert not torch.equal(norm.running_mean, running), "it did not run"
    after = model.rib.state_dict()
    assert statistics.keys() == after.keys() and statistics
    assert all(torch.equal(statistics[key], after[key]) for key in after)


def test_evaluation_without_the_number_of_classes_builds_no_statistics(make_small_cfg):
    model = build_model(make_small_cfg({**RIB, "MODEL.HEADS.NUM_CLASSES": 0}))
    assert model.rib is None
    model.eval()
    with torch.no_grad():
        assert model(batch()).shape == (8, 128)


def test_a_loop_without_epochs_is_told_what_to_do(make_small_cfg):
    model = build_model(make_small_cfg(RIB)).train()
    with EventStorage(), pytest.raises(RuntimeError, match="start_epoch"):
        model(batch())
    model.rib.start_epoch(0)
    with EventStorage():
        assert "loss_rib" in model(batch())


class DeafArchitecture(Baseline):
    """A project's architecture whose training step calls no `losses`."""

    def forward(self, batched_inputs):
        return {"loss_own": super().forward(batched_inputs)["loss_cls"]}


class DoubledArchitecture(Baseline):
    """Trains on each batch twice at once."""

    def forward(self, batched_inputs):
        twice = {name: torch.cat([part, part]) for name, part in batched_inputs.items()}
        return super().forward({**twice, "camids": batched_inputs["camids"]})


class MaskedArchitecture(Baseline):
    """A project's architecture with a term of its own on top of Baseline's losses."""

    def losses(self, outputs, gt_labels):
        loss_dict = super().losses(outputs, gt_labels)
        loss_dict["loss_own"] = outputs["features"].mean()
        return loss_dict


OTHERS = {
    kind.__name__: kind for kind in (DeafArchitecture, DoubledArchitecture, MaskedArchitecture)
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, architecture in OTHERS.items():
        monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, name, architecture)


def test_other_projects_architectures(make_small_cfg):
    names = {"MODEL.LOSSES.NAME": ("CrossEntropyLoss", "RIB")}
    model = build_model(make_small_cfg({**names, "MODEL.META_ARCHITECTURE": "MaskedArchitecture"}))
    assert set(step(model, epoch=0)) == {"loss_cls", "loss_own", "loss_rib"}
    model = build_model(make_small_cfg({**names, "MODEL.META_ARCHITECTURE": "DeafArchitecture"}))
    with pytest.raises(RuntimeError, match="DeafArchitecture never gives it an embedding"):
        step(model, epoch=0)


def test_an_architecture_that_is_no_class(make_small_cfg, monkeypatch):
    def function_architecture(cfg):
        return torch.nn.Identity()

    name = "function_architecture"
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, name, function_architecture)
    cfg = make_small_cfg({**RIB, "MODEL.META_ARCHITECTURE": name})
    with pytest.raises(TypeError, match=name):
        build_model(cfg)
    cfg.MODEL.LOSSES.NAME = ("Anything",)
    assert isinstance(build_model(cfg), torch.nn.Identity)


def test_cameras_come_with_the_batch(make_small_cfg):
    two, doubled = torch.arange(8) % 2, {"MODEL.META_ARCHITECTURE": "DoubledArchitecture"}
    for changes, cameras, crossed in (
        ({}, two, True),
        ({"MODEL.LOSSES.RIB.CROSS_CAMERA": False}, two, False),
        ({}, None, False),
        ({}, torch.zeros(8).long(), False),
        ({}, ["a"] * 8, False),
        ({}, torch.arange(4), False),
        (doubled, two, False),  # which puts another batch together
    ):
        model = build_model(make_small_cfg({**RIB, **changes})).train()
        images = dict(batch(), targets=torch.arange(8) // 4)
        if cameras is not None:
            images["camids"] = cameras
        for epoch in range(3):
            with EventStorage() as storage:
                storage.epoch = epoch
                losses = model(dict(images, images=images["images"].clone()))
            assert torch.isfinite(losses["loss_rib"])
        assert (model.rib.statistics.camera_rows is not None) == crossed, (changes, cameras)
        assert model._rib_cameras is None


def test_an_architecture_has_one_class_with_rib_that_goes_with_it():
    """In a notebook the same cell may define it again and again."""

    class Mine(Baseline):
        pass

    assert with_rib(Mine) is with_rib(Mine) is not with_rib(Baseline)
    kept = weakref.ref(Mine)
    del Mine
    gc.collect()
    assert kept() is None
