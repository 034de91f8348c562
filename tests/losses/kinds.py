"""The kinds of RIB with which tests of behaviour in general are run."""

import pytest
import torch

from fastreid_rib.ops import bound, native

PAPER = {
    "center": False,
    "relevance": "paper",
    "form": "clusters",
    "gamma": 0.0,
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
    "momentum": 0.2,
    "refreshes": 2,
    "ramp_epochs": 0,
}
"""Everything that is ours at once."""

every_kind = pytest.mark.parametrize("kind", [PAPER, MOVING], ids=["paper", "moving"])


def kernels(kind):
    """The backend to compare with PyTorch: "cpu", or "torch" too while no kernel takes the kind."""
    log_p = torch.zeros(2) if kind["relevance"] == "full" else None
    one, labels = torch.eye(2), torch.zeros(2).long()
    try:
        bound(one, one, one, labels, 1.0, form=kind["form"], log_p=log_p, backend="cpu")
    except native.Unavailable as error:
        if "not in the kernels yet" in str(error):
            return "torch"
        raise
    return "cpu"
