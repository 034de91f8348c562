"""What tests of attention in FastReID's models share: configs, steps of training, and checks."""

import contextlib
import copy
import functools

import pytest
import torch
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage

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
