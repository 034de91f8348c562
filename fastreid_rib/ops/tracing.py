"""Whether code is running, or only being recorded by ``torch.compile``."""

import torch


def is_compiling() -> bool:
    """True while ``torch.compile`` or ``torch.export`` traces; always False before torch 2.1."""
    compiler = getattr(torch, "compiler", None)
    return compiler is not None and compiler.is_compiling()
