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


# What the network is like is asked where it matters only: a model a row takes its time.
NETWORK = ("MODEL.BACKBONE.", "MODEL.HEADS.NUM_CLASSES", "INPUT.SIZE_")
OF_NETWORK = [row for row in ROWS if row[0].startswith(NETWORK)]
OF_CONFIG = [row for row in ROWS if not row[0].startswith(NETWORK)]


def name(row):
    also = ",".join(f"{key.split('.')[-1]}={value}" for key, value in row[3].items())
    return f"{row[0]}={row[1]}-{also}"


@pytest.mark.all_only
def test_the_list_is_what_happens(tmp_path):
    """Nothing is refused that FastReID can work with, and nothing is let through that it cannot.

    With each row it trains where nothing checks it: "" or its error.
    """
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    came_of = json.loads(report.read_text())
    assert len(came_of) == len(ROWS)
    odd = [
        f"{name(row)} is listed as '{row[2]}': {answer or 'trained'}"
        for row, answer in zip(ROWS, came_of)
        if (answer == "") != (row[2] in (TRAINS, WRONG))
        or (row[2] == TOLD and not (answer.startswith("ValueError") and row[0] in answer))
    ]
    assert odd == []


def mistaken(row, folder):
    """What is wrong with the answer of the checks to a row; "" if nothing is."""
    cfg, message = config({**row[3], row[0]: row[1]}, str(folder)), ""
    try:
        own_keys.check(cfg)
        if row[0].startswith(NETWORK):
            model = DefaultTrainer.build_model(DefaultTrainer.auto_scale_hyperparams(cfg, 8))
            assert model.training
    except ValueError as error:
        message = str(error)
    if row[2] in (TRAINS, TOLD):
        return message
    value = list(row[1]) if isinstance(row[1], tuple) and row[0].startswith("INPUT") else row[1]
    shown = str(value) in message or repr(value) in message
    return "" if message.startswith(f"{row[0]} ") and shown else message or "is let through"


def test_the_checks_of_a_config_answer_by_the_list(tmp_path):
    wrong = {name(row): mistaken(row, tmp_path) for row in OF_CONFIG}
    assert len(wrong) > 100 and not any(wrong.values()), {k: v for k, v in wrong.items() if v}


@pytest.mark.all_only
def test_the_checks_of_a_network_answer_by_the_list(tmp_path):
    wrong = {name(row): mistaken(row, tmp_path) for row in OF_NETWORK}
    assert not any(wrong.values()), {k: v for k, v in wrong.items() if v}


def test_what_a_network_cannot_take_is_refused(tmp_path):
    for row in (
        ("MODEL.BACKBONE.FEAT_DIM", 64, FAILS, {}),
        ("MODEL.HEADS.NUM_CLASSES", 4, FAILS, {}),
        ("INPUT.SIZE_TEST", [1, 1], FAILS, {}),
        ("INPUT.SIZE_TRAIN", [128, 64], TRAINS, {}),
    ):
        assert row in OF_NETWORK and mistaken(row, tmp_path) == ""


def test_the_list_holds_every_key_with_a_rule():
    assert {rule.key for rule in RULES} <= {row[0] for row in ROWS}


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


def test_too_little_memory_is_no_fault_of_the_size(make_cfg):
    cfg = make_cfg(base=BASE)
    model = DefaultTrainer.build_model(cfg)
    for told in (
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ):

        def refuse(*_, told=told):
            raise RuntimeError(told)

        handle = model.backbone.register_forward_pre_hook(refuse)
        with pytest.raises(RuntimeError) as caught:
            own_keys.check_network(cfg, model)
        handle.remove()
        assert str(caught.value) == told
