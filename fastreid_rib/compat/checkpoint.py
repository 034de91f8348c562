"""Checkpoints: written whole or not at all, read without running code, errors with advice."""

import errno
import os
from types import ModuleType
from typing import Any, Callable

from fastreid_rib.base.patching import overlay, wrap
from fastreid_rib.base.safe_reads import checked, loads_weights_only, read_safely, what_to_load
from fastreid_rib.base.whole_files import written_whole


def loads_code() -> bool:
    """Whether this torch's ``torch.load`` calls whatever a file names, unless it is hindered."""
    return not loads_weights_only()


def numpy_scalars(module: ModuleType) -> None:
    """Checkpoints with NumPy numbers in them (a metric, an epoch) load, still without code.

    Nothing but NumPy's own numbers and arrays is allowed in addition. A file that holds more is
    refused as before, with an explanation.

    Args:
        module: ``fastreid.utils.checkpoint``.
    """

    def load(stock: Callable[..., Any], self: Any, f: str) -> Any:
        if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            return stock(self, f)  # torch's own way to say that every file is trusted
        return read_safely(f)

    wrap(module.Checkpointer, "_load_file", load)


def no_code(module: ModuleType) -> None:
    """Checkpoints are read without running code where torch alone would run it.

    Args:
        module: ``fastreid.utils.checkpoint``.
    """

    def without_code(stock: Callable[..., Any], self: Any, f: str) -> Any:
        return read_safely(f)

    wrap(module.Checkpointer, "_load_file", without_code)


def told_errors(module: ModuleType) -> None:
    """A checkpoint that cannot be read is named, and the newest beside it that can.

    Args:
        module: ``fastreid.utils.checkpoint``.
    """

    def load_file(stock: Callable[..., Any], self: Any, f: str) -> Any:
        return checked(f, lambda: stock(self, f))

    def load(stock: Callable[..., Any], self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                errno.ENOENT, f"There is no such checkpoint. {what_to_load(path)}", path
            )
        return stock(self, path, *args, **kwargs)

    wrap(module.Checkpointer, "_load_file", load_file)
    wrap(module.Checkpointer, "load", load)


def whole_files(module: ModuleType) -> None:
    """Checkpoints, and the file that names the last one, are written whole or not at all.

    FastReID writes to the final name: whoever dies in between leaves half a file, over a good one
    in the case of model_best.pth. ``torch.save`` reports a full disk as "unexpected pos".

    Args:
        module: ``fastreid.utils.checkpoint``.
    """
    stock_open = module.PathManager.open

    def open_whole(path: str, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and "://" not in path:
            return written_whole(path, mode)
        return stock_open(path, mode, *args, **kwargs)

    overlay(module, "PathManager", open=open_whole)
