"""What torch.compile is to leave alone. Import it while it compiles: this loads the compiler."""

from typing import Any, Callable

import torch


@torch.compiler.disable
def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, as without ``torch.compile``."""
    return function(*args, **kwargs)
