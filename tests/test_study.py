"""The study: a table that can be checked by hand, runs that are made once, errors that say why."""

import argparse
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastreid_rib.integration import config

RIB = ["MODEL.LOSSES.NAME", "('CrossEntropy', 'RIB')"]
TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    import study

    monkeypatch.setattr(study, "REPOSITORY", tmp_path)
    return study


@pytest.fixture
def plot_study(study):
    import plot_study

    return plot_study


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


def test_any_row_may_be_compared_with(study):
    heading, _, none, dcs = study.table(RESULTS, [0, 1], "Large", "DCS")
    assert "| mAP - DCS | mINP - DCS |" in heading
    assert "| 40.0 | -2.5 (1.5) | -1.5 (0.5) | 60.0, 70.0 |" in none
    assert "| 41.5 |  |  | 61.0, 74.0 |" in dcs


def test_one_seed_has_no_standard_error(study):
    *_, dcs = study.table(RESULTS, [1], "Large", "none")
    assert dcs == "| DCS | 1 | 74.0 | 80.0 | 41.0 | +4.0 | +1.0 | 74.0 | 3.00 |"


def test_occluded_and_free_queries_have_columns(study):
    results = {
        "none": {0: result(60.0, occluded=50.0, free=80.0), 1: result(60.0, occluded=52.0)},
        "DCS": {0: result(60.0, occluded=53.0, free=79.0), 1: result(60.0, occluded=56.0)},
        "old": {0: result(60.0), 1: result(60.0)},  # kept from before there were parts
    }
    heading, _, none, dcs, old = study.table(results, [0, 1], "Large", "none")
    columns = "| occluded: mAP | mAP - none | free: mAP | mAP - none | mAP by seed |"
    assert columns in heading
    assert "| 51.0 |  | 80.0 of 1 |  | 60.0, 60.0 |" in none
    assert "| 54.5 | +3.5 (0.5) | 79.0 of 1 | -1.0 of 1 | 60.0, 60.0 |" in dcs
    assert "|  |  |  |  | 60.0, 60.0 |" in old
    assert len({line.count("|") for line in (heading, none, dcs, old)}) == 1
    assert study.test_sets(results) == ["Small", "Large"]
    assert study.table(results, [0, 1], "Small", "none")[0].count("mAP - none") == 1


def test_a_row_without_results_is_left_out(study):
    results = {"none": {0: None}, "DCS": {0: result(60.0)}}
    lines = study.table(results, [0], "Large", "none")
    assert len(lines) == 3 and lines[2].startswith("| DCS | 1 | 60.0 | 80.0 | 40.0 |  |  | 60.0 |")


@pytest.mark.parametrize(
    "rows, message",
    [
        (["--rows", "c"], "no rows ['c']"),
        (["--against", "c"], "--against must be one of the rows ['a', 'b'], got 'c'"),
        (["--rows", "a", "--against", "b"], "--against must be one of the rows ['a'], got 'b'"),
    ],
)
def test_rows_that_are_not_there(study, tmp_path, capsys, rows, message):
    path = tmp_path / "study.yml"
    path.write_text("{base: b, rows: {a: [], b: []}}")
    with pytest.raises(SystemExit):
        study.parse(argparse.ArgumentParser(), [str(path), *rows])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows: {a: []}", "must hold 'base'"),
        ("[1, 2]", "must hold 'base'"),
        ("{base: b, rows: {a: [MODEL.DEVICE]}}", "row 'a' must be a list of keys and values"),
        ("{base: b, rows: {a: [[MODEL.DEVICE]]}}", "row 'a' must be a list of keys and values"),
        ("{base: b, all: [MODEL.DEVICE], rows: {}}", "'all' must be a list of keys and values"),
    ],
)
def test_what_is_no_study(study, tmp_path, text, message):
    path = tmp_path / "study.yml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        study.load(path)


def test_rows_share_changes(study, tmp_path):
    path = tmp_path / "study.yml"
    path.write_text(
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


@pytest.mark.parametrize("path", sorted((TOOLS / "studies").glob("*.yml")), ids=lambda p: p.stem)
def test_a_study_names_what_exists(study, path):
    import train_bfloat16
    from fastreid.config import CfgNode, get_cfg
    from fastreid.data.datasets import DATASET_REGISTRY

    found = study.load(path)
    assert (TOOLS.parent / found["base"]).exists()
    for changes in found["rows"].values():
        cfg = get_cfg()
        cfg.STUDY = CfgNode(train_bfloat16.STUDY)
        cfg.merge_from_list([str(part) for part in found["all"] + changes])  # unknown keys raise
        assert all(DATASET_REGISTRY.get(name) for name in cfg.DATASETS.TESTS)
        config.check(cfg)


@pytest.mark.today_only
def test_a_row_is_trained_once(study, make_cfg, tmp_path, monkeypatch, capsys):
    (tmp_path / "tools").symlink_to(TOOLS)
    (tmp_path / "base.yml").write_text(make_cfg({"MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}).dump())
    (tmp_path / "one.yml").write_text(
        json.dumps({"base": "base.yml", "all": ["SOLVER.MAX_EPOCH", 2], "rows": {"a row": RIB}})
    )
    monkeypatch.setattr(
        sys, "argv", ["study.py", str(tmp_path / "one.yml"), "--seeds", "3", "--bfloat16"]
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    study.main()
    first = capsys.readouterr().out
    assert "a row, seed 3: SyntheticReIDTiny mAP" in first and "| a row | 1 | " in first
    assert first.count("| occluded: mAP | ") == 1 and first.count("\n| ---") == 1
    (kept,) = (tmp_path / "logs" / "study" / "one" / "train_bfloat16").glob("a-row-3/study.json")
    assert json.loads(kept.read_text())["results"]["information"] > 0

    monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: pytest.fail("trained again"))
    study.main()
    assert capsys.readouterr().out.strip() in first


def test_a_failed_run_is_said_and_left_out(study, tmp_path, monkeypatch, capsys):
    (tmp_path / "tools").symlink_to(TOOLS)
    (tmp_path / "base.yml").write_text("MODEL: {DEVICE: cpu}\n")
    (tmp_path / "one.yml").write_text(
        json.dumps({"base": "base.yml", "rows": {"a": ["NO.KEY", 1]}})
    )
    monkeypatch.setattr(sys, "argv", ["study.py", str(tmp_path / "one.yml"), "--seeds", "3"])
    study.main()
    output = capsys.readouterr().out
    assert "a, seed 3: failed" in output and "NO" in output and "| a |" not in output


def test_what_a_panel_shows(plot_study):
    # mAP of 60 and 70: mean 65, standard deviation 10 / sqrt(2), standard error 5.
    assert plot_study.points(RESULTS, [0, 1, 2], "Large")["none"] == pytest.approx((65.0, 5.0))
    shown = plot_study.points(RESULTS, [0, 1, 2], "Large", against="none")
    assert shown["none"] == (0.0, 0.0) and shown["DCS"] == pytest.approx((2.5, 1.5))
    assert plot_study.points(RESULTS, [1], "Large") == {"none": (70.0, None), "DCS": (74.0, None)}
    assert list(plot_study.points(RESULTS, [2], "Large")) == ["DCS"]


@pytest.fixture
def kept(plot_study, study, tmp_path, monkeypatch):
    """Plots a study of two rows, of which these runs are kept; gives the root of the SVG."""

    def run(runs, *options):
        path, output = tmp_path / "two.yml", tmp_path / "plot.svg"
        path.write_text(json.dumps({"base": "b", "rows": {"none": [], "DCS & more": RIB}}))
        for (row, seed), found in runs.items():
            asked = study.load(path)
            folder = study.folder(asked, row, seed, "train_net.py")
            folder.mkdir(parents=True, exist_ok=True)
            made = {"changes": study.changes(asked, row), "results": found}
            (folder / "study.json").write_text(json.dumps(made))
        command = ["plot_study.py", str(path), "--output", str(output), *options]
        monkeypatch.setattr(sys, "argv", command)
        plot_study.main()
        return output.read_text()

    return run


def texts(svg):
    root = ElementTree.fromstring(svg)
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_has_a_panel_for_each_part(kept, capsys):
    runs = {
        ("none", 0): result(60.0, occluded=50.0, free=80.0),
        ("none", 1): result(62.0, occluded=51.0, free=81.0),
        ("DCS & more", 0): result(64.0, occluded=55.0, free=80.5),
    }
    svg = kept(runs, "--seeds", "0", "1")
    said = texts(svg)
    titles = [text for text in said if re.match("Small|Large", text)]
    assert titles == ["Small", "Large", "Large occluded", "Large free"]
    assert said.count("none") == said.count("DCS & more") == 2  # beside the first of each line
    assert said.count("mAP, percent") == 4
    assert capsys.readouterr().out == "DCS & more: no runs of seed 1; tools/study.py makes them\n"
    assert kept({}, "--seeds", "0", "1") == svg  # the same bytes again
    against = kept({}, "--seeds", "0", "--against", "none")
    assert texts(against).count("mAP - none") == 4 and against != svg


def test_runs_of_other_settings_are_not_plotted(kept, capsys, tmp_path):
    kept({("none", 0): result(60.0), ("DCS & more", 0): result(61.0)}, "--seeds", "0")
    (stale,) = (tmp_path / "logs").rglob("DCS-more-0/study.json")
    stale.write_text(stale.read_text().replace("RIB", "Triplet"))
    capsys.readouterr()
    kept({}, "--seeds", "0")
    assert capsys.readouterr().out.startswith("DCS & more: no runs of seed 0;")


def test_nothing_to_plot(kept):
    with pytest.raises(SystemExit, match="nothing to plot"):
        kept({}, "--seeds", "7")
