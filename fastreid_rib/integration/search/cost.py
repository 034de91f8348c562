"""What networks cost: multiply-adds of what they really compute, counted by fvcore; parameters."""

import re
from typing import Any, Dict, Mapping, Tuple

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from fastreid_rib.base.kept import evaluated
from fastreid_rib.integration.attention.insertion import attached
from fastreid_rib.search import Cost, Space, WidthSearch

COUNTED = ("conv", "linear", "addmm", "matmul", "bmm", "baddbmm", "einsum")
"""Operations of fvcore that are multiply-adds; norms and activations are a percent beside them."""


def counted(module: nn.Module, *inputs: Any) -> Dict[str, float]:
    """Multiply-adds of one evaluation of every submodule, by its path; "": of the whole.

    Raises:
        ImportError: fvcore is not installed; the message says what to write.
    """
    try:
        import fvcore.nn
    except ImportError as error:
        raise ImportError(
            "FLOPs are counted by fvcore, which is not installed. Write: pip install fvcore"
        ) from error
    analysis = fvcore.nn.FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with evaluated(module, inputs[0].device):
        found = analysis.by_module_and_operator()
    return {
        path: float(sum(operators[name] for name in COUNTED)) for path, operators in found.items()
    }


def cost_of(model: Any, space: Space, images: Tensor) -> Cost:
    """What networks of a space cost: the backbone, with attention there and at the head.

    Args:
        model: a meta-architecture with the widest backbone.
        space: the backbone's groups.
        images: (1, 3, H, W) of the size that counts, on the device that it is going to run on.

    Raises:
        ImportError: there is attention to be counted, and no fvcore.
    """
    placed = attached(model)
    adds = counted(model, images.clone()) if placed else {}
    apart = {re.sub(r"^backbone\.", "", path): adds[path] for path in placed}
    return Cost(model.backbone, space, images, apart)


def network_cost(model: Any, size: Tuple[int, int]) -> Dict[str, Tuple[int, float]]:
    """Counts the parameters of a meta-architecture's parts, and their multiply-adds an image.

    Args:
        model: built by FastReID.
        size: rows and columns of an image.

    Returns:
        Both of "backbone", "attention" and "head" (what is neither: heads, and branches as MGN has
        them; the classifier of the training identities is among its parameters and not run in
        evaluation), and "in all".

    Raises:
        ImportError: fvcore is not installed.
    """
    adds = counted(model, torch.zeros(1, 3, *size, device=model.device))

    def of(*paths: str) -> Any:
        modules = [model.get_submodule(path) for path in paths]
        numbers = sum(p.numel() for module in modules for p in module.parameters())
        return np.array([numbers, sum(adds[path] for path in paths)])

    paths = list(attached(model))
    whole, attention = of(""), of(*paths)
    backbone = of("backbone") - of(*(path for path in paths if path.startswith("backbone.")))
    parts = {"backbone": backbone, "attention": attention, "head": whole - backbone - attention}
    return {part: (int(p), float(a)) for part, (p, a) in {**parts, "in all": whole}.items()}


def search_table(search: WidthSearch, derived: Mapping[str, int] = {}) -> str:
    """What the networks of a search cost, and one of some widths if any, in Markdown."""
    cost = search.cost
    networks = {"widest": cost.widest, "aimed at": search.target}
    if derived:
        networks["derived"] = float(cost.of(derived))
    networks["narrowest"] = cost.narrowest
    rows = [(name, number, number / cost.widest) for name, number in networks.items()]
    headers = ("network", "multiply-adds an image", "of the widest")
    return tabulate(rows, headers, "pipe", floatfmt=("", ",.0f", ".3f"))
