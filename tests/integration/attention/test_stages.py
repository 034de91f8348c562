"""Attention after the stages of every backbone of FastReID."""

from pathlib import Path

import fastreid
import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone
from placed import BACKBONES, GROUPS, WITH_RIB, attend, attentions, check, check_keys, chosen, embed

from fastreid_rib.attention import DCSAttention
from fastreid_rib.integration.attention.stages import find_stages


@pytest.fixture
def regnet_files(monkeypatch):
    # RegNet and EfficientNet look for their settings relative to the working directory.
    monkeypatch.chdir(Path(fastreid.__file__).parents[1])


# One that has layers, one that has its own names, one that has features. FastReID does not change.
SOME = (("resnet", "18x"), ("osnet", "x0_25"), ("mobilenetv2", "1.0x"))
OTHERS = [pytest.param(one, marks=pytest.mark.all_only) for one in BACKBONES if one not in SOME]


@pytest.mark.parametrize("backbone", [*SOME, *OTHERS], ids="-".join)
def test_every_stage_and_the_head_of_every_backbone(make_cfg, regnet_files, backbone):
    channels, stages = BACKBONES[backbone]
    # Half of them with RIB in the loss.
    loss = WITH_RIB if list(BACKBONES).index(backbone) % 2 else {}
    plain = {**chosen(backbone), **GROUPS, **loss}
    stock = build_model(make_cfg(plain))
    cfg = make_cfg({**plain, **attend(*stages, "head")})
    model = build_model(cfg)
    placed = attentions(model)
    assert all(type(module) is DCSAttention for module in placed.values())
    assert [m.channels for m in placed.values()] == [*stages.values(), channels]
    assert list(placed)[-1] == "heads.attention"
    check_keys(model, stock)
    assert torch.equal(embed(model), embed(stock)), "not the stock model at the first step"
    check(model, cfg)


def test_stages_end_where_the_map_changes_its_size(make_cfg):
    changes = {"MODEL.BACKBONE.NAME": "build_mobilenetv2_backbone", "MODEL.BACKBONE.DEPTH": "1.0x"}
    backbone = build_backbone(make_cfg(changes))
    stages = find_stages(backbone, torch.device("cpu"))
    at = {name: list(backbone.features).index(stage.block) for name, stage in stages.items()}
    assert at == {"stage1": 1, "stage2": 3, "stage3": 6, "stage4": 13, "stage5": 17}
    assert backbone.training and not backbone.features[1]._forward_hooks
    assert backbone.features[0][1].num_batches_tracked == 0, "tried out in training mode"
