"""Every config file of the repository, as FastReID reads it."""

import os
from pathlib import Path

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage

from fastreid_rib.attention import DCSAttention
from fastreid_rib.integration import config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yml"))
BASES = [name for name in FILES if "/" not in name]
# What has RIB, by its name; a search compares networks, and not losses.
WITH_RIB = [name for name in FILES if "rib" in name.lower() or name.startswith("search/")]
# What a config changes besides RIB, or in it, in what it is to be compared with.
COMPARED = {
    "Base-RIB-paper.yml": ("Base-bot.yml", "MODEL.LOSSES.RIB."),
    "Market1501/rib_paper_bot_R50.yml": ("Market1501/bot_R50.yml", "MODEL.LOSSES.RIB."),
    "Market1501/rib_dcs_bot_R50.yml": ("Market1501/rib_bot_R50.yml", "MODEL.ATTENTION."),
    "Market1501/rib_se_bot_R50.yml": ("Market1501/rib_bot_R50.yml", "MODEL.ATTENTION."),
    "quickstart/rib.yml": ("quickstart/baseline.yml", "MODEL.LOSSES.NAME"),
}
# One of each architecture and kind; what others add to these are keys that they all know.
STEPPED = [
    "FolderReID/rib_recipe_R18.yml",
    "Market1501/rib_agw_R50.yml",
    "Market1501/rib_dcs_bot_R50.yml",
    "Market1501/rib_mgn_R50.yml",  # with SBS's settings
    "Market1501/rib_osnet_x1_0.yml",
    "Market1501/rib_vit_B16.yml",
    "search/synthetic.yml",
    "search/market1501_searched.yml",
]
LABELS = torch.tensor([0, 0, 1, 1])


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


@pytest.mark.parametrize("name", FILES)
def test_it_is_read_and_checked(name):
    cfg = load(name)
    assert ("RIB" in cfg.MODEL.LOSSES.NAME) == (name in WITH_RIB)
    assert {"CrossEntropy", "Triplet"} <= set(cfg.MODEL.LOSSES.NAME)
    # A path would be one of the machine where the file was written.
    assert cfg.MODEL.BACKBONE.PRETRAIN_PATH == "" and cfg.MODEL.WEIGHTS == ""
    # There DCS was measured to cost accuracy, and SE as well.
    assert not cfg.MODEL.ATTENTION.NAME or "head" not in cfg.MODEL.ATTENTION.PLACEMENT
    for data in cfg.DATASETS.NAMES + cfg.DATASETS.TESTS:
        DATASET_REGISTRY.get(data)  # raises if there is none
    config.check(cfg)
    if name not in BASES:
        folder = CONFIGS / name
        assert f"logs/{folder.parent.name.lower()}/{folder.stem}" == cfg.OUTPUT_DIR


@pytest.mark.parametrize("name", sorted(set(WITH_RIB) - {n for n in FILES if "search/" in n}))
def test_what_it_is_compared_with_differs_in_rib_alone(name):
    folder, stem = os.path.split(name)
    other, allowed = COMPARED.get(
        name, (os.path.join(folder, stem.replace("rib_", "")), "MODEL.LOSSES.NAME")
    )
    assert other in FILES
    ours, theirs = load(name), load(other)
    changed = different(ours, theirs) - {"OUTPUT_DIR"}
    if "RIB" not in theirs.MODEL.LOSSES.NAME:
        assert (*theirs.MODEL.LOSSES.NAME, "RIB") == ours.MODEL.LOSSES.NAME
        changed -= {"MODEL.LOSSES.NAME"}
    assert all(key.startswith(allowed) for key in changed)


def test_without_the_plugin_no_config_with_rib_trains_without_it_in_silence(run_script):
    code = """
import sys
from fastreid.config import get_cfg
for path in sys.argv[1:]:
    try:
        get_cfg().merge_from_file(path)
    except KeyError as error:
        print("refused", path)
"""
    printed = run_script(
        "-c", code, *[CONFIGS / name for name in FILES], env={"FASTREID_RIB_DISABLE": "register"}
    ).stdout
    refused = {name for name in FILES if f"refused {CONFIGS / name}\n" in printed}
    # Both configs of a recipe evaluate before the neck, which is a key of the plugin.
    recipes = {name for name in FILES if "/recipe_" in name}
    assert refused == {*WITH_RIB, *recipes} and len(recipes) == 2


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
    assert losses["loss_rib"] != 0
    assert ("loss_cost" in losses) == hasattr(model, "search") == cfg.MODEL.SEARCH.ENABLED
    placed = [m for path, m in model.named_modules() if path.endswith("attention")]
    assert [type(module) for module in placed] == [DCSAttention] * (cfg.MODEL.ATTENTION.NAME != "")
    for module in placed:
        assert any(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
