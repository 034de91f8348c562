"""The search spaces of FastReID's backbones: slices are the masked network, costs are counted."""

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone

from fastreid_rib.integration.search import results
from fastreid_rib.integration.search.cost import network_cost
from fastreid_rib.integration.search.spaces import space_of

SEARCHED = {
    "MODEL.BACKBONE.NAME": "build_searched_backbone",
    "MODEL.BACKBONE.DEPTH": "0.25x",
}
MOBILENET = {
    "MODEL.BACKBONE.NAME": "build_mobilenetv2_backbone",
    "MODEL.BACKBONE.DEPTH": "1.0x",
    "MODEL.BACKBONE.FEAT_DIM": 1280,
}
BOTTLENECKS = {"MODEL.BACKBONE.DEPTH": "50x", "MODEL.BACKBONE.FEAT_DIM": 2048}
NARROW = {
    "searched": (SEARCHED, (20, 32, 96, 136)),
    "mobilenet": (MOBILENET, (8, 24, 20, 40, 60, 120, 200)),
    "resnet18": ({}, (48, 128, 64, 320)),
    "resnet50": (BOTTLENECKS, (64, 32, 192, 128)),
    "attention at the head": ({**SEARCHED, "MODEL.ATTENTION.NAME": "DCS"}, (16, 40, 80, 216)),
    "attention after a stage of fixed width": (
        {"MODEL.ATTENTION.NAME": "SE", "MODEL.ATTENTION.PLACEMENT": ("layer2",)},
        (48, 128, 64, 320),
    ),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.all_only] if c == "resnet50" else []) for c in NARROW],
)
def test_slices_of_the_supernet_are_and_cost_what_its_masks_let_through(make_cfg, case):
    changes, widths = NARROW[case]
    cfg = make_cfg({**changes, "MODEL.SEARCH.ENABLED": True, "MODEL.SEARCH.TARGET": 1.0})
    torch.manual_seed(0)
    model = build_model(cfg)  # its most probable widths are these, its weights as after some steps
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.bias.normal_(std=0.1)
        for choice, width in zip(model.search.choices.values(), widths):
            choice.logits[choice.widths.index(width)] = 1.0
    chosen, cost = dict(zip(model.search.choices, widths)), model.search.cost
    config = results.config_of(cfg, chosen)
    config.defrost()
    config.MODEL.HEADS.NUM_CLASSES = cfg.MODEL.HEADS.NUM_CLASSES
    small = build_model(config).eval()
    weights = results.weights_of(model, cost.space, chosen)
    small.load_state_dict(weights)
    images = torch.rand(2, 3, 64, 32) * 255
    with torch.no_grad():
        expected, found = model.eval()(images.clone()), small(images.clone())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 1e-3
    parts = network_cost(small, (64, 32))
    counted = parts["backbone"][1] + parts["attention"][1]
    assert cost.of(chosen) == pytest.approx(counted, rel=1e-5)
    assert counted < cost.widest


def test_the_paper_s_space(make_cfg):
    cfg = make_cfg({**SEARCHED, "MODEL.BACKBONE.DEPTH": "1.0x"})
    backbone = build_backbone(cfg)
    space = space_of(backbone, cfg)
    assert list(space.groups.values())[:2] == [(28, 24, 20, 16), (40, 32, 24, 16)]
    assert space.groups["stage3"][0] == 128 and space.groups["stage3"][-1] == 80
    assert space.groups["stage4"][0] == 216 and space.groups["stage4"][-1] == 120
    blocks = [len(getattr(backbone, stage)) for stage in space.groups]
    assert blocks == [3, 12, 21, 12]


PRETRAINED = {
    "mobilenet": ("features.2.conv.6", "features.2.conv.4"),
    "resnet50": ("layer2.0.conv3", "layer2.0.bn2"),
}
"""A layer that reads a block's own map, and the norm that writes it."""


@pytest.fixture
def pretrained(make_cfg, tmp_path):
    """Makes a backbone, its file of weights, and the changes of a config that start from them."""

    def make(changes):
        whole = build_backbone(make_cfg(changes)).eval()
        torch.manual_seed(0)
        for module in whole.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        path = tmp_path / "weights.pth"
        torch.save(whole.state_dict(), path)
        weights = {"MODEL.BACKBONE.PRETRAIN": True, "MODEL.BACKBONE.PRETRAIN_PATH": str(path)}
        return whole, {**changes, **weights}

    return make


@pytest.mark.parametrize("kind", PRETRAINED)
def test_pretrained_weights_keep_their_best_channels(make_cfg, pretrained, kind):
    reader, norm = PRETRAINED[kind]
    plain, widths = NARROW[kind]
    whole, changes = pretrained(plain)
    small = build_backbone(make_cfg({**changes, "MODEL.SEARCH.WIDTHS": widths}))
    scales = whole.get_submodule(norm).weight
    worth = whole.get_submodule(reader).weight.abs().sum((0, 2, 3))
    best = torch.argsort(worth, descending=True)
    kept = small.get_submodule(norm).weight
    assert len(kept) < len(scales)
    assert torch.equal(kept, scales[best[: len(kept)]])
    # A search begins at what was pretrained, sorted; from scratch nothing is sorted.
    searched = build_backbone(make_cfg({**changes, "MODEL.SEARCH.ENABLED": True})).eval()
    assert not torch.equal(searched.get_submodule(norm).weight, scales)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = whole(images)
        assert (searched(images) - expected).abs().max() < 1e-4 * expected.abs().max()
    scratch = []
    for enabled in (False, True):
        torch.manual_seed(0)
        scratch.append(build_backbone(make_cfg({**plain, "MODEL.SEARCH.ENABLED": enabled})))
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in scratch)))


def test_what_does_not_go_is_said_before_training(make_cfg):
    for changes, message in (
        ({"MODEL.SEARCH.TARGET": 1.5}, r"MODEL\.SEARCH\.TARGET must be > 0 and <= 1, but is 1\.5"),
        (
            {**SEARCHED, "MODEL.SEARCH.TARGET": 0.1},
            r"MODEL\.SEARCH\.TARGET must be >= 0\.3\d\d \(the narrowest network\), but is 0\.1",
        ),
        ({"MODEL.SEARCH.OPTIONS": ((64, 32),)}, "needs the widths of 4 groups, layer1, layer2"),
        ({**SEARCHED, "MODEL.SEARCH.OPTIONS": ((64, 32),)}, "needs the widths of 4 groups, stage1"),
        (
            {"MODEL.SEARCH.OPTIONS": ((32, 16), (128,), (256,), (512,))},
            r"widths of 'layer1' must begin with 64",
        ),
        ({"MODEL.SEARCH.OPTIONS": ((64, 64), (128,), (256,), (512,))}, "'layer1' must fall"),
        ({"MODEL.SEARCH.OPTIONS": (1.5,)}, "must be a tuple with the widths of each group"),
        ({"MODEL.SEARCH.WIDTHS": (64,)}, r"MODEL\.SEARCH\.WIDTHS must be \(\) where ENABLED"),
        ({"MODEL.BACKBONE.WITH_IBN": True}, r"cannot narrow IBN \(layer1\.0\.bn1\)"),
        (
            {"MODEL.BACKBONE.NAME": "build_osnet_backbone", "MODEL.BACKBONE.DEPTH": "x0_25"},
            r"'build_osnet_backbone', whose widths MODEL\.SEARCH cannot choose",
        ),
        ({**SEARCHED, "MODEL.BACKBONE.DEPTH": "50x"}, r"must be one of 1\.0x, 0\.5x, 0\.25x"),
        ({"MODEL.META_ARCHITECTURE": "MGN"}, "MGN takes it apart"),
        (
            {**SEARCHED, "MODEL.ATTENTION.NAME": "ECA", "MODEL.ATTENTION.PLACEMENT": ("stage2",)},
            r"\('stage2',\) puts attention after stage2\.2, whose width MODEL\.SEARCH chooses",
        ),
        (
            {**MOBILENET, "MODEL.ATTENTION.NAME": "SE", "MODEL.ATTENTION.PLACEMENT": ("stage3",)},
            r"attention after features\.6, whose width MODEL\.SEARCH chooses. Write \('head',\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(make_cfg({"MODEL.SEARCH.ENABLED": True, **changes}))
