"""The quick start: rows that train side by side, and failures that are said."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture
def quickstart(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    import quickstart

    (tmp_path / "tools").symlink_to(TOOLS)
    monkeypatch.setattr(quickstart, "REPOSITORY", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return quickstart


@pytest.mark.today_only
def test_each_config_gets_its_rows_and_a_failure_spoils_no_other(
    quickstart, make_cfg, tmp_path, monkeypatch, capsys
):
    losses = {"plain": (), "rib": ("RIB",), "broken": ("RIP",)}
    for name, more in losses.items():
        cfg = make_cfg({"SOLVER.MAX_EPOCH": 2, "MODEL.LOSSES.NAME": ("CrossEntropy", *more)})
        (tmp_path / f"{name}.yml").write_text(cfg.dump())
    configs = [str(tmp_path / f"{name}.yml") for name in losses]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--seed", "3", *configs])
    with pytest.raises(SystemExit) as stop:
        quickstart.main()
    assert stop.value.code == 1

    output = capsys.readouterr().out
    heading, *rows, broken, time = output.splitlines()[-7:]
    assert heading.split() == ["SEED", "3", "mAP", "Rank-1", "mINP"]
    assert broken.split() == ["broken", "failed"]
    assert time.endswith("minutes in all")
    named = ("plain", "plain, neck fitted", "rib", "rib, neck fitted")
    for row, name in zip(rows, named):
        percents = row[24:].split()
        assert row[:24].strip() == name and all(0 < float(value) <= 100 for value in percents)
    assert rows[0][24:] != rows[1][24:] and rows[2][24:] != rows[3][24:]
    for name in ("plain", "rib"):
        log = (tmp_path / "logs" / "quickstart" / f"{name}-seed3" / "log.txt").read_text()
        assert ("(rib): RIBLoss" in log) == (name == "rib")
    assert "Did you mean 'RIB'?" in output and "broken: failed, exit 1" in output


def test_the_parts_of_the_queries_are_read(quickstart):
    averages = {"Some": 10.25, "Some occluded": 5.0, "Some free": 20.0}
    lines = []
    for name, average in averages.items():
        lines += ["| Dataset | Rank-1 | mAP | mINP |", "|:--|:--|:--|:--|"]
        lines += [f"| {name} | 1.5 | {average} | 2.5 |"]
    found = quickstart.metrics(lines)
    assert {name: row["mAP"] for name, row in found.items()} == averages
    assert found["Some free"] == {"mAP": 20.0, "Rank-1": 1.5, "mINP": 2.5}
