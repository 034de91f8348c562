"""RIB at the stages of a backbone, besides the head's embedding."""

import copy
import io
import re

import pytest
import torch
from fastreid.engine.hooks import PreciseBN
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage

from fastreid_rib import RIBLoss

# From the second epoch on, so that tests need no third.
RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
STAGES = {**RIB, "MODEL.LOSSES.RIB.STAGES": ("layer2", "layer3")}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 3, 64, 32, generator=generator) * 255
    labels = torch.arange(8) // 4
    return {"images": images, "targets": labels, "camids": torch.arange(8) % 2}


def step(model, epoch, seed=0, storage=None):
    """One forward pass in training mode, as FastReID's trainer makes it."""
    model.train()
    with storage or EventStorage() as used:
        used.epoch = epoch
        return model(batch(seed))


def gradients(model):
    """Which stages of a ResNet have gradients that are not zero."""
    stages = {name: getattr(model.backbone, f"layer{name}") for name in (1, 2, 3, 4)}
    return {
        name
        for name, stage in stages.items()
        if any(p.grad is not None and p.grad.any() for p in stage.parameters())
    }


def test_each_stage_adds_a_loss_that_trains_what_leads_to_it(make_cfg):
    model = build_model(make_cfg(STAGES))
    losses = step(model, epoch=0)
    assert set(losses) == {"loss_cls", "loss_rib", "loss_rib_layer2", "loss_rib_layer3"}
    assert all(value.item() == 0 for name, value in losses.items() if "rib" in name)
    for name, reached in (
        ("loss_rib_layer2", {1, 2}),
        ("loss_rib_layer3", {1, 2, 3}),
    ):
        model.zero_grad(set_to_none=True)
        step(model, epoch=1, seed=1)[name].backward()
        assert gradients(model) == reached


def test_it_is_the_loss_of_the_pooled_map_times_both_scales(make_cfg):
    scales = {"MODEL.LOSSES.RIB.SCALE": 3.0, "MODEL.LOSSES.RIB.STAGE_SCALE": 0.25}
    model = build_model(make_cfg({**STAGES, **scales}))
    maps = []
    model.backbone.layer3[-1].register_forward_hook(lambda *args: maps.append(args[2].detach()))
    rib = RIBLoss(8, warmup_epochs=1)
    for epoch in range(3):
        loss = step(model, epoch, seed=epoch)["loss_rib_layer3"].item()
        rib.start_epoch(epoch)
        given = batch(epoch)
        alone = rib(maps[-1].mean((2, 3)), given["targets"], cameras=given["camids"])
        assert loss == pytest.approx(0.75 * alone.item(), rel=1e-5)
    assert loss != 0
    assert model.rib_stages["layer3"].camera_rows is not None, "cameras did not come"


def test_the_reports_of_stages_bear_their_names(make_cfg):
    model, storage = build_model(make_cfg(STAGES)), EventStorage()
    step(model, epoch=0)
    step(model, epoch=1, storage=storage)
    told = {name for name in storage.latest() if name.endswith("mutual_information")}
    assert told == {f"rib/{stage}mutual_information" for stage in ("", "layer2/", "layer3/")}


def test_attention_behind_a_stage_has_worked_on_the_map(make_cfg):
    changes = {"MODEL.ATTENTION.NAME": "SE", "MODEL.ATTENTION.PLACEMENT": ("layer3",)}
    model = build_model(make_cfg({**STAGES, **changes}))
    step(model, epoch=0)
    step(model, epoch=1)["loss_rib_layer3"].backward()
    attention = model.backbone.layer3[-1].attention
    assert any(p.grad is not None and p.grad.any() for p in attention.parameters())


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_a_copy_keeps_its_own_maps(make_cfg, how):
    model = build_model(make_cfg(STAGES))
    step(model, epoch=0)
    if how == "copy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    losses = step(other, epoch=1, seed=1)
    assert not any("for_rib" in vars(module) for module in model.modules())
    expected = step(model, epoch=1, seed=1)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    assert losses["loss_rib_layer2"].item() != 0


def test_statistics_of_stages_are_in_the_checkpoint(make_cfg, tmp_path, caplog):
    model = build_model(make_cfg(STAGES))
    step(model, epoch=0)
    step(model, epoch=1, seed=1)
    Checkpointer(model, str(tmp_path)).save("model")
    again = build_model(make_cfg(STAGES))
    Checkpointer(again).load(str(tmp_path / "model.pth"))
    assert again.rib_stages["layer2"].centroids is not None
    losses, expected = (step(m, epoch=2, seed=2) for m in (again, model))
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    caplog.clear()
    without = build_model(make_cfg(RIB))
    Checkpointer(without).load(str(tmp_path / "model.pth"))
    assert not re.search(r"rib_stages\.\S+.*", caplog.text), "they were told of as unexpected"


def test_what_trains_nothing_keeps_nothing(make_cfg):
    model = build_model(make_cfg(STAGES))
    step(model, epoch=0)
    before = copy.deepcopy(model.rib_stages.state_dict())
    PreciseBN(model, [dict(batch(3), targets=torch.full((8,), -1))], num_iter=1).update_stats()
    model.eval()
    with torch.no_grad():
        model(batch())
    assert not any("for_rib" in vars(module) for module in model.modules())
    after = model.rib_stages.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) and before


def test_without_stages_nothing_is_watched(make_cfg):
    model = build_model(make_cfg(RIB))
    assert not model.rib_stages and not model.rib_blocks
    assert set(step(model, epoch=0)) == {"loss_cls", "loss_rib"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"MODEL.LOSSES.RIB.STAGES": ("layer5",)}, "'layer5'.*ResNet.*has layer1, layer2, layer3"),
        (
            {
                "MODEL.LOSSES.RIB.STAGES": ("layer1",),
                "MODEL.META_ARCHITECTURE": "MGN",
                "MODEL.BACKBONE.DEPTH": "50x",
            },
            r"'layer1'.*MGN.*It has none: write \(\)",
        ),
        ({"MODEL.LOSSES.RIB.STAGES": ("layer1", "layer1")}, "STAGES must be a tuple of stages"),
        ({"MODEL.LOSSES.RIB.STAGE_SCALE": 0.0}, r"STAGE_SCALE must be > 0 \(.*STAGES \(\)"),
    ],
)
def test_stages_that_are_not_there(make_cfg, changes, told):
    with pytest.raises(ValueError, match=told):
        build_model(make_cfg({**RIB, **changes}))


def test_a_backbone_that_did_not_run_on_the_batch(make_cfg):
    model = build_model(make_cfg(STAGES)).train()
    features = model.backbone(batch()["images"])
    outputs = model.heads(features, batch()["targets"])
    with EventStorage() as storage, pytest.raises(RuntimeError, match=r"8 rows for a batch of 4"):
        storage.epoch = 0
        half = {name: output[:4] for name, output in outputs.items()}
        model.losses(half, batch()["targets"][:4])
