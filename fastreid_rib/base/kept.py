"""What looks at a network or draws numbers and leaves things as they were."""

import contextlib
import random
from typing import Any, Iterator, List, Mapping, Sequence, Tuple


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
def evaluated(module: Any, device: Any = None) -> Iterator[None]:
    """Evaluation mode without gradients, on a device; modes and device come back after.

    Networks are tried out where they are going to run: syncBN knows GPUs only in torch before 2.0.
    """
    import torch

    modes = [(part, part.training) for part in module.modules()]
    home = None if device is None else next(module.parameters()).device
    module.eval().to(device)
    try:
        with torch.no_grad():
            yield
    finally:
        module.to(home)
        for part, training in modes:
            part.training = training


def runs(network: Any, images: Any, modules: Mapping[Any, Any]) -> List[Tuple[Any, Sequence[int]]]:
    """Evaluates a network once, where the images are: what some of its modules gave, in order.

    Returns:
        The name in `modules` and the shape of the output, for each run of one of them.
    """
    found: List[Tuple[Any, Sequence[int]]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, args, output, name=name: found.append((name, tuple(output.shape)))
        )
        for name, module in modules.items()
    ]
    try:
        with evaluated(network, images.device):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
