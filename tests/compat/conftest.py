"""What FastReID's trainer needs before it is built."""

import logging

import pytest


@pytest.fixture
def as_after_setup(tmp_path):
    """FastReID's trainer writes into a folder, as `default_setup` makes it, and sets up logs."""
    (tmp_path / "logs").mkdir()
    log = logging.getLogger("fastreid")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate, log.level = before
