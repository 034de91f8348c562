"""The study: a table that can be checked by hand, runs that are made once, errors that say why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastreid_rib.integration import config

pytestmark = pytest.mark.all_only

RIB = ["MODEL.LOSSES.NAME", "('CrossEntropy', 'RIB')"]
STUDIES = Path(__file__).resolve().parents[2] / "tools" / "research" / "studies"


@pytest.fixture
def study(tools, monkeypatch, tmp_path):
    import study

    monkeypatch.setattr(study, "REPOSITORY", tmp_path)
    (tmp_path / "tools").symlink_to(tools)
    stock = signal.getsignal(signal.SIGTERM)
    yield study
    signal.signal(signal.SIGTERM, stock)


@pytest.fixture
def plot_study(study):
    import plot_study

    return plot_study


@pytest.fixture
def written(tmp_path):
    """Writes a study and gives its path."""

    def write(found):
        path = tmp_path / "one.yml"
        path.write_text(found if isinstance(found, str) else json.dumps(found))
        return path

    return write


@pytest.fixture
def main(study, monkeypatch):
    """Runs a study and gives its exit status."""

    def run(*command):
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, command)])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(SystemExit) as stop:
            study.main()
        return stop.value.code

    return run


def accuracy(average, inverse=40.0):
    return {"mAP": average, "Rank-1": 80.0, "mINP": inverse}


def result(average, information=None, inverse=40.0, **parts):
    """Of a run on two test sets; parts are mAP of the occluded and free queries of the large."""
    found = {"Small": accuracy(1.0), "Large": accuracy(average, inverse)}
    found.update((f"Large {part}", accuracy(percent)) for part, percent in parts.items())
    return {"accuracy": found, "information": information}


RESULTS = {
    "none": {0: result(60.0), 1: result(70.0), 2: None},
    "DCS": {0: result(61.0, 2.0, 42.0), 1: result(74.0, 3.0, 41.0), 2: result(99.0, 4.0, 90.0)},
}


def test_rows_are_compared_seed_by_seed(study):
    heading, rule, none, dcs = study.table(RESULTS, [0, 1, 2], "Large", "none")
    assert heading == (
        "| Large | seeds | mAP | Rank-1 | mINP | mAP - none | mINP - none | mAP by seed "
        "| I(F;Y), nats |"
    )
    assert rule == "|" + 9 * " --- |"
    assert none == "| none | 2 | 65.0 | 80.0 | 40.0 |  |  | 60.0, 70.0 |  |"
    # Gains of 1 and 4: mean 2.5, standard deviation 3 / sqrt(2), standard error 1.5. And of 2 and
    # 1 in mINP: 1.5, 1 / sqrt(2), 0.5. The third seed has no other to be compared with.
    assert dcs == (
        "| DCS | 3 | 78.0 | 80.0 | 57.7 | +2.5 (1.5) of 2 | +1.5 (0.5) of 2 "
        "| 61.0, 74.0, 99.0 | 3.00 |"
    )
    *_, dcs = study.table(RESULTS, [1], "Large", "none")  # one seed has no standard error
    assert dcs == "| DCS | 1 | 74.0 | 80.0 | 41.0 | +4.0 | +1.0 | 74.0 | 3.00 |"
    lines = study.table(RESULTS, [2], "Large", "none")  # a row without results is left out
    assert len(lines) == 3 and lines[2].startswith("| DCS | 1 | 99.0 | 80.0 | 90.0 |  |  | 99.0 |")


def test_what_is_no_study(study, written):
    for text, message in (
        ("rows: {a: []}", "must hold 'base'"),
        ("{base: b, rows: {a: [[MODEL.DEVICE]]}}", "row 'a' must be a list of keys and values"),
        ("{base: b, all: text, rows: {}}", "'all' must be a list of keys and values"),
        ("{base: b, rows: {'a, 1': [], a 1: []}}", "rows 'a, 1' and 'a 1' differ in signs alone"),
    ):
        with pytest.raises(SystemExit, match=message):
            study.load(written(text))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yml")), ids=lambda path: path.stem)
def test_a_study_names_what_exists(study, tools, path):
    import train_bfloat16
    from fastreid.config import CfgNode, get_cfg
    from fastreid.data.datasets import DATASET_REGISTRY

    found = study.load(path)
    assert (tools.parent / found["base"]).exists()
    for changes in found["rows"].values():
        cfg = get_cfg()
        cfg.STUDY = CfgNode(train_bfloat16.STUDY)
        cfg.merge_from_list([str(part) for part in found["all"] + changes])  # unknown keys raise
        assert all(DATASET_REGISTRY.get(name) for name in cfg.DATASETS.TESTS)
        config.check(cfg)


@pytest.mark.today_only
def test_a_row_is_trained_once(study, main, written, make_cfg, tmp_path, monkeypatch, capsys):
    (tmp_path / "base.yml").write_text(make_cfg({"MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}).dump())
    path = written({"base": "base.yml", "all": ["SOLVER.MAX_EPOCH", 2], "rows": {"a row": RIB}})
    assert main(path, "--seeds", "3", "--bfloat16", "--jobs", "1") == 0
    first = capsys.readouterr().out
    assert "a row, seed 3: SyntheticReIDTiny mAP" in first and "| a row | 1 | " in first
    assert first.count("| occluded: mAP | ") == 1 and first.count("\n| ---") == 1
    (kept,) = (tmp_path / "logs" / "study" / "one" / "train_bfloat16").glob("a-row-3/study.json")
    assert json.loads(kept.read_text())["results"]["information"] > 0
    assert sorted(kept.parent.glob("*.p*")) == []  # neither checkpoints nor half of a file

    monkeypatch.setattr(study.subprocess, "Popen", lambda *a, **k: pytest.fail("trained again"))
    assert main(path, "--seeds", "3", "--bfloat16") == 0
    assert capsys.readouterr().out.strip() in first


def test_a_study_that_is_ended_takes_its_trainings_along(study, written, tools, tmp_path):
    """One trains, and says who it is; two more wait for it."""
    (tmp_path / "tools").unlink()  # a folder in place of the link
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "train_net.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch()\n"
        "time.sleep(600)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tools / 'research')!r})\n"
        "import pathlib, study\n"
        f"study.REPOSITORY = pathlib.Path({str(tmp_path)!r})\n"
        "study.main()\n"
    )
    path = written({"base": "b", "rows": {"a": []}})
    command = [sys.executable, "-c", code, str(path), "--seeds", "0", "1", "2", "--jobs", "1"]
    with subprocess.Popen(command) as process:
        while not list(tmp_path.glob("*.pid")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 1
    (training,) = tmp_path.glob("*.pid")
    with pytest.raises(ProcessLookupError):
        os.kill(int(training.stem), 0)


def test_a_plot_has_the_means_and_their_errors(plot_study):
    # mAP of 60 and 70 has the mean 65, the standard deviation sqrt(50), the standard error 5.
    assert plot_study.points(RESULTS, [0, 1], "Large")["none"] == pytest.approx((65.0, 5.0))
    gains = plot_study.points(RESULTS, [0, 1], "Large", "none")
    assert gains["DCS"] == pytest.approx((2.5, 1.5))
