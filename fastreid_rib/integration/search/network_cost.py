"""What a network costs: parameters and multiply-adds of backbone, attention and head."""

from typing import Any, Dict, NamedTuple, Tuple

import torch
from torch import nn

from fastreid_rib.attention import ATTENTIONS, DCSMask
from fastreid_rib.integration.search.multiply_adds import counted_by_module


class NetworkCost(NamedTuple):
    """Of a part of a network.

    Attributes:
        parameters: how many numbers are learnt.
        multiply_adds: an image, in evaluation.
    """

    parameters: int
    multiply_adds: float


def network_cost(model: Any, size: Tuple[int, int]) -> Dict[str, NetworkCost]:
    """Counts the parts of a meta-architecture.

    Args:
        model: built by FastReID.
        size: rows and columns of an image.

    Returns:
        "backbone", "attention" and "head" (what is neither: heads, and branches as MGN has them;
        the classifier of the training identities is among its parameters and not run in
        evaluation), and "in all".

    Raises:
        ImportError: fvcore is not installed.
    """
    adds = counted_by_module(model, torch.zeros(1, 3, *size, device=model.device))
    kinds = (*ATTENTIONS.values(), DCSMask)
    attended = [
        name
        for name, module in model.named_modules()
        if name.split(".")[-1] == "attention" and isinstance(module, kinds)
    ]
    modules = dict(model.named_modules())
    whole = NetworkCost(_parameters(model), adds[""])
    attention = _sum([NetworkCost(_parameters(modules[name]), adds[name]) for name in attended])
    backbone = _sum(
        [NetworkCost(_parameters(model.backbone), adds["backbone"])]
        + [
            NetworkCost(-_parameters(modules[name]), -adds[name])
            for name in attended
            if name.startswith("backbone.")
        ]
    )
    rest = [NetworkCost(-part.parameters, -part.multiply_adds) for part in (backbone, attention)]
    head = _sum([whole, *rest])
    return {"backbone": backbone, "attention": attention, "head": head, "in all": whole}


def _sum(parts: Any) -> NetworkCost:
    return NetworkCost(
        sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
