"""What looks at a network or draws numbers and leaves things as they were."""

import contextlib
import random
from typing import Any, Iterator, List, Mapping, NamedTuple, Tuple


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
    """Evaluation mode without gradients; the mode of every submodule comes back after."""
    import torch

    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


class Run(NamedTuple):
    """One run of a module: its name, the shapes of its first input and of its output."""

    name: Any
    read: Tuple[int, ...]
    written: Tuple[int, ...]


def runs(network: Any, images: Any, modules: Mapping[Any, Any]) -> List[Run]:
    """Evaluates a network once and lists the runs of some of its modules, in order."""
    found: List[Run] = []
    hooks = []
    for name, module in modules.items():

        def note(module: Any, args: Any, output: Any, name: Any = name) -> None:
            found.append(Run(name, tuple(args[0].shape), tuple(output.shape)))

        hooks.append(module.register_forward_hook(note))
    try:
        with evaluated(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
