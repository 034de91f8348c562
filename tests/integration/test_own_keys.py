"""FastReID's own keys at their edges: each value trains, or is refused by name before it does."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fastreid.engine import DefaultTrainer, default_setup
from keys_at_edges import BASE, FAILS, ROWS, TOLD, TRAINS, WRONG, config

from fastreid_rib.integration import own_keys
from fastreid_rib.integration.own_keys import RULES

SCRIPT = Path(__file__).parent / "keys_at_edges.py"


def name(row):
    also = ",".join(f"{key.split('.')[-1]}={value}" for key, value in row[3].items())
    return f"{row[0]}={row[1]}-{also}"


@pytest.fixture(scope="module")
def came_of(tmp_path_factory):
    """What FastReID does with each row where nothing checks it: "" or its error."""
    report = tmp_path_factory.mktemp("edges") / "report.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(report.read_text())


def test_the_list_is_what_happens(came_of):
    """Nothing is refused that FastReID can work with, and nothing is let through that it cannot."""
    odd = [
        f"{name(row)} is listed as '{row[2]}': {answer or 'trained'}"
        for row, answer in zip(ROWS, came_of)
        if (answer == "") != (row[2] in (TRAINS, WRONG))
    ]
    assert len(came_of) == len(ROWS)
    assert odd == []


def test_what_repairs_refuse_names_the_key(came_of):
    for row, answer in zip(ROWS, came_of):
        if row[2] == TOLD:
            assert answer.startswith("ValueError") and row[0] in answer, (row, answer)


def test_a_warm_up_may_be_as_long_as_the_training(came_of):
    found = [
        answer
        for row, answer in zip(ROWS, came_of)
        if row[0] in ("SOLVER.WARMUP_ITERS", "SOLVER.DELAY_EPOCHS")
    ]
    assert len(found) == 26 and set(found) == {""}


def refused(row, folder):
    """The error of the checks, of the config and of what is built from it; "" if there is none."""
    cfg = config(row, str(folder))
    try:
        own_keys.check(cfg)
        model = DefaultTrainer.build_model(DefaultTrainer.auto_scale_hyperparams(cfg, 8))
        assert model.training
    except ValueError as error:
        return str(error)
    return ""


# What the network is like is asked where it matters only: a model a row takes its time.
NETWORK = ("MODEL.BACKBONE.", "MODEL.HEADS.NUM_CLASSES", "INPUT.SIZE_")


@pytest.mark.parametrize("row", [row for row in ROWS if row[2] in (FAILS, WRONG)], ids=name)
def test_what_does_not_work_is_refused_by_name(row, tmp_path):
    if row[0].startswith(NETWORK):
        message = refused(row, tmp_path)
    else:
        with pytest.raises(ValueError) as error:
            own_keys.check(config(row, str(tmp_path)))
        message = str(error.value)
    assert message.startswith(f"{row[0]} "), message
    shown = list(row[1]) if isinstance(row[1], tuple) and row[0].startswith("INPUT") else row[1]
    assert str(shown) in message or repr(shown) in message


@pytest.mark.parametrize("row", [row for row in ROWS if row[2] in (TRAINS, TOLD)], ids=name)
def test_what_works_is_not(row, tmp_path):
    if row[0].startswith(NETWORK):
        assert refused(row, tmp_path) == ""
    else:
        own_keys.check(config(row, str(tmp_path)))


def numeric(node, path=""):
    """The keys of FastReID that hold numbers, or several values."""
    for key, value in node.items():
        full = f"{path}.{key}".lstrip(".")
        if hasattr(value, "items"):
            yield from numeric(value, full)
        elif isinstance(value, (int, float, list, tuple)) and not isinstance(value, bool):
            yield full


def test_the_list_holds_every_numeric_key_of_fastreid(make_cfg):
    ours = ("MODEL.LOSSES.RIB.", "MODEL.ATTENTION.", "MODEL.SEARCH.", "DATASETS.FOLDER.", "SEED")
    keys = {key for key in numeric(make_cfg(base={})) if not key.startswith(ours)}
    assert keys == {row[0] for row in ROWS}
    assert {rule.key for rule in RULES} <= keys


def test_it_comes_before_the_data_are_read(make_cfg):
    cfg = make_cfg({"SOLVER.CHECKPOINT_PERIOD": 0, "DATASETS.NAMES": ("NoSuchDataSet",)})
    with pytest.raises(ValueError, match="^SOLVER.CHECKPOINT_PERIOD must be other than 0"):
        default_setup(cfg, argparse.Namespace(eval_only=False))


def test_an_evaluation_does_not_ask_for_what_only_trains(make_cfg):
    training = {"SOLVER.MAX_EPOCH": 0, "DATASETS.NAMES": (), "SOLVER.IMS_PER_BATCH": 0}
    own_keys.check(make_cfg(training), training=False)
    for key, value in (("DATASETS.TESTS", ()), ("TEST.IMS_PER_BATCH", 0), ("INPUT.SIZE_TEST", [])):
        with pytest.raises(ValueError, match=f"^{key} must be"):
            own_keys.check(make_cfg({key: value}), training=False)


def test_each_process_needs_an_image(make_cfg):
    for key in ("SOLVER.IMS_PER_BATCH", "TEST.IMS_PER_BATCH"):
        cfg = make_cfg({key: 3})
        own_keys.check(cfg, 1)
        with pytest.raises(ValueError, match=f"^{key} must be at least 4 .an image for each"):
            own_keys.check(cfg, 4)
    with pytest.raises(ValueError, match="^SOLVER.IMS_PER_BATCH must be at least 8, as batch norm"):
        own_keys.check(make_cfg({"SOLVER.IMS_PER_BATCH": 6}), 4)
    moco = {"MODEL.META_ARCHITECTURE": "MoCo", "MODEL.QUEUE_SIZE": 48}
    with pytest.raises(ValueError, match="^MODEL.QUEUE_SIZE .* 48; (30|60) is one"):
        own_keys.check(make_cfg({**moco, "SOLVER.IMS_PER_BATCH": 32}), 3)


def test_looking_at_the_network_changes_nothing_of_it(make_cfg):
    import torch

    cfg = make_cfg(base=BASE)
    model = DefaultTrainer.build_model(cfg)
    model.backbone.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    own_keys.check_network(cfg, model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
