"""One command searches, derives and trains."""

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


@pytest.fixture
def search(run_script):
    return lambda *args: run_script("-W", "ignore", TOOLS / "search.py", *args, check=False)


@pytest.mark.parametrize("start", [(), ("--start", "config")], ids=["supernet", "config"])
def test_one_command_searches_derives_and_trains(search, tmp_path, start):
    opts = [part for pair in SMALL.items() for part in pair]
    opts += ["OUTPUT_DIR", str(tmp_path / "logs")]
    run = search("--config-file", CONFIG, *start, *opts)
    assert run.returncode == 0, run.stdout[-4000:]
    assert "The search is over" in run.stdout and "| aimed at " in run.stdout
    loading = f"Loading checkpoint from {tmp_path / 'logs' / 'searched.pth'}"
    assert (loading in run.stdout) == (not start)
    assert (tmp_path / "logs" / "searched" / "model_final.pth").is_file()
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "logs" / "searched.yml"))
    assert len(cfg.MODEL.SEARCH.WIDTHS) == 4 and cfg.SEED == 0


def test_a_search_that_fails_does_not_train(search, tmp_path):
    logs = str(tmp_path / "logs")
    run = search("--config-file", CONFIG, "MODEL.SEARCH.TARGET", "0.1", "OUTPUT_DIR", logs)
    assert run.returncode != 0 and "MODEL.SEARCH.TARGET must be >= 0.3" in run.stdout
    assert not (tmp_path / "logs" / "searched").exists()
