"""The kinds of RIB with which tests of behaviour in general are run."""

import pytest

PAPER = {
    "center": False,
    "relevance": "paper",
    "form": "clusters",
    "gamma": 0.0,
    "smoothing": 0.0,
    "momentum": 0.0,
    "refreshes": 1,
    "ramp_epochs": 0,
}
"""As published: tests by hand stand on it, whatever the defaults become."""

MOVING = {
    "center": True,
    "relevance": "full",
    "form": "embedding",
    "gamma": 0.0,
    "smoothing": 0.1,
    "momentum": 0.2,
    "refreshes": 2,
    "ramp_epochs": 0,
}
"""Everything that is ours at once."""

every_kind = pytest.mark.parametrize("kind", [PAPER, MOVING], ids=["paper", "moving"])
