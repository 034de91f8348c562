"""With SEED, a run that goes on is the one that was never interrupted, wherever it was stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "resumed_run.py"
EVERY = ("frozen", "search")  # for a change
OTHERS = ("patches of workers", "distilled", "random", "balanced", "imbalanced")


def came_of(folder, how, *arguments):
    """The script's report; nothing in it may be odd."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, [SCRIPT, folder, how, *arguments])],
        env=dict(os.environ, PYTHONFAULTHANDLER="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("REPORT")]
    report = json.loads(line[len("REPORT") :])
    assert report["odd"] == [] and len(report["losses"]) >= 6
    return report


@pytest.fixture(scope="module")
def without_workers(tmp_path_factory):
    return came_of(tmp_path_factory.mktemp("rib"), 1, "rib")


def test_rib_and_attention_go_on_bit_for_bit(without_workers):
    assert len(without_workers["losses"]) == 12 and "loss_rib" in without_workers["losses"][-1]


def test_the_number_of_workers_makes_no_difference(without_workers, tmp_path):
    assert came_of(tmp_path, 1, "workers")["losses"] == without_workers["losses"]


@pytest.mark.parametrize(
    "case", [*EVERY, *(pytest.param(case, marks=pytest.mark.all_only) for case in OTHERS)]
)
def test_whatever_draws_or_counts_goes_on_bit_for_bit(tmp_path, case):
    came_of(tmp_path, 1, case)


@pytest.mark.parametrize("case", ["rib", pytest.param("search", marks=pytest.mark.all_only)])
def test_two_processes_go_on_bit_for_bit(tmp_path, case):
    came_of(tmp_path, 2, case)


def test_a_run_killed_while_it_writes_goes_on_bit_for_bit(tmp_path):
    assert came_of(tmp_path, "kill", "rib", 1)["moments"][0][0] == "write"


@pytest.mark.all_only
def test_a_run_killed_at_any_moment_goes_on_bit_for_bit(tmp_path):
    report = came_of(tmp_path, "kill", "rib", 10)
    assert {moment[0] for moment in report["moments"]} == {"write", "refresh", "step"}
