"""One command searches, derives and trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastreid.config import get_cfg

TOOLS = Path(__file__).resolve().parent.parent / "tools"
CONFIG = TOOLS.parent / "configs" / "search" / "synthetic.yml"
SMALL = {
    "DATASETS.NAMES": "('SyntheticReIDTiny',)",
    "DATASETS.TESTS": "('SyntheticReIDTiny',)",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.IMS_PER_BATCH": "16",
    "SOLVER.MAX_EPOCH": "2",
    "SOLVER.WARMUP_ITERS": "0",
    "TEST.EVAL_PERIOD": "2",
    "MODEL.SEARCH.WARMUP_SHARE": "0.0",
    "SEED": "0",
}


def search(*args):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(TOOLS / "search.py"), *args],
        env=dict(os.environ, PYTHONFAULTHANDLER="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )


@pytest.mark.parametrize("start", [(), ("--start", "config")], ids=["supernet", "config"])
def test_one_command_searches_derives_and_trains(tmp_path, start):
    opts = [part for pair in SMALL.items() for part in pair]
    opts += ["OUTPUT_DIR", str(tmp_path / "logs")]
    run = search("--config-file", str(CONFIG), *start, *opts)
    assert run.returncode == 0, run.stdout[-4000:]
    assert "The search is over" in run.stdout and "| aimed at " in run.stdout
    loading = f"Loading checkpoint from {tmp_path / 'logs' / 'searched.pth'}"
    assert (loading in run.stdout) == (not start)
    assert (tmp_path / "logs" / "searched" / "model_final.pth").is_file()
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "logs" / "searched.yml"))
    assert len(cfg.MODEL.SEARCH.WIDTHS) == 4 and cfg.SEED == 0


def test_a_search_that_fails_is_not_gone_on_with(tmp_path):
    logs = str(tmp_path / "logs")
    run = search("--config-file", str(CONFIG), "MODEL.SEARCH.TARGET", "0.1", "OUTPUT_DIR", logs)
    assert run.returncode != 0 and "MODEL.SEARCH.TARGET must be >= 0.3" in run.stdout
    assert not (tmp_path / "logs" / "searched").exists()


def test_the_benchmark_of_a_supernet(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(TOOLS))
    import benchmark
    from benchmarks import search

    name = "the paper's, DEPTH 0.25x"
    monkeypatch.setattr(search, "BACKBONES", {name: search.BACKBONES[name]})
    monkeypatch.setattr(search, "BATCH", 8)
    path = tmp_path / "numbers.json"
    command = ["benchmark.py", "search", "--pairs", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    (rounds,) = json.loads(path.read_text())["search"]["rounds"].values()
    assert len(rounds) == 2 and all(min(times.values()) > 0 for times in rounds)
    assert all(set(times) == {"widest", "supernet", "half"} for times in rounds)
    assert "step of supernet / widest" in capsys.readouterr().out
