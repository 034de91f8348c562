"""Checks of what an attention module is made with and what it is given."""

import math

import torch
from torch import Tensor, nn


def check_positive(**settings: float) -> None:
    """Checks settings that are to be > 0 and finite.

    Raises:
        ValueError: one is not; the message names it.
    """
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}")


def check_channels(module: nn.Module, x: Tensor, channels: int, *, tokens: bool = False) -> None:
    """Checks the shape of a module's input.

    Args:
        module: whose input it is, for the message.
        x: to be (B, C, H, W), or (B, N, C) where ``tokens`` says that they will do.
        channels: C.
        tokens: whether tokens will do.

    Raises:
        ValueError: it is something else.
    """
    if torch.jit.is_tracing():  # sizes are tensors there, and comparing them warns
        return
    axis = {4: 1, 3: 2}.get(x.dim()) if tokens else {4: 1}.get(x.dim())
    if axis is None or x.shape[axis] != channels:
        expected = f"(B, {channels}, H, W) maps"
        if tokens:
            expected += f" or (B, N, {channels}) tokens"
        raise ValueError(f"{type(module).__name__} takes {expected}, got {tuple(x.shape)}")
