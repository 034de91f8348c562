"""Every config file of the repository, as FastReID reads it."""

from pathlib import Path

import pytest
from fastreid.config import get_cfg
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.modeling.meta_arch import build_model

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BASES = sorted(path.name for path in CONFIGS.glob("Base-*.yml"))
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yml"))
BENCHMARKS = ("Market1501", "DukeMTMC", "MSMT17")
MODELS = ("bot_R50", "agw_R50", "sbs_R50", "mgn_R50", "vit_B16")


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


def test_every_model_has_a_config_for_every_benchmark():
    expected = {f"{data}/rib_{model}.yml" for data in BENCHMARKS for model in MODELS}
    assert expected <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_it_loads_and_trains_with_rib(name):
    cfg = load(name)
    assert ("RIB" in cfg.MODEL.LOSSES.NAME) == (name != "quickstart/baseline.yml")
    assert {"CrossEntropy", "Triplet"} <= set(cfg.MODEL.LOSSES.NAME)
    # A path would be one of the machine where the file was written.
    assert cfg.MODEL.BACKBONE.PRETRAIN_PATH == "" and cfg.MODEL.WEIGHTS == ""
    for data in cfg.DATASETS.NAMES + cfg.DATASETS.TESTS:
        DATASET_REGISTRY.get(data)  # raises if there is none


@pytest.mark.parametrize("data", BENCHMARKS)
def test_configs_of_a_benchmark_train_and_test_on_it_and_write_into_folders_of_their_own(data):
    configs = [load(f"{data}/rib_{model}.yml") for model in MODELS]
    assert {cfg.DATASETS.NAMES for cfg in configs} == {(data,)}
    assert {cfg.DATASETS.TESTS for cfg in configs} == {(data,)}
    assert len({cfg.OUTPUT_DIR for cfg in configs}) == len(MODELS)


def test_the_quick_start_compares_configs_that_differ_in_the_loss_line_alone():
    baseline, rib = flat(load("quickstart/baseline.yml")), flat(load("quickstart/rib.yml"))
    different = {key for key in baseline if baseline[key] != rib[key]}
    assert baseline.keys() == rib.keys()
    assert different == {"MODEL.LOSSES.NAME", "OUTPUT_DIR"}
    assert rib["MODEL.LOSSES.NAME"] == (*baseline["MODEL.LOSSES.NAME"], "RIB")


@pytest.mark.parametrize("name", [*BASES, "quickstart/rib.yml"])
def test_the_model_of_each_base_is_built(name):
    cfg = load(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.HEADS.NUM_CLASSES = 10
    model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    assert model.rib is not None
