"""The study: a table that can be checked by hand, runs that are made once, errors that say why."""

import json
import sys
from pathlib import Path

import pytest

from fastreid_rib.modeling import config

RIB = ["MODEL.LOSSES.NAME", "('CrossEntropy', 'RIB')"]
TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    import study

    monkeypatch.setattr(study, "REPOSITORY", tmp_path)
    return study


def result(average, information=None):
    metrics = {"mAP": average, "Rank-1": 80.0, "mINP": 40.0}
    return {"accuracy": {"Small": {}, "Large": metrics}, "information": information}


def test_rows_are_compared_with_the_first_seed_by_seed(study):
    results = {
        "none": {0: result(60.0), 1: result(70.0), 2: None},
        "DCS": {0: result(61.0, 2.0), 1: result(74.0, 3.0), 2: result(99.0, 4.0)},
    }
    *_, none, dcs = study.table(results, [0, 1, 2], "Large")
    assert none == "| none | 65.0 | 80.0 | 40.0 |  | 60.0, 70.0 |  |"
    # Gains of 1 and 4: mean 2.5, standard deviation 3 / sqrt(2), standard error 1.5.
    assert dcs == "| DCS | 78.0 | 80.0 | 40.0 | +2.5 (1.5) | 61.0, 74.0, 99.0 | 3.00 |"


def test_a_row_without_results_is_left_out(study):
    assert len(study.table({"none": {0: result(60.0)}, "DCS": {0: None}}, [0], "Large")) == 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows: {a: []}", "must hold 'base'"),
        ("[1, 2]", "must hold 'base'"),
        ("{base: b, rows: {a: [MODEL.DEVICE]}}", "row 'a' must be a list of keys and values"),
    ],
)
def test_what_is_no_study(study, tmp_path, text, message):
    path = tmp_path / "study.yml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        study.load(path)


def test_the_attention_study_names_what_exists(study):
    from fastreid.config import get_cfg
    from fastreid.data.datasets import DATASET_REGISTRY

    found = study.load(TOOLS / "studies" / "attention.yml")
    assert (TOOLS.parent / found["base"]).exists()
    for changes in found["rows"].values():
        cfg = get_cfg()
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
    assert "a row, seed 3: SyntheticReIDTiny mAP" in first and "| a row | " in first
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
