"""Loading checkpoints under torch 2.6 and later, which unpickle tensors and plain values only."""

from types import ModuleType
from typing import Any, Callable, List

from .patching import wrap


def loads_weights_only() -> bool:
    """Torch 2.6 made ``weights_only=True`` the default of ``torch.load``."""
    import torch

    return hasattr(torch.serialization, "safe_globals")


def numpy_scalars(module: ModuleType) -> None:
    """Checkpoints with NumPy numbers in them (a metric, an epoch) load, still without code.

    Nothing but NumPy's own numbers and arrays is allowed in addition. A file that holds more is
    refused as before, with an explanation.

    Args:
        module: ``fastreid.utils.checkpoint``.
    """
    import pickle

    import torch

    def load(stock: Callable[..., Any], self: Any, f: str) -> Any:
        with torch.serialization.safe_globals(_numpy_globals()):
            try:
                return stock(self, f)
            except pickle.UnpicklingError as error:
                raise pickle.UnpicklingError(
                    f"{f} holds more than tensors and numbers, and loading it could run code that "
                    f"somebody put there. If you trust its origin, write it anew with "
                    f"`torch.save(torch.load(path, weights_only=False)['model'], path)` under "
                    f"the key 'model'. ({error})"
                ) from error

    wrap(module.Checkpointer, "_load_file", load)


def _numpy_globals() -> List[Any]:
    import numpy as np

    rebuild: Any = [np.ndarray, np.dtype]
    dtypes = getattr(np, "dtypes", None)
    rebuild += [type(np.dtype(c)) for c in "?bBhHiIlLqQefd"] if dtypes else []
    for path in ("numpy.core.multiarray", "numpy._core.multiarray"):
        # Pickles of NumPy 1 and of NumPy 2 name the same two functions differently.
        for name in ("scalar", "_reconstruct"):
            rebuild.append((getattr(_multiarray(), name), f"{path}.{name}"))
    return rebuild


def _multiarray() -> Any:
    import importlib

    import numpy as np

    core = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    return importlib.import_module(f"{core}.multiarray")
