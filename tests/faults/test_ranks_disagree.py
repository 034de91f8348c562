"""Processes that were set up apart: each must end, and say which of them is the odd one."""

import json
import os
import socket
import subprocess
import sys
import threading
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
    monkeypatch.setattr(agreement, "_rounds", {})
    return store


def test_version_and_settings_go_through_the_store(store, make_cfg):
    cfg = make_cfg(RIB)
    other = dict(agreement.settings(cfg), **{"fastreid-rib": "0.0.1"})
    agreement._say(store, "fastreid_rib/settings/1/1", json.dumps(other))
    with pytest.raises(agreement.RanksDisagreeError, match="'0.0.1' on rank 1") as caught:
        agreement.compare_settings(cfg, patience=5)
    assert "BETA" not in str(caught.value)
    agreement._say(store, "fastreid_rib/settings/2/1", json.dumps(agreement.settings(cfg)))
    agreement.compare_settings(cfg, patience=5)


def test_a_silent_rank_is_an_error_only_where_the_plugin_is_in_use(store, make_cfg, caplog):
    start = time.monotonic()
    with pytest.raises(agreement.RanksDisagreeError, match="rank 1 of 2 says nothing"):
        agreement.compare_settings(make_cfg(RIB), patience=0.5)
    agreement.compare_settings(make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropyLoss",)}), patience=0.5)
    assert "rank 1 of 2 says nothing" in caplog.text
    assert time.monotonic() - start < 30


def test_another_number_of_identities_is_told_before_the_model_is_made(store, make_cfg):
    agreement._say(store, "fastreid_rib/data/1/1", '{"identities in the training data": 700}')
    with pytest.raises(agreement.RanksDisagreeError, match="751 on rank 0; 700 on rank 1"):
        DefaultTrainer.auto_scale_hyperparams(make_cfg(RIB), 751)


def test_a_rank_may_read_its_data_slowly(store, monkeypatch, caplog):
    """It is waited for as long as torch.distributed waits, and said; nobody blames the plugin."""
    monkeypatch.setattr(agreement, "PATIENCE", 0.1)
    own = {"identities in the training data": 751}
    late = threading.Timer(
        0.5, lambda: agreement._say(store, "fastreid_rib/data/1/1", json.dumps(own))
    )
    late.start()
    agreement.compare("data", own)
    late.join()
    assert f"rank 1 and its data, {store.timeout.total_seconds():.0f} s at most" in caplog.text
    with pytest.raises(agreement.RanksDisagreeError, match="within 0.2 s: it has ended, .* reads"):
        agreement.compare("data", own, patience=0.2)


def test_alone_nothing_is_compared(make_cfg, monkeypatch):
    monkeypatch.setattr(agreement, "_store", None)
    agreement.compare_settings(make_cfg(RIB))
    agreement.compare("data", {"identities in the training data": 3})
    without_number = make_cfg({"MODEL.HEADS.NUM_CLASSES": 0, "OUTPUT_DIR": ""})
    cfg = DefaultTrainer.auto_scale_hyperparams(without_number, 9)
    assert cfg.MODEL.HEADS.NUM_CLASSES == 9
