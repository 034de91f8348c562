"""SIGKILL at random moments of a training, and --resume."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kill_and_resume.py"
MOMENTS = 10
pytestmark = pytest.mark.all_only


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the script saw: ten killed and resumed runs, and one that was left alone."""
    command = [sys.executable, "-W", "ignore", SCRIPT, tmp_path_factory.mktemp("runs"), MOMENTS, 0]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


def test_the_moments_are_where_they_are_meant_to_be(report):
    runs = report["runs"]
    assert len(runs) == MOMENTS and [run["killed by"] for run in runs] == [9] * MOMENTS
    counted = Counter(run["moment"][0] for run in runs)
    assert set(counted) == {"step", "refresh", "write"} and min(counted.values()) >= 3
    assert any(run["left"] == [] for run in runs) or len({tuple(run["left"]) for run in runs}) > 2
    assert any(name.endswith(".partial") for run in runs for name in run["left"]), (
        "no checkpoint was being written when it was killed"
    )
    assert {"loss_cls", "loss_rib", "loss_triplet", "rib/bound"} <= set(report["losses"])


def test_losses_after_it_equal_the_uninterrupted_ones_bit_for_bit(report):
    for run in report["runs"]:
        assert run["as before"], run["moment"]  # or the comparison would mean nothing
        assert run["status"] == 0 and run["after"], run["moment"]
        whole = {"last_checkpoint", *(f"model_{epoch:04d}.pth" for epoch in range(4))}
        saved = len(whole & set(run["left"])) - ("last_checkpoint" in run["left"])
        assert run["steps after"] >= report["steps"] - 4 * saved, "it went on too late"
        assert run["steps before"] + run["steps after"] >= report["steps"]


def test_the_last_checkpoints_are_equal_bit_for_bit(report):
    assert {"model", "optimizer", "lr_sched", "warmup_sched", "epoch"} <= set(report["checkpoint"])
    for run in report["runs"]:
        assert run["checkpoint"] == report["checkpoint"], run["moment"]
