"""What mode torch is in: autocast, which the products of the loss leave, and tracing."""

import contextlib
from typing import ContextManager

import torch

_CAN_COMPILE = hasattr(torch, "compiler")


def is_compiling() -> bool:
    """True while ``torch.compile`` or ``torch.export`` traces; always False before torch 2.1."""
    return _CAN_COMPILE and torch.compiler.is_compiling()


def full_precision(device: torch.device) -> ContextManager[None]:
    """Context in which matrix products keep the dtype of their operands under autocast.

    At beta = 30 the logits differ by up to 120; bfloat16 would round them by whole nats.

    Args:
        device: device of the operands.
    """
    # Asked first: entering the context costs more than the row kernel of a small batch.
    if device.type in ("cpu", "cuda") and _autocast_is_on(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _autocast_is_on(kind: str) -> bool:
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        return torch.is_autocast_enabled(kind)
    return torch.is_autocast_enabled() if kind == "cuda" else torch.is_autocast_cpu_enabled()
