"""Every config file of the repository, as FastReID reads it."""

from pathlib import Path

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage

from fastreid_rib.attention import SE, DCSAttention, DCSMask

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BASES = sorted(path.name for path in CONFIGS.glob("Base-*.yml"))
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yml"))
BENCHMARKS = ("Market1501", "DukeMTMC", "MSMT17")
CONVOLUTIONAL = ("bot_R50", "agw_R50", "sbs_R50", "mgn_R50", "osnet_x1_0")
WITH_IBN = ("bot_R50-ibn", "agw_R50-ibn", "sbs_R50-ibn")
SEARCHES = ("search", "searched")
MODELS = [
    *(f"rib_{model}" for model in (*CONVOLUTIONAL, "vit_B16")),
    *(f"rib_dcs_{model}" for model in (*CONVOLUTIONAL, *WITH_IBN, "vit_B16")),
    *(f"rib_ca_{model}" for model in (*CONVOLUTIONAL, *WITH_IBN)),
    *(f"rib{attention}_{kind}" for attention in ("", "_dcs", "_ca") for kind in SEARCHES),
]
# FastReID's own attention, and a name of a parameter in it.
OWN_ATTENTION = {
    "rib_bot_R101-ibn-se": ".se.fc.",
    "rib_bot_R50-nl": ".NL_3.",
    "rib_bot_S50": ".conv2.fc1.",
    "rib_osnet_x1_0": ".gate.fc1.",
}
# Occluded sets and CUHK03: what they train on, and the models that they have, without RIB as well.
OTHERS = {
    "CUHK03NP": "CUHK03NP",
    "OccludedDuke": "OccludedDuke",
    "OccludedREID": "Market1501",
    "POccludedDuke": "POccludedDuke",
    "PartialREID": "Market1501",
}
OF_OTHERS = ("bot_R50", "rib_bot_R50", "rib_dcs_bot_R50")
LABELS = torch.tensor([0, 0, 1, 1])
STEPPED = [f"Market1501/{model}.yml" for model in MODELS]
STEPPED += [f"Market1501/{model}.yml" for model in OWN_ATTENTION if model not in MODELS]
STEPPED += [name for name in FILES if name.startswith(("quickstart/", "search/"))]


def load(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


def flat(node, prefix=""):
    values = {}
    for key, value in node.items():
        if isinstance(value, dict):
            values.update(flat(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


def different(cfg, other):
    """The keys whose values differ between two configs."""
    ours, theirs = flat(cfg), flat(other)
    assert ours.keys() == theirs.keys()
    return {key for key in ours if ours[key] != theirs[key]}


def test_every_model_has_a_config_for_every_benchmark():
    expected = {f"{data}/{model}.yml" for data in BENCHMARKS for model in MODELS}
    expected |= {f"{data}/{model}.yml" for data in OTHERS for model in OF_OTHERS}
    assert expected <= set(FILES)
    assert set(FILES) - expected - set(STEPPED) == set(BASES), "a file that no test steps"


@pytest.mark.parametrize("name", FILES)
def test_it_loads_and_trains_with_rib(name):
    cfg = load(name)
    without = Path(name).stem in ("baseline", "bot_R50")
    assert ("RIB" in cfg.MODEL.LOSSES.NAME) == (not without)
    assert {"CrossEntropy", "Triplet"} <= set(cfg.MODEL.LOSSES.NAME)
    # A path would be one of the machine where the file was written.
    assert cfg.MODEL.BACKBONE.PRETRAIN_PATH == "" and cfg.MODEL.WEIGHTS == ""
    for data in cfg.DATASETS.NAMES + cfg.DATASETS.TESTS:
        DATASET_REGISTRY.get(data)  # raises if there is none


@pytest.mark.parametrize("data", BENCHMARKS)
def test_configs_of_a_benchmark_differ_from_those_of_another_in_the_data_alone(data):
    folders = set()
    for model in MODELS:
        cfg, other = load(f"{data}/{model}.yml"), load(f"Market1501/{model}.yml")
        assert cfg.DATASETS.NAMES == cfg.DATASETS.TESTS == (data,)
        folders.add(cfg.OUTPUT_DIR)
        # The model and all that trains it is the same, so that what is stepped for one is for all.
        assert different(cfg, other) <= {"DATASETS.NAMES", "DATASETS.TESTS", "OUTPUT_DIR"}
    assert folders == {f"logs/{data.lower()}/{model}" for model in MODELS}


@pytest.mark.parametrize("data", OTHERS)
def test_occluded_sets_and_cuhk03_have_a_baseline_rib_and_rib_dcs(data):
    for model in OF_OTHERS:
        cfg = load(f"{data}/{model}.yml")
        assert ((OTHERS[data],), (data,)) == (cfg.DATASETS.NAMES, cfg.DATASETS.TESTS)
        assert f"logs/{data.lower()}/{model}" == cfg.OUTPUT_DIR
        alike = {"DATASETS.NAMES", "DATASETS.TESTS", "OUTPUT_DIR"}
        if model == "bot_R50":
            other = load("Market1501/rib_bot_R50.yml")
            assert (*cfg.MODEL.LOSSES.NAME, "RIB") == other.MODEL.LOSSES.NAME
            alike.add("MODEL.LOSSES.NAME")
        else:
            other = load(f"Market1501/{model}.yml")
        assert different(cfg, other) <= alike


@pytest.mark.parametrize(
    "model", [model for model in MODELS if "_dcs_" in model or "_ca_" in model]
)
def test_attention_is_all_that_a_config_adds_to_rib_alone(model):
    alone = model.replace("_dcs_", "_").replace("_ca_", "_").replace("-ibn", "")
    ours, rib = load(f"Market1501/{model}.yml"), load(f"Market1501/{alone}.yml")
    changed = different(ours, rib)
    assert changed >= {"MODEL.ATTENTION.NAME", "OUTPUT_DIR"}
    allowed = {f"MODEL.ATTENTION.{key}" for key in ("NAME", "PLACEMENT", "WIDTH", "MASK_BIAS")}
    allowed |= {"OUTPUT_DIR", "MODEL.LOSSES.RIB.EMBEDDING"}
    allowed |= {"MODEL.BACKBONE.WITH_IBN"} if "-ibn" in model else set()
    assert changed <= allowed


def test_the_quick_start_compares_configs_that_differ_in_one_line():
    baseline, rib = load("quickstart/baseline.yml"), load("quickstart/rib.yml")
    assert different(baseline, rib) == {"MODEL.LOSSES.NAME", "OUTPUT_DIR"}
    assert (*baseline.MODEL.LOSSES.NAME, "RIB") == rib.MODEL.LOSSES.NAME
    dcs = load("quickstart/rib_dcs.yml")
    assert different(rib, dcs) == {"MODEL.ATTENTION.NAME", "OUTPUT_DIR"}


@pytest.mark.parametrize("name", STEPPED)
def test_it_is_built_small_and_stepped_twice(name):
    cfg = load(name)
    # MGN cuts the last map, of a sixteenth of the height, into thirds.
    size = [96 if cfg.MODEL.META_ARCHITECTURE == "MGN" else 64, 32]
    changes = {
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": 2,
        "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
        "INPUT.SIZE_TRAIN": size,
        "SOLVER.FREEZE_ITERS": 0,
    }
    cfg.merge_from_list([part for change in changes.items() for part in change])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    optimizer, _ = build_optimizer(cfg, model)
    for epoch in range(2):
        with EventStorage() as storage:
            storage.epoch = epoch
            losses = model({"images": torch.rand(4, 3, *size) * 255, "targets": LABELS})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert all(torch.isfinite(loss) for loss in losses.values())
    assert ("loss_rib" in losses) == ("RIB" in cfg.MODEL.LOSSES.NAME)
    assert ("loss_cost" in losses) == hasattr(model, "search") == cfg.MODEL.SEARCH.ENABLED
    check_attention(model, name)


def check_attention(model, name):
    """The attention that the name of the config promises is there, and took part in the step."""
    placed = [m for path, m in model.named_modules() if path.split(".")[-1] == "attention"]
    kind = SE if "rib_ca" in name else DCSMask if "vit" in name else DCSAttention
    if "rib_dcs" in name or "rib_ca" in name:
        assert len(placed) == {"mgn": 3, "vit": 12}.get(name.split("_")[-2], 1)
        for module in placed:
            assert type(module) is kind
            assert any(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
        return
    assert not placed
    own = OWN_ATTENTION.get(Path(name).stem)
    parameters = [p for path, p in model.named_parameters() if own and own in path]
    assert bool(parameters) == bool(own)
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters)
