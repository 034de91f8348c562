"""Checkpoints read without running code, and errors that say what to load instead.

Torch's loader (weights_only) refuses code in pickles from 2.6 on; before that `read_safely` does.
"""

import glob
import importlib
import os
import pickle
import zipfile
from types import FunctionType
from typing import IO, Any, Callable, List

from fastreid_rib.base.patching import Overlay


class CodeInCheckpointError(pickle.UnpicklingError):
    """A file that names more than tensors and plain values, so that loading it could run code."""


def read_safely(path: str) -> Any:
    """What ``torch.load`` gives for a local file of tensors (on the CPU), numbers, plain values.

    Raises:
        CodeInCheckpointError: the file names anything else. Nothing of it was called.
        Exception: whatever torch raises for a file that is damaged or none of its own.
    """
    import torch

    try:
        if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # from 2.6 on
            with torch.serialization.safe_globals(_numpy_globals()):
                return torch.load(path, map_location="cpu", weights_only=True)
        # torch 1.13 has weights_only too, but knows neither NumPy's numbers nor the counter in the
        # state of a MultiStepLR: FastReID's own checkpoints would not load.
        return _load_plainly(path)
    except pickle.UnpicklingError as error:
        if not _is_pickle(path) or os.path.getsize(path) < 8 or "truncated" in str(error):
            raise
        raise CodeInCheckpointError(
            f"{path} holds more than tensors and numbers, and loading it could run code that "
            f"somebody put there. If you trust its origin, write it anew with "
            f"`torch.save({{'model': torch.load(path, weights_only=False)['model']}}, path)`. "
            f"({error})"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """Finds tensors and plain values only."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _PLAIN_NAMES and not _is_torch_type(module, name):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _load_plainly(path: str) -> Any:
    """``torch.load`` with `_PlainUnpickler`, in this call alone.

    It has an argument for that, which torch 1.13.1 takes and then ignores: so a copy of it is
    called, which sees another ``pickle`` than the rest of the process.
    """
    from torch import serialization

    def load(file: IO[bytes], **kwargs: Any) -> Any:
        return _PlainUnpickler(file, **kwargs).load()

    stock: Any = serialization.load
    names = {**vars(serialization), "pickle": Overlay(pickle, Unpickler=_PlainUnpickler, load=load)}
    copy = FunctionType(stock.__code__, names, stock.__name__, stock.__defaults__)
    copy.__kwdefaults__ = stock.__kwdefaults__
    return copy(path, map_location="cpu", weights_only=False)


_PLAIN_NAMES = frozenset(
    f"{module}.{name}"
    for module, names in {
        "collections": ("OrderedDict", "Counter"),
        "_codecs": ("encode",),  # how protocol 2 writes bytes
        "builtins": ("set", "frozenset", "bytearray", "complex"),
        "__builtin__": ("set", "frozenset", "bytearray", "complex"),
        "torch": ("Size", "device"),
        "torch.nn.parameter": ("Parameter",),
        "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"),
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("scalar", "_reconstruct"),
        "numpy._core.multiarray": ("scalar", "_reconstruct"),
    }.items()
    for name in names
)


def _is_torch_type(module: str, name: str) -> bool:
    """Whether it is a dtype of torch or one of its storages, as in ``torch.FloatStorage``."""
    import torch

    found = getattr(torch, name, None) if module == "torch" else None
    return isinstance(found, torch.dtype) or (isinstance(found, type) and name[-7:] == "Storage")


def _is_pickle(path: str) -> bool:
    """Whether a file begins as torch writes it: a zip archive, or a pickle from before 1.6."""
    with open(path, "rb") as file:
        first = file.read(4)
    return not first or first[:1] == b"\x80" or b"PK\x03\x04".startswith(first)


def _numpy_globals() -> List[Any]:
    import numpy as np

    rebuild: Any = [np.ndarray, np.dtype]
    dtypes = getattr(np, "dtypes", None)
    rebuild += [type(np.dtype(c)) for c in "?bBhHiIlLqQefd"] if dtypes else []
    ours = importlib.import_module(
        f"numpy.{'_core' if hasattr(np, '_core') else 'core'}.multiarray"
    )
    for path in ("numpy.core.multiarray", "numpy._core.multiarray"):
        # Pickles of NumPy 1 and of NumPy 2 name the same two functions differently.
        rebuild += [(getattr(ours, name), f"{path}.{name}") for name in ("scalar", "_reconstruct")]
    return rebuild


def read_checkpoint(path: str, read: Callable[[str], Any] = read_safely) -> Any:
    """A checkpoint of FastReID: a dict, its entry "model" a dict.

    Raises:
        ValueError: it is truncated, or something else than a checkpoint.
        CodeInCheckpointError: see `read_safely`.
        OSError: it cannot be opened.
    """
    what = "is truncated or damaged" if _is_pickle(path) else "is no checkpoint"
    try:
        checkpoint = read(path)
    except (MemoryError, CodeInCheckpointError):
        raise
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        raise ValueError(
            f"{path} {what} ({os.path.getsize(path)} bytes; {type(error).__name__}). "
            f"{what_to_load(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        holds = type(checkpoint).__name__
        if isinstance(checkpoint, dict):
            holds = f"dict with the keys {sorted(map(str, checkpoint))[:5]}"
        raise ValueError(
            f"{path} is no checkpoint of FastReID: expected a dict with a state_dict under 'model',"
            f" got a {holds}. A bare state_dict becomes one by "
            "`torch.save({'model': state_dict}, path)`."
        )
    return checkpoint


def what_to_load(path: str) -> str:
    """A sentence on the newest whole checkpoint beside one that cannot be read."""
    folder = os.path.dirname(path)
    beside = glob.glob(os.path.join(glob.escape(folder), "*.pth"))
    # The table of contents of a zip archive comes last: a truncated one has none.
    whole = [name for name in beside if name != path and zipfile.is_zipfile(name)]
    if not whole:
        return "There is no whole checkpoint beside it: start anew, without --resume."
    newest = os.path.basename(max(whole, key=os.path.getmtime))
    return (
        f"The newest whole checkpoint beside it is {newest}: to resume from that, write its name "
        f"into {os.path.join(folder, 'last_checkpoint')}."
    )
