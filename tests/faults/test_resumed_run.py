"""With SEED, a run that goes on from a checkpoint is the one that was never interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "resumed_run.py"


def came_of(folder, case, processes=1):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), str(processes), case],
        env=dict(os.environ, PYTHONFAULTHANDLER="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("REPORT")]
    return json.loads(line[len("REPORT") :])


@pytest.fixture(scope="module")
def without_workers(tmp_path_factory):
    return came_of(tmp_path_factory.mktemp("rib"), "rib")


@pytest.fixture(scope="module")
def with_workers(tmp_path_factory):
    return came_of(tmp_path_factory.mktemp("workers"), "workers")


def test_rib_and_attention_go_on_bit_for_bit(without_workers):
    assert without_workers["tried"] == [1, 2] and without_workers["odd"] == []
    assert len(without_workers["losses"]) == 12 and "loss_rib" in without_workers["losses"][-1]


def test_so_they_do_with_workers(with_workers):
    assert with_workers["tried"] == [1, 2] and with_workers["odd"] == []


def test_the_number_of_workers_makes_no_difference(without_workers, with_workers):
    assert without_workers["losses"] == with_workers["losses"]


OTHERS = ["patches of workers", "frozen", "distilled", "random", "balanced", "imbalanced"]


@pytest.mark.parametrize(
    "case",
    ["patches", "search", *(pytest.param(case, marks=pytest.mark.all_only) for case in OTHERS)],
)
def test_whatever_draws_or_counts_goes_on_bit_for_bit(tmp_path, case):
    report = came_of(tmp_path, case)
    assert report["tried"] == [1, 2] and report["odd"] == []


@pytest.mark.parametrize("case", ["rib", pytest.param("search", marks=pytest.mark.all_only)])
def test_two_processes_go_on_bit_for_bit(tmp_path, case):
    report = came_of(tmp_path, case, processes=2)
    assert report["tried"] == [1, 2] and report["odd"] == []
