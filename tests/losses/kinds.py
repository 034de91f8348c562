"""The kinds of RIB with which tests of behaviour in general are run: the shipped one first."""

import functools

import pytest

from fastreid_rib import losses

RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1)
"""RIB from the second epoch on, so that tests need no third."""

PAPER = {"center": False, "relevance": "paper", "smoothing": 0.0}
"""As published: tests by hand stand on it, whatever the defaults become."""

EMBEDDING = {"form": "embedding", "gamma": 0.5}
"""What differs most from the defaults and is ours."""

every_kind = pytest.mark.parametrize(
    "kind", [{}, PAPER, EMBEDDING], ids=["default", "paper", "embedding"]
)
