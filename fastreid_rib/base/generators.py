"""The generators of random numbers of the CPU, left as they were."""

import contextlib
import random
from typing import Iterator


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
