"""Attention in every backbone of FastReID: where it stands, and that it trains with its model."""

import contextlib
import copy
import functools
from pathlib import Path

import fastreid
import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import MGN
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage
from torch import nn

from fastreid_rib.attention import DCSAttention, DCSMask
from fastreid_rib.integration.modeling import placement

LAYERS = ("layer1", "layer2", "layer3", "layer4")
BACKBONES = {
    # Builder and depth: channels at the head, stages and their channels (from FastReID's sources).
    ("resnet", "18x"): (512, dict(zip(LAYERS, (64, 128, 256, 512)))),
    ("resnext", "50x"): (2048, dict(zip(LAYERS, (256, 512, 1024, 2048)))),
    ("resnest", "50x"): (2048, dict(zip(LAYERS, (256, 512, 1024, 2048)))),
    ("osnet", "x0_25"): (128, {"conv2": 64, "conv3": 96, "conv4": 128}),
    ("regnet", "200x"): (368, {"s1": 24, "s2": 56, "s3": 152, "s4": 368}),
    ("effnet", "b0"): (
        1280,
        {"s1": 16, "s2": 24, "s3": 40, "s4": 80, "s5": 112, "s6": 192, "s7": 320},
    ),
    ("repvgg", "A0"): (1280, {"stage1": 48, "stage2": 96, "stage3": 192, "stage4": 1280}),
    ("mobilenetv2", "1.0x"): (
        1280,
        {"stage1": 16, "stage2": 24, "stage3": 32, "stage4": 96, "stage5": 320},
    ),
    ("mobilenetv3", "Small"): (
        1024,
        {"stage1": 16, "stage2": 16, "stage3": 24, "stage4": 48, "stage5": 576},
    ),
    ("shufflenetv2", "0.5x"): (1024, {"stage1": 48, "stage2": 96, "stage3": 192}),
}
GROUPS = {
    "SOLVER.OPT": "SGD",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.HEADS_LR_FACTOR": 10.0,
    "SOLVER.BIAS_LR_FACTOR": 2.0,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "SOLVER.WEIGHT_DECAY_BIAS": 1e-4,
}
WITH_RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
VIT = {
    "MODEL.BACKBONE.NAME": "build_vit_backbone",
    "MODEL.BACKBONE.DEPTH": "small",
    "MODEL.BACKBONE.FEAT_DIM": 768,
}
MGN_R50 = {
    "MODEL.META_ARCHITECTURE": "MGN",
    "MODEL.BACKBONE.DEPTH": "50x",
    "MODEL.BACKBONE.FEAT_DIM": 2048,
    "MODEL.HEADS.EMBEDDING_DIM": 16,
}


def attend(*places, name="DCS", **settings):
    """The keys for an attention, narrow so that tests are fast."""
    keys = {"NAME": name, "PLACEMENT": places, "WIDTH": 8, "REDUCTION": 4, "LR_FACTOR": 3.0}
    keys.update(settings)
    return {f"MODEL.ATTENTION.{key}": value for key, value in keys.items()}


def chosen(backbone):
    name, depth = backbone
    return {
        "MODEL.BACKBONE.NAME": f"build_{name}_backbone",
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.FEAT_DIM": BACKBONES[backbone][0],
    }


def batch(size=4, height=64):
    images = torch.rand(size, 3, height, 32, generator=torch.Generator().manual_seed(0)) * 255
    return {"images": images, "targets": torch.arange(size) // 2}


def train(model, optimizer=None, epochs=2, **shape):
    """Makes one step an epoch, as FastReID's trainer does; yields the epoch after each."""
    model.train()
    for epoch in range(epochs):
        with EventStorage() as storage:
            storage.epoch = epoch
            losses = model(batch(**shape))
        model.zero_grad()
        sum(losses.values()).backward()
        if optimizer is not None:
            optimizer.step()
        yield epoch


def embed(model, **shape):
    model.eval()
    with torch.no_grad():
        return model(batch(**shape))


def attentions(model):
    """Names and modules of the attentions of a model."""
    return {name: m for name, m in model.named_modules() if name.endswith("attention")}


@contextlib.contextmanager
def counting(model):
    """How often each attention of a model runs, by name."""
    placed = attentions(model)
    runs = dict.fromkeys(placed, 0)

    def count(name, module, args, output):
        runs[name] += 1

    hooks = [m.register_forward_hook(functools.partial(count, n)) for n, m in placed.items()]
    yield runs
    for hook in hooks:
        hook.remove()


def check(model, cfg, **shape):
    """What must hold for every attention of a model, wherever it stands."""
    placed = attentions(model)
    owned = {id(p): name for name, p in model.named_parameters()}
    assert len({id(module) for module in placed.values()}) == len(placed)
    optimizer, _ = build_optimizer(cfg, model, contiguous=False)
    group_of = {id(group["params"][0]): group for group in optimizer.param_groups}
    with counting(model) as runs:
        for epoch in train(model, optimizer, **shape):
            assert runs == dict.fromkeys(placed, epoch + 1)
            check_gradients(placed)
    stem = group_of[id(next(p for n, p in model.named_parameters() if n.startswith("backbone.")))]
    assert stem["lr"] == 0.01, "what is no attention"
    for name, module in placed.items():
        for key, parameter in module.named_parameters():
            assert owned[id(parameter)] == f"{name}.{key}"
            group = group_of[id(parameter)]
            bias = key.endswith("bias")
            rate = 3 * 0.01 * (2 if bias else 1) * (10 if name.startswith("heads.") else 1)
            assert group["lr"] == pytest.approx(rate), name
            assert group["weight_decay"] == (1e-4 if bias else 5e-4), name
    twin = copy.deepcopy(model)
    with counting(model) as runs, counting(twin) as runs_of_twin:
        embed(twin, **shape)
    assert runs == dict.fromkeys(placed, 0), "the copy runs the original's attention"
    assert runs_of_twin == dict.fromkeys(placed, 1)
    before = embed(model, **shape)
    with torch.no_grad():
        for module in attentions(twin).values():
            for parameter in module.parameters():
                parameter.normal_()
    assert torch.equal(embed(model, **shape), before), "the copy shares its attention"
    assert not torch.equal(embed(twin, **shape), before)


def check_gradients(placed):
    """DDP without find_unused_parameters asks for a gradient of each parameter in every step."""
    for name, module in placed.items():
        gradients = [parameter.grad for parameter in module.parameters()]
        assert gradients and all(g is not None and torch.isfinite(g).all() for g in gradients), name
        assert any(g.abs().sum() > 0 for g in gradients), name


def check_keys(model, stock):
    """Stock checkpoints load into the model with attention, and its checkpoints into stock."""
    ours, theirs = model.state_dict(), stock.state_dict()
    own = {key for key in ours if ".attention." in key}
    assert own and ours.keys() - own == theirs.keys()
    assert [key for key in ours if key not in own] == list(theirs), "another order"
    loaded = model.load_state_dict(theirs, strict=False)
    # Of a norm's counter torch itself says nothing: checkpoints of old have none.
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    assert set(loaded.missing_keys) | counters == own and not loaded.unexpected_keys
    loaded = stock.load_state_dict(ours, strict=False)
    assert set(loaded.unexpected_keys) == own and not loaded.missing_keys


@pytest.fixture
def regnet_files(monkeypatch):
    # RegNet and EfficientNet look for their settings relative to the working directory.
    monkeypatch.chdir(Path(fastreid.__file__).parents[1])


@pytest.mark.parametrize("backbone", BACKBONES, ids="-".join)
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


@pytest.mark.parametrize("name", ["SelfAttention", "SE", "ECA", "CBAM", "CAM"])
def test_every_attention(make_cfg, name):
    cfg = make_cfg({**GROUPS, **WITH_RIB, **attend("layer3", "head", name=name)})
    model = build_model(cfg)
    assert list(attentions(model)) == ["backbone.layer3.1.attention", "heads.attention"]
    check(model, cfg)


@pytest.mark.parametrize("name", ["DCS", "SelfAttention"])
@pytest.mark.parametrize("matrices", [{"RANK": 4}, {"GROUPS": 8}], ids=str)
def test_all_channels_with_fewer_weights(make_cfg, name, matrices):
    settings = {"WIDTH": 0, "DEPTHWISE": True, **matrices}
    cfg = make_cfg({**GROUPS, **WITH_RIB, **attend("layer3", "head", name=name, **settings)})
    plain = {**GROUPS, **WITH_RIB}
    model, stock = build_model(cfg), build_model(make_cfg(plain))
    check_keys(model, stock)
    assert torch.equal(embed(model), embed(stock)), "not the stock model at the first step"
    fewer = 2 * 4 * 512 if "RANK" in matrices else 512**2 // 8
    attention = attentions(model)["heads.attention"]
    sizes = {n: p.numel() for n, p in attention.named_parameters() if n.endswith("weight")}
    layers = 2 if name == "DCS" else 1
    assert attention.width == 512
    assert sum(sizes.values()) == layers * fewer + 9 * 512
    check(model, cfg)


def test_one_place_alone(make_cfg):
    for place, name in (("layer1", "backbone.layer1.1.attention"), ("head", "heads.attention")):
        assert list(attentions(build_model(make_cfg(attend(place))))) == [name]
    assert not attentions(build_model(make_cfg(attend("layer1", name=""))))


def test_stages_end_where_the_map_changes_its_size(make_cfg):
    changes = {"MODEL.BACKBONE.NAME": "build_mobilenetv2_backbone", "MODEL.BACKBONE.DEPTH": "1.0x"}
    backbone = build_backbone(make_cfg(changes))
    stages = placement.find_stages(backbone, torch.device("cpu"))
    at = {name: list(backbone.features).index(stage.block) for name, stage in stages.items()}
    assert at == {"stage1": 1, "stage2": 3, "stage3": 6, "stage4": 13, "stage5": 17}
    assert backbone.training and not backbone.features[1]._forward_hooks
    assert backbone.features[0][1].num_batches_tracked == 0, "tried out in training mode"


def test_a_wrong_place_lists_those_there_are(make_cfg):
    with pytest.raises(ValueError, match=r"'layer5'.*ResNet.*head, layer1, layer2, layer3, layer4"):
        build_model(make_cfg(attend("head", "layer5")))
    with pytest.raises(ValueError, match=r"'layer3'.*OSNet.*It has head, conv2, conv3, conv4\."):
        build_model(make_cfg({**chosen(("osnet", "x0_25")), **attend("layer3")}))
    with pytest.raises(ValueError, match=r"'conv2'.*MGN.*layer1, layer2, layer3, layer4, head"):
        build_model(make_cfg({**MGN_R50, **attend("conv2")}))


def test_settings_that_do_not_fit_a_place(make_cfg):
    with pytest.raises(ValueError, match="64 channels of 'layer1'.*width"):
        build_model(make_cfg(attend("layer1", WIDTH=65)))
    with pytest.raises(ValueError, match=r"64 channels of 'layer1'.*rank must be in 0\.\.8"):
        build_model(make_cfg(attend("layer1", RANK=9)))
    with pytest.raises(ValueError, match="512 channels of 'head'.*groups must divide the 512"):
        build_model(make_cfg(attend("head", WIDTH=0, GROUPS=3)))
    with pytest.raises(ValueError, match="768 channels of 'blocks'.*groups must divide the 768"):
        build_model(make_cfg({**VIT, **attend("blocks", MASK_BIAS=1.0, GROUPS=5)}))


@pytest.mark.parametrize(
    "plain, attention",
    [({}, attend("layer2", "layer3", "head")), (VIT, attend("blocks", MASK_BIAS=1.0))],
)
def test_seeded_models_start_alike_with_and_without_attention(make_cfg, plain, attention):
    stock, ours = [], []
    for changes, states in ((plain, stock), ({**plain, **attention}, ours)):
        torch.manual_seed(3)
        states.append(build_model(make_cfg(changes)).state_dict())
    assert all(torch.equal(ours[0][key], value) for key, value in stock[0].items())


def test_each_attention_has_an_initialisation_of_its_own(make_cfg):
    model = build_model(make_cfg({**MGN_R50, **attend("layer4")}))
    first, second, third = (module.reduce.weight for module in attentions(model).values())
    assert not torch.equal(first, second) and not torch.equal(second, third)


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


@pytest.mark.parametrize(
    "changes, message",
    [
        (attend("head"), r"class token.*\(\"blocks\",\)"),
        ({"MODEL.HEADS.NAME": "ChannelAttentionHead"}, r"class token.*\(\"blocks\",\)"),
        (attend("layer3"), "'layer3'.*VisionTransformer.*It has blocks"),
        (attend("blocks", name="SE"), "SE is for maps"),
        (attend("blocks", MASK_BIAS=1.0, DEPTHWISE=True), "DEPTHWISE is True.*has tokens"),
        (attend("blocks", MASK_BIAS=0.0), "MASK_BIAS is 0, .*VisionTransformer would start"),
    ],
)
def test_vit_has_no_map(make_cfg, changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg({**VIT, **changes}))


@pytest.mark.parametrize(
    "matrices, added", [({"RANK": 16}, 2 * 16 * 768), ({"GROUPS": 12}, 768**2 // 12)], ids=str
)
def test_vit_masks_with_fewer_weights(make_cfg, matrices, added):
    stock = build_model(make_cfg(VIT))
    model = build_model(make_cfg({**VIT, **attend("blocks", MASK_BIAS=1.0, **matrices)}))
    check_keys(model, stock)
    assert torch.equal(embed(model), embed(stock)), "a mask that keeps all changes something"
    for mask in attentions(model).values():
        assert type(mask) is DCSMask
        assert sum(p.numel() for p in mask.parameters()) == added + 768


@pytest.mark.parametrize("matrices", [{"RANK": 16}, {"GROUPS": 8}], ids=str)
def test_mgn_with_fewer_weights(make_cfg, matrices):
    stock = build_model(make_cfg(MGN_R50))
    settings = {"WIDTH": 0, "DEPTHWISE": True, **matrices}
    model = build_model(make_cfg({**MGN_R50, **attend("layer4", "head", **settings)}))
    check_keys(model, stock)
    assert torch.equal(embed(model, height=96), embed(stock, height=96))
    assert len(attentions(model)) == 6
    for _ in train(model, epochs=1, height=96):
        check_gradients(attentions(model))


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


class HalfArchitecture(nn.Module):
    """A project's architecture that leaves out the end of the backbone."""

    def __init__(self, cfg):
        super().__init__()
        backbone = build_backbone(cfg)
        self.backbone = nn.Sequential(backbone.conv1, backbone.layer1, backbone.layer2)


def test_an_architecture_that_drops_an_attention(make_cfg):
    assert list(
        attentions(placement.build_with_attention(HalfArchitecture, make_cfg(attend("layer2"))))
    ) == ["backbone.2.1.attention"]
    with pytest.raises(ValueError, match="HalfArchitecture holds attention at .*backbone.2.1"):
        placement.build_with_attention(HalfArchitecture, make_cfg(attend("layer2", "layer4")))


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"MODEL.BACKBONE.WITH_SE": True}, "se.fc"),
        (
            {
                "MODEL.BACKBONE.DEPTH": "50x",
                "MODEL.BACKBONE.FEAT_DIM": 2048,
                "MODEL.BACKBONE.WITH_NL": True,
            },
            "NL_3",
        ),
        (chosen(("resnest", "50x")), "conv2.fc1"),
        (chosen(("osnet", "x0_25")), "gate.fc1"),
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
