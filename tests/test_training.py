"""A user's training script, with nothing changed but the loss line and the data of its config."""

import argparse
import json
import logging
import math
import re

import pytest
import torch
from fastreid.engine import default_setup

from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import generate

RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
WITHOUT_RIB = {
    "DATASETS.NAMES": ("Market1501",),
    "DATASETS.TESTS": ("Market1501",),
    "DATALOADER.NUM_WORKERS": 1,
    "MODEL.HEADS.NUM_CLASSES": 0,
    "SEED": -1,
}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A data root with a folder in Market-1501's layout, and the environment that names it."""
    root = tmp_path_factory.mktemp("market")
    generate(str(root / "Market-1501-v15.09.15"), SyntheticReIDTiny.spec)
    return {"FASTREID_DATASETS": str(root), "ARM": "1"}


@pytest.fixture
def write_config(make_cfg, make_small_cfg, tmp_path):
    def write(changes=None, make=make_small_cfg):
        path = tmp_path / "config.yml"
        path.write_text(make({**WITHOUT_RIB, **(changes or {})}).dump())
        return ["--config-file", str(path)]

    return write


def logged(folder, key):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def mean_average_precision(output):
    rows = re.findall(r"\| Market1501\s*\|(.*)\|", output)
    return [float(row.split("|")[3]) for row in rows]


@pytest.mark.published
def test_one_changed_line_trains_evaluates_resumes(
    run_script, make_cfg, write_config, market, tmp_path
):
    config = write_config({**RIB, "SOLVER.MAX_EPOCH": 4, "SEED": 1}, make_cfg)
    logs = tmp_path / "logs"
    run = run_script("train_as_users_do.py", *config, "TEST.EVAL_PERIOD", "4", env=market).stdout
    assert "fastreid-rib" in run and "loss backend: cpu (" in run
    assert "RIB refreshed for epoch 1" in run
    classification, rib = logged(logs, "loss_cls"), logged(logs, "loss_rib")
    assert classification[-1] < 0.8 * classification[0]
    # Medians of all steps so far: in a later epoch one can be a zero of the first.
    assert rib[0] == 0.0 and all(-10 < value < 100 for value in rib) and len(rib) == 4
    assert any(rib[1:])
    assert logged(logs, "rib/mutual_information")[-1] > 0
    (trained,) = mean_average_precision(run)

    weights = ["MODEL.WEIGHTS", str(logs / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "eval")]
    evaluated = run_script("train_as_users_do.py", *config, "--eval-only", *weights, env=market)
    assert mean_average_precision(evaluated.stdout) == [trained]

    (logs / "last_checkpoint").write_text("model_0002.pth")
    resumed = run_script("train_as_users_do.py", *config, "--resume", env=market).stdout
    assert "RIB statistics loaded: epoch 2" in resumed
    assert "Starting training from epoch 3" in resumed
    again = logged(logs, "loss_rib")
    assert len(again) == 5 and again[-1] and -10 < again[-1] < 100


def test_a_config_without_rib_is_stock_fastreid_bit_for_bit(
    run_script, write_config, market, tmp_path
):
    config = write_config(
        {
            "MODEL.LOSSES.NAME": ("CrossEntropyLoss", "TripletLoss"),
            "INPUT.FLIP.ENABLED": True,
            "INPUT.REA.ENABLED": True,
        }
    )
    states = {}
    for name, disable in (("plugin", ""), ("stock", "register")):
        out = tmp_path / name
        run_script(
            "train_and_dump.py",
            *config,
            "OUTPUT_DIR",
            str(out),
            env=dict(market, FASTREID_RIB_DISABLE=disable, DUMP=str(out)),
        )
        states[name] = torch.load(out / "rank0.pth")
        losses = [logged(out, key) for key in ("loss_cls", "loss_triplet", "total_loss")]
        states[name]["losses"] = losses
    plugin, stock = states["plugin"], states["stock"]
    assert plugin.pop("losses") == stock.pop("losses")
    assert list(plugin) == list(stock)
    assert all(torch.equal(plugin[key], stock[key]) for key in stock)
    assert len(stock) > 100


def test_errors_come_at_the_start(run_script, write_config, market):
    config = write_config({"MODEL.LOSSES.NAME": ("CrossEntropy", "Ribb")})
    run = run_script("train_as_users_do.py", *config, env=market, check=False)
    assert run.returncode != 0 and "Did you mean 'RIB'?" in run.stdout
    assert "Prepare training set" not in run.stdout, "the error came after the data were read"


def test_a_run_too_short_for_rib_is_told(make_small_cfg, heard):
    messages = heard(logging.getLogger("fastreid"))
    default_setup(
        make_small_cfg({**RIB, "SOLVER.MAX_EPOCH": 1}), argparse.Namespace(eval_only=False)
    )
    assert any("SOLVER.MAX_EPOCH is 1: it will not train" in message for message in messages())


@pytest.mark.parametrize(
    ("ranks", "sampler"),
    [
        (2, "BalancedIdentitySampler"),
        pytest.param(4, "NaiveIdentitySampler", marks=pytest.mark.all_only),
    ],
)
def test_several_processes_train_on_all_of_two_sets(
    run_script, write_config, market, tmp_path, ranks, sampler
):
    """With the test identities of both; all ranks end with the same state."""
    config = write_config(
        {
            **RIB,
            "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
            "DATASETS.NAMES": ("SyntheticReIDTiny", "Market1501"),
            "DATASETS.COMBINEALL": True,
            "DATALOADER.NUM_WORKERS": 0,
            "DATALOADER.SAMPLER_TRAIN": sampler,
            "DATALOADER.NUM_INSTANCE": 4,
            "SOLVER.IMS_PER_BATCH": 32,
            "SEED": 0,
        }
    )
    command = ("train_and_dump.py", *config, "--num-gpus", ranks)
    run = run_script(*command, env=dict(market, DUMP=str(tmp_path)))
    assert len(mean_average_precision(run.stdout)) == 1
    state, *others = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(ranks)]
    for other in others:
        assert other.keys() == state.keys()
        assert [key for key in other if not torch.equal(other[key], state[key])] == []
    # 8 identities for training and 6 for testing of each set.
    assert state["rib.centroids"].shape[0] == 28
    # A row for each identity, and for each of its cameras where there are several.
    rows = int(state["rib.camera_rows"].max()) + 1
    assert state["rib.log_q"].shape == (rows, 28) and rows > 28
    assert state["rib.camera_rows"].shape == (28, len(state["rib.cameras"]))
    assert state["rib.bank_rows"].isfinite().all()
    logs = tmp_path / "logs"
    assert -math.log(28) <= logged(logs, "rib/bound")[-1] < math.log(28)
    assert logged(logs, "rib/mutual_information")[-1] > 0
