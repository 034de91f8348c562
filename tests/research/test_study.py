"""The study: a table that can be checked by hand, runs that are made once, errors that say why."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

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
    heading, _, none, _ = study.table(RESULTS, [0, 1], "Large", "DCS")
    assert "| mAP - DCS | mINP - DCS |" in heading
    assert "| 40.0 | -2.5 (1.5) | -1.5 (0.5) | 60.0, 70.0 |" in none
    *_, dcs = study.table(RESULTS, [1], "Large", "none")  # one seed has no standard error
    assert dcs == "| DCS | 1 | 74.0 | 80.0 | 41.0 | +4.0 | +1.0 | 74.0 | 3.00 |"
    lines = study.table(RESULTS, [2], "Large", "none")  # a row without results is left out
    assert len(lines) == 3 and lines[2].startswith("| DCS | 1 | 99.0 | 80.0 | 90.0 |  |  | 99.0 |")


def test_occluded_and_free_queries_have_columns(study):
    results = {
        "none": {0: result(60.0, occluded=50.0, free=80.0), 1: result(60.0, occluded=52.0)},
        "DCS": {0: result(60.0, occluded=53.0, free=79.0), 1: result(60.0, occluded=56.0)},
    }
    heading, _, none, dcs = study.table(results, [0, 1], "Large", "none")
    columns = "| occluded: mAP | mAP - none | free: mAP | mAP - none | mAP by seed |"
    assert columns in heading
    assert "| 51.0 |  | 80.0 of 1 |  | 60.0, 60.0 |" in none
    assert "| 54.5 | +3.5 (0.5) | 79.0 of 1 | -1.0 of 1 | 60.0, 60.0 |" in dcs
    assert study.test_sets(results) == ["Small", "Large"]
    assert study.table(results, [0, 1], "Small", "none")[0].count("mAP - none") == 1


def test_what_is_no_study_and_rows_that_are_not_there(study, written, capsys):
    for text, message in (
        ("rows: {a: []}", "must hold 'base'"),
        ("{base: b, rows: {a: [[MODEL.DEVICE]]}}", "row 'a' must be a list of keys and values"),
        ("{base: b, all: [MODEL.DEVICE], rows: {}}", "'all' must be a list of keys and values"),
        ("{base: b, all: text, rows: {}}", "'all' must be a list of keys and values"),
        ("{base: b, rows: {'a, 1': [], a 1: []}}", "rows 'a, 1' and 'a 1' differ in signs alone"),
    ):
        with pytest.raises(SystemExit, match=message):
            study.load(written(text))
    path = str(written("{base: b, rows: {a: [], b: []}}"))
    for options, message in (
        (["--rows", "c"], "no rows ['c']"),
        (["--against", "c"], "--against must be one of the rows ['a', 'b'], got 'c'"),
    ):
        with pytest.raises(SystemExit):
            study.parse(argparse.ArgumentParser(), [path, *options])
        assert message in capsys.readouterr().err


def test_rows_share_changes(study, written):
    path = written(
        """
        base: b
        all: [INPUT.SIZE_TEST, [96, 48]]
        shared: [&long [SOLVER.MAX_EPOCH, 24], &longer [*long, SOLVER.STEPS, [14, 20]]]
        rows: {a: [*longer, MODEL.DEVICE, cpu], b: [MODEL.DEVICE, cpu, *long], c: []}
        """
    )
    found = study.load(path)
    long = ["SOLVER.MAX_EPOCH", 24]
    assert found["rows"] == {  # a value that is a list stays one
        "a": [*long, "SOLVER.STEPS", [14, 20], "MODEL.DEVICE", "cpu"],
        "b": ["MODEL.DEVICE", "cpu", *long],
        "c": [],
    }
    assert study.changes(found, "c") == ["INPUT.SIZE_TEST", "[96, 48]"]


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


def test_a_failed_run_is_said_and_left_out(main, written, tmp_path, capsys):
    (tmp_path / "base.yml").write_text("MODEL: {DEVICE: cpu}\n")
    assert main(written({"base": "base.yml", "rows": {"a": ["NO.KEY", 1]}}), "--seeds", "3") == 1
    output = capsys.readouterr().out
    assert "a, seed 3: failed" in output and "NO" in output and "| a |" not in output


def test_a_study_that_is_ended_takes_its_trainings_along(study, written, tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path / "tools" / "research")!r})
import study, pathlib
study.REPOSITORY = pathlib.Path({str(tmp_path)!r})
study.main()
"""
    (tmp_path / "tools").unlink()
    (tmp_path / "tools" / "research").mkdir(parents=True)
    for name in ("quickstart.py", "research/study.py"):
        (tmp_path / "tools" / name).symlink_to(STUDIES.parents[1] / name)
    # A training that says who it is and never ends, and two more that have to wait for it.
    (tmp_path / "tools" / "train_net.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid()) + '.pid').touch()\n"
        "time.sleep(600)\n"
    )
    path = written({"base": "b", "rows": {"a": []}})
    command = [sys.executable, "-c", code, str(path), "--seeds", "0", "1", "2", "--jobs", "1"]
    with subprocess.Popen(command) as process:
        while not list(tmp_path.glob("*.pid")):
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) == 1
    (training,) = tmp_path.glob("*.pid")
    with pytest.raises(ProcessLookupError):
        os.kill(int(training.stem), 0)


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_has_a_panel_for_each_part(
    plot_study, study, written, tmp_path, monkeypatch, capsys
):
    path, output = (
        written({"base": "b", "rows": {"none": [], "DCS & more": RIB}}),
        tmp_path / "plot",
    )
    runs = {
        ("none", 0): result(60.0, occluded=50.0, free=80.0),
        ("none", 1): result(62.0, occluded=51.0, free=81.0),
        ("DCS & more", 0): result(64.0, occluded=55.0, free=80.5),
        ("DCS & more", 1): result(99.0),
    }
    for (row, seed), found in runs.items():
        asked = study.load(path)
        folder = study.folder(asked, row, seed, "tools/train_net.py")
        folder.mkdir(parents=True)
        # The last one was made with other changes.
        changes = [] if found == result(99.0) else study.changes(asked, row)
        (folder / "study.json").write_text(json.dumps({"changes": changes, "results": found}))

    def plot(*options):
        command = ["plot_study.py", path, "--output", output, "--seeds", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        plot_study.main()
        return output.read_text()

    svg = plot(0, 1)
    assert capsys.readouterr().out == "DCS & more: no runs of seed 1; study.py makes them\n"
    # mAP of 60 and 62 has the mean 61, the standard deviation sqrt(2), the standard error 1.
    asked = {row: {seed: study.kept(study.load(path), row, seed, "tools/train_net.py")
                   for seed in (0, 1)} for row in ("none", "DCS & more")}  # fmt: skip
    assert plot_study.points(asked, [0, 1], "Large")["none"] == pytest.approx((61.0, 1.0))
    assert plot_study.points(asked, [0, 1], "Large", "none")["DCS & more"] == (4.0, None)
    said = texts(svg)
    titles = [text for text in said if re.match("Small|Large", text)]
    assert titles == ["Small", "Large", "Large occluded", "Large free"]
    assert said.count("none") == said.count("DCS & more") == 2  # beside the first of each line
    assert said.count("mAP, percent") == 4
    assert plot(0, 1) == svg  # the same bytes again
    assert texts(plot(0, "--against", "none")).count("mAP - none") == 4
    with pytest.raises(SystemExit, match="nothing to plot"):
        plot(7)
