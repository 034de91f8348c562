"""A module tried out in evaluation mode, and left as it was."""

import contextlib
from typing import Any, Iterator


@contextlib.contextmanager
def evaluated(module: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule comes back after.

    Args:
        module: a ``torch.nn.Module``.
    """
    import torch  # not at the top: repairs are made before torch is loaded

    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
