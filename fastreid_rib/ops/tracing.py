"""Whether code is running, or only being recorded by ``torch.compile``."""

import torch

_CAN_COMPILE = hasattr(torch, "compiler")


def is_compiling() -> bool:
    """True while ``torch.compile`` or ``torch.export`` traces; always False before torch 2.1."""
    return _CAN_COMPILE and torch.compiler.is_compiling()
