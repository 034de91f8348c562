"""Attention at its places: stages, blocks of a ViT, branches of MGN, heads; what learns."""

import logging
from pathlib import Path

import fastreid
import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import MGN
from fastreid.utils.events import EventStorage
from placed import (
    BACKBONES,
    GROUPS,
    MGN_R50,
    VIT,
    WITH_RIB,
    attend,
    attentions,
    batch,
    check,
    check_keys,
    chosen,
    embed,
    train,
)
from torch import nn

from fastreid_rib.attention import ATTENTIONS, DCSAttention, DCSMask
from fastreid_rib.integration.attention import places


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
    backbone = build_backbone(make_cfg(chosen(("mobilenetv2", "1.0x"))))
    stages = places.find_stages(backbone, torch.device("cpu"))
    at = {name: list(backbone.features).index(block) for name, (block, _) in stages.items()}
    assert at == {"stage1": 1, "stage2": 3, "stage3": 6, "stage4": 13, "stage5": 17}
    assert backbone.training and not backbone.features[1]._forward_hooks
    assert backbone.features[0][1].num_batches_tracked == 0, "tried out in training mode"


def test_one_place_alone(make_cfg, heard):
    said = heard(logging.getLogger(places.__name__))
    for place, name in (("layer1", "backbone.layer1.1.attention"), ("head", "heads.attention")):
        assert list(attentions(build_model(make_cfg(attend(place))))) == [name]
        assert said()[-1] == f"Attention DCS: {name}"
    assert not attentions(build_model(make_cfg(attend("layer1", name=""))))


def test_a_wrong_place_lists_those_there_are(make_cfg):
    with pytest.raises(ValueError, match=r"'layer5'.*ResNet.*head, layer1, layer2, layer3, layer4"):
        build_model(make_cfg(attend("head", "layer5")))
    with pytest.raises(ValueError, match=r"'layer3'.*OSNet.*It has head, conv2, conv3, conv4\."):
        build_model(make_cfg({**chosen(("osnet", "x0_25")), **attend("layer3")}))
    with pytest.raises(ValueError, match=r"'conv2'.*MGN.*layer1, layer2, layer3, layer4, head"):
        build_model(make_cfg({**MGN_R50, **attend("conv2")}))


def test_distiller_and_its_moving_average(make_cfg, distill):
    changes = {**distill(attend("layer2", name="SE")), "KD.EMA.MOMENTUM": 0.5}
    cfg = make_cfg({**changes, **attend("layer3", "head"), **WITH_RIB, **GROUPS})
    model = build_model(cfg)
    average, teacher = model.model_ts
    assert list(attentions(teacher)) == ["backbone.layer2.1.attention"]
    ours, theirs = (attentions(m)["heads.attention"] for m in (model, average))
    assert ours is not theirs
    assert torch.equal(ours.reduce.weight, theirs.reduce.weight), "another initial state"
    with torch.no_grad():
        start = ours.project.bias.clone()
        ours.project.bias.add_(1.0)
    for _ in train(model, epochs=1):
        pass
    assert torch.allclose(theirs.project.bias, start + 0.5)


class HalfArchitecture(nn.Module):
    """A project's architecture that leaves out the end of the backbone."""

    def __init__(self, cfg):
        super().__init__()
        backbone = build_backbone(cfg)
        self.backbone = nn.Sequential(backbone.conv1, backbone.layer1, backbone.layer2)


def test_an_architecture_that_drops_an_attention(make_cfg):
    assert list(
        attentions(places.build_with_attention(HalfArchitecture, make_cfg(attend("layer2"))))
    ) == ["backbone.2.1.attention"]
    with pytest.raises(ValueError, match="HalfArchitecture holds attention at .*backbone.2.1"):
        places.build_with_attention(HalfArchitecture, make_cfg(attend("layer2", "layer4")))


def test_every_attention(make_cfg):
    for name in ("SelfAttention", "SE", "ECA", "CBAM"):
        cfg = make_cfg({**GROUPS, **WITH_RIB, **attend("layer3", "head", name=name)})
        model = build_model(cfg)
        assert list(attentions(model)) == ["backbone.layer3.1.attention", "heads.attention"]
        check(model, cfg)


def test_settings_that_do_not_fit_a_place(make_cfg):
    with pytest.raises(ValueError, match="512 channels of 'head'.*width must be in 0..512"):
        build_model(make_cfg(attend("head", WIDTH=513)))


def test_seeded_models_start_alike_with_and_without_attention(make_cfg):
    for plain, attention in (
        ({}, attend("layer2", "layer3", "head")),
        (VIT, attend("blocks", MASK_BIAS=1.0)),
    ):
        states = []
        for changes in (plain, {**plain, **attention}):
            torch.manual_seed(3)
            states.append(build_model(make_cfg(changes)).state_dict())
        stock, ours = states
        assert all(torch.equal(ours[key], value) for key, value in stock.items())


def test_a_head_is_the_placement_under_another_name(make_small_cfg):
    for head, name, changes in (
        ("DCSHead", "DCS", {"MODEL.ATTENTION.WIDTH": 8}),
        ("ChannelAttentionHead", "SE", {}),
        ("ChannelAttentionHead", "ECA", {"MODEL.ATTENTION.CHANNEL": "ECA"}),
    ):
        states = []
        for keys in ({"MODEL.HEADS.NAME": head}, {"MODEL.ATTENTION.NAME": name}):
            torch.manual_seed(0)
            model = build_model(make_small_cfg({**changes, **keys}))
            assert type(model.heads.attention) is ATTENTIONS[name]
            states.append(model.state_dict())
        assert list(states[0]) == list(states[1])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_mgn_by_the_name_of_its_head_has_one_a_branch_with_a_start_of_its_own(make_cfg):
    cfg = make_cfg({**MGN_R50, "MODEL.ATTENTION.WIDTH": 8, "MODEL.HEADS.NAME": "DCSHead"})
    placed = attentions(build_model(cfg))
    assert list(placed) == ["b1.attention", "b2.attention", "b3.attention"]
    first, second, third = (module.reduce.weight for module in placed.values())
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert cfg.MODEL.HEADS.NAME == "DCSHead", "the config was changed"


def test_mgn_gets_one_for_each_branch(make_cfg):
    places = ("layer2", "layer3", "layer4", "head")
    plain = {**MGN_R50, **GROUPS, **WITH_RIB}
    stock = build_model(make_cfg(plain))
    cfg = make_cfg({**plain, **attend(*places)})
    model = build_model(cfg)
    assert isinstance(model, MGN)
    branches = [f"b{i}.{end}.attention" for i in (1, 2, 3) for end in ("0.4", "1.2")]
    heads = [f"b{i}.attention" for i in (1, 2, 3)]
    assert set(attentions(model)) == {"backbone.5.3.attention", *branches, *heads}
    check_keys(model, stock)
    assert torch.equal(embed(model, height=96), embed(stock, height=96))
    check(model, cfg, height=96)


def test_vit_masks_queries_and_keys_in_every_block(make_cfg):
    plain = {**VIT, **GROUPS, **WITH_RIB}
    stock = build_model(make_cfg(plain))
    cfg = make_cfg({**plain, **attend("blocks", MASK_BIAS=0.5, TEMPERATURE=2.0)})
    model = build_model(cfg)
    placed = attentions(model)
    assert list(placed) == [f"backbone.blocks.{i}.attn.qkv.attention" for i in range(8)]
    for mask in placed.values():
        assert type(mask) is DCSMask and mask.temperature == 2.0
        assert mask.logits.bias.mean().item() == pytest.approx(0.5)
    check_keys(model, stock)
    assert torch.equal(embed(model), embed(stock)), "a mask that keeps all changes something"
    projection = model.backbone.blocks[2].attn.qkv
    tokens = torch.rand(2, 5, 768)
    with torch.no_grad():
        whole = stock.backbone.blocks[2].attn.qkv(tokens).chunk(3, dim=-1)
        projection.attention.logits.bias[:10] = -1.0
        masked = projection(tokens).chunk(3, dim=-1)
    for i in (0, 1):
        assert torch.equal(masked[i][..., :10], torch.zeros(2, 5, 10))
        assert torch.equal(masked[i][..., 10:], whole[i][..., 10:])
    assert torch.equal(masked[2], whole[2]), "values are masked"
    check(model, cfg)


def test_vit_has_no_map(make_cfg):
    for changes, message in (
        (attend("head"), r"class token.*\(\"blocks\",\)"),
        ({"MODEL.HEADS.NAME": "ChannelAttentionHead"}, r"class token.*\(\"blocks\",\)"),
        (attend("layer3"), "'layer3'.*VisionTransformer.*It has blocks"),
        (attend("blocks", name="SE"), "SE is for maps"),
        (attend("blocks", MASK_BIAS=0.0), "MASK_BIAS is 0, .*VisionTransformer would start"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(make_cfg({**VIT, **changes}))


def test_the_temperature_follows_the_epochs(make_cfg):
    # RIB is not in the loss: the attention needs no more than FastReID's trainer.
    changes = attend("layer3", "head", TEMPERATURE=4.0, FINAL_TEMPERATURE=1.0)
    model = build_model(make_cfg({**changes, "SOLVER.MAX_EPOCH": 3}))
    masks = [module.mask for module in attentions(model).values()]
    seen = []
    for _ in train(model, epochs=4):
        seen.append([mask.temperature for mask in masks])
    # Geometrically from the first epoch to the last; a trainer that goes on stays there.
    expected = [[4.0, 4.0], [2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]
    assert torch.allclose(torch.tensor(seen), torch.tensor(expected))
    embed(model)  # needs no event storage
    with EventStorage():  # as PreciseBN's, which knows no epoch
        model.train()(batch())
    assert masks[0].temperature == pytest.approx(1.0)
