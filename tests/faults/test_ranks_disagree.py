"""Processes that were set up apart: each must end, and say which of them is the odd one."""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from fastreid.engine import DefaultTrainer

from fastreid_rib.integration.run import agreement

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_apart.py"
RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
PATIENCE = 8


@pytest.fixture
def train_apart(make_cfg, tmp_path):
    """Starts processes with configs and environments of their own; their outputs and codes."""

    def run(changes, environments=({}, {}), limit=240):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        processes = []
        for rank, (change, environment) in enumerate(zip(changes, environments)):
            path = tmp_path / f"config{rank}.yml"
            path.write_text(make_cfg({**RIB, "SOLVER.MAX_EPOCH": 1, **change}).dump())
            command = [sys.executable, SCRIPT, rank, len(changes), port, PATIENCE]
            processes.append(
                subprocess.Popen(
                    [str(part) for part in [*command, "--config-file", path]],
                    env=dict(os.environ, ARM="1", **environment),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        end = time.monotonic() + limit
        try:
            outputs = [p.communicate(timeout=max(end - time.monotonic(), 1))[0] for p in processes]
        finally:
            for process in processes:
                process.kill()
        return outputs, [process.returncode for process in processes]

    return run


def test_other_settings_on_ranks(train_apart):
    other = {"MODEL.LOSSES.RIB.NUM_CLUSTERS": 5, "MODEL.ATTENTION.NAME": "SE"}
    outputs, codes = train_apart([{}, other])
    for output in outputs:
        assert "MODEL.LOSSES.RIB.NUM_CLUSTERS is 0 on rank 0; 5 on rank 1" in output, output
        assert "MODEL.ATTENTION.NAME is '' on rank 0; 'SE' on rank 1" in output, output
    assert all(codes), codes


@pytest.fixture
def store(monkeypatch, tmp_path):
    """The store at which two processes met, seen by the first, which believes in the second."""
    store = dist.FileStore(str(tmp_path / "store"), 2)
    monkeypatch.setattr(agreement, "_store", lambda: store)
    monkeypatch.setattr(agreement, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(agreement, "_FAREWELL", 0.2)
    monkeypatch.setattr(agreement, "PATIENCE", 0.5)
    monkeypatch.setattr(agreement, "_rounds", itertools.count(1))
    return store


def test_version_and_settings_go_through_the_store(store, make_cfg):
    cfg = make_cfg(RIB)
    other = dict(agreement.settings(cfg), **{"fastreid-rib": "0.0.1"})
    agreement._say(store, "fastreid_rib/settings/1/1", json.dumps(other))
    with pytest.raises(agreement.RanksDisagreeError, match="'0.0.1' on rank 1") as caught:
        agreement.compare_settings(cfg)
    assert "BETA" not in str(caught.value)
    agreement._say(store, "fastreid_rib/settings/2/1", json.dumps(agreement.settings(cfg)))
    agreement.compare_settings(cfg)


def test_a_silent_rank_is_an_error_only_where_the_plugin_is_in_use(store, make_cfg, caplog):
    start = time.monotonic()
    with pytest.raises(agreement.RanksDisagreeError, match="rank 1 of 2 says nothing"):
        agreement.compare_settings(make_cfg(RIB))
    agreement.compare_settings(make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropyLoss",)}))
    assert "rank 1 of 2 says nothing" in caplog.text
    assert time.monotonic() - start < 30


def test_another_number_of_identities_is_told_before_the_model_is_made(make_cfg, monkeypatch):
    monkeypatch.setattr(agreement, "exchange", lambda own: [(own,), (700,)])
    with pytest.raises(agreement.RanksDisagreeError, match="751 on rank 0; 700 on rank 1"):
        DefaultTrainer.auto_scale_hyperparams(make_cfg(RIB), 751)
