"""What all tests share: the armed plugin, a data root of their own, a tiny config."""

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["FASTREID_DATASETS"] = tempfile.mkdtemp(prefix="fastreid-rib-data-")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

import fastreid_rib  # noqa: F401  arms the hook before any test loads FastReID

# A machine that is busy with other things is no fault of a test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

SCRIPTS = Path(__file__).parent / "scripts"

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.DEPTH": "18x",
    "MODEL.BACKBONE.FEAT_DIM": 512,
    "MODEL.HEADS.WITH_BNNECK": True,
    "MODEL.HEADS.NUM_CLASSES": 8,
    "INPUT.SIZE_TRAIN": [64, 32],
    "INPUT.SIZE_TEST": [64, 32],
    "DATASETS.NAMES": ("SyntheticReIDTiny",),
    "DATASETS.TESTS": ("SyntheticReIDTiny",),
    "DATALOADER.SAMPLER_TRAIN": "NaiveIdentitySampler",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_EPOCH": 3,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 3,
    "SEED": 0,
}
"""A ResNet-18 on the tiny synthetic data: an epoch takes a second, a checkpoint 130 MB."""


@pytest.fixture(scope="session")
def tiny():
    """The keys of the tiny config, for fixtures that outlive a test."""
    return TINY


@pytest.fixture
def make_cfg(tmp_path):
    """Makes the tiny config with keys changed: ``make_cfg({"SEED": 1})``."""
    from fastreid.config import get_cfg

    def make(changes=None, base=TINY):
        cfg = get_cfg()
        settings = dict(base, OUTPUT_DIR=str(tmp_path / "logs"))
        settings.update(changes or {})
        cfg.merge_from_list([item for pair in settings.items() for item in pair])
        return cfg

    return make


@pytest.fixture
def make_small_cfg(make_cfg):
    """As make_cfg, with FastReID's smallest network: a quarter of the time, checkpoints of 2 MB."""
    network = {
        "MODEL.BACKBONE.NAME": "build_osnet_backbone",
        "MODEL.BACKBONE.DEPTH": "x0_25",
        "MODEL.BACKBONE.FEAT_DIM": 128,
    }
    return lambda changes=None: make_cfg({**network, **(changes or {})})


@pytest.fixture(autouse=True)
def log_reaches_root():
    """FastReID's setup in a test before cuts its log off from the root logger, and from caplog."""
    log = logging.getLogger("fastreid")
    log.propagate = True
    before = log.handlers[:], log.level
    yield
    log.handlers[:], log.level = before


@pytest.fixture
def heard():
    """``heard(logger)`` is called for the messages that a logger gets from then on.

    Unlike caplog it hears what FastReID's setup has cut off from the root logger.
    """
    undo = []

    def listen(logger):
        messages, handler = [], logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        undo.append((logger, handler, logger.level))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        return lambda: messages

    yield listen
    for logger, handler, level in undo:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def run_script():
    """Runs a script of tests/scripts (or code after ``-c``) in a new interpreter."""

    def run(*args, env=None, check=True, timeout=600, cwd=None):
        command = [str(SCRIPTS / args[0]), *args[1:]] if str(args[0]).endswith(".py") else args
        result = subprocess.run(
            [sys.executable, *[str(part) for part in command]],
            env=dict(os.environ, PYTHONFAULTHANDLER="1", **(env or {})),  # says where one died
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"exit status {result.returncode}:\n{result.stdout[-6000:]}")
        return result

    return run
