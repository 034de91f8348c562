"""Contexts after which things are as they were: random generators, the mode of a module."""

import contextlib
import random
from typing import Any, Iterator


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's are afterwards as they were, whatever was drawn from them."""
    import numpy as np  # not at the top: repairs are made before torch is loaded
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextlib.contextmanager
def evaluated(module: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule comes back after.

    Args:
        module: a ``torch.nn.Module``.
    """
    import torch

    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
