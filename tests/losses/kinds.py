"""The kinds of RIB with which tests of behaviour in general are run: the shipped one first."""

import pytest

PAPER = {"center": False, "relevance": "paper", "smoothing": 0.0}
"""As published: tests by hand stand on it, whatever the defaults become."""

EMBEDDING = {"form": "embedding", "gamma": 0.5}
"""What differs most from the defaults and is ours."""

every_kind = pytest.mark.parametrize(
    "kind", [{}, PAPER, EMBEDDING], ids=["default", "paper", "embedding"]
)
