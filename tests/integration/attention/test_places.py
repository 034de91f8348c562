"""Attention at its places: blocks of a ViT, branches of MGN, heads; how it starts, what learns."""

import logging

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import MGN
from fastreid.utils.events import EventStorage
from placed import (
    GROUPS,
    LAYERS,
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

from fastreid_rib.attention import DCSMask
from fastreid_rib.integration.attention import places

ALL_ONLY = pytest.mark.all_only
R50 = {"MODEL.BACKBONE.DEPTH": "50x", "MODEL.BACKBONE.FEAT_DIM": 2048}


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


@pytest.mark.parametrize(
    "changes, part",
    [
        (chosen(("osnet", "x0_25")), "gate.fc1"),
        pytest.param({"MODEL.BACKBONE.WITH_SE": True}, "se.fc", marks=ALL_ONLY),
        pytest.param({**R50, "MODEL.BACKBONE.WITH_NL": True}, "NL_3", marks=ALL_ONLY),
        pytest.param(chosen(("resnest", "50x")), "conv2.fc1", marks=ALL_ONLY),
    ],
)
def test_fastreid_s_own_attention_with_rib(make_cfg, changes, part):
    model = build_model(make_cfg({**WITH_RIB, "MODEL.LOSSES.NAME": ("RIB",), **changes}))
    own = [p for name, p in model.named_parameters() if f".{part}" in name]
    assert own
    for epoch in train(model):
        # In the second epoch the loss is RIB's alone, and it reaches that attention.
        reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in own]
        assert any(reached) == (epoch == 1)


def test_every_attention(make_cfg):
    for name in ("SelfAttention", "SE", "ECA", "CBAM"):
        cfg = make_cfg({**GROUPS, **WITH_RIB, **attend("layer3", "head", name=name)})
        model = build_model(cfg)
        assert list(attentions(model)) == ["backbone.layer3.1.attention", "heads.attention"]
        check(model, cfg)


def test_settings_that_do_not_fit_a_place(make_cfg):
    with pytest.raises(ValueError, match="64 channels of 'layer1'.*width"):
        build_model(make_cfg(attend("layer1", WIDTH=65)))
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


def test_each_attention_has_an_initialisation_of_its_own(make_cfg):
    model = build_model(make_cfg({**MGN_R50, **attend("layer4")}))
    first, second, third = (module.reduce.weight for module in attentions(model).values())
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.filterwarnings("ignore:.broadcast_buffers")  # as FastReID writes it
def test_distributed_without_find_unused_parameters(make_cfg):
    cfg = make_cfg({**attend(*LAYERS, "head"), **WITH_RIB})
    model = build_model(cfg)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        assert list(train(parallel, epochs=3)) == [0, 1, 2]
        model.heads.register_parameter("idle", nn.Parameter(torch.zeros(1)))
        idle = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        with pytest.raises(RuntimeError, match="finished reduction"):
            list(train(idle))
    finally:
        torch.distributed.destroy_process_group()


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
