"""Reading data: images to tensors, augmentations, loader workers, errors in the background."""

import atexit
import contextlib
import functools
import inspect
import os
import pickle
import queue
import time
import weakref
from types import ModuleType
from typing import Any, Callable

from fastreid_rib.base.patching import overlay, replace, wrap


def typed_storage_warns() -> bool:
    """Torch 2 deprecates the storage class that FastReID reads bytes with."""
    import torch

    return hasattr(torch, "UntypedStorage") and hasattr(torch, "compile")


def image_to_tensor(module: ModuleType) -> None:
    """Images reach torch through NumPy, with the values and dtypes of FastReID's `to_tensor`.

    Its way warns in every worker on torch 2, and ``np.array(..., copy=False)`` fails on NumPy 2
    for the modes I, I;16, F and 1.

    Args:
        module: ``fastreid.data.transforms.functional``.
    """
    import numpy as np

    types = {"I": np.int32, "I;16": np.int16, "F": np.float32}

    def to_tensor(stock: Callable[..., Any], pic: Any) -> Any:
        if isinstance(pic, np.ndarray):
            return stock(pic)
        # A copy: torch warns about the read-only memory of an image.
        array = np.array(pic).astype(types.get(pic.mode, np.uint8))
        if pic.mode == "1":
            array *= 255
        return stock(array).contiguous()

    wrap(module, "to_tensor", to_tensor)


def bytes_to_tensor(module: ModuleType) -> None:
    """Objects that processes exchange become tensors without the deprecated storage class.

    Args:
        module: ``fastreid.utils.comm``.
    """
    import torch
    import torch.distributed as dist

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def _serialize_to_tensor(data: Any, group: Any) -> Any:
            device = "cpu" if dist.get_backend(group) == "gloo" else "cuda"
            return torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8).to(device)

        return _serialize_to_tensor

    replace(module, "_serialize_to_tensor", make)


def random_affine_renamed() -> bool:
    """Torchvision 0.15 renamed ``resample`` and ``fillcolor``."""
    from torchvision.transforms import RandomAffine

    return "resample" not in inspect.signature(RandomAffine.__init__).parameters


def affine_arguments(module: ModuleType) -> None:
    """``INPUT.AFFINE`` reaches torchvision under the names of today.

    Args:
        module: ``fastreid.data.transforms.build``.
    """
    from torchvision.transforms import InterpolationMode, RandomAffine

    def random_affine(resample: Any, fillcolor: Any, **kwargs: Any) -> RandomAffine:
        # FastReID says resample=False: Pillow's 0, the nearest pixel.
        return RandomAffine(interpolation=InterpolationMode.NEAREST, fill=fillcolor, **kwargs)

    overlay(module, "T", RandomAffine=random_affine)


def test_workers(module: ModuleType) -> None:
    """The test loader starts no more workers than there are cores or DATALOADER.NUM_WORKERS.

    Its number, 4, stands in a default that no config reaches.

    Args:
        module: ``fastreid.data.build``.
    """

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def build_reid_test_loader(*args: Any, **kwargs: Any) -> Any:
            cfg: Any = args[0] if args else kwargs.get("cfg")
            if not hasattr(cfg, "DATALOADER"):
                return stock(*args, **kwargs)
            workers = min(4, os.cpu_count() or 1, cfg.DATALOADER.NUM_WORKERS)
            # FastReID's own two steps: the config's arguments, then the function itself.
            explicit = module._test_loader_from_config(*args, **kwargs)
            return inspect.unwrap(stock)(**dict({"num_workers": workers}, **explicit))

        return build_reid_test_loader

    replace(module, "build_reid_test_loader", make)


def loader_errors(module: ModuleType) -> None:
    """An error while batches are prepared ends the training instead of stopping it for ever.

    It ended the background thread only; the training waited for a batch that never came.

    Args:
        module: ``fastreid.data.data_utils``.
    """

    def run(stock: Callable[..., None], self: Any) -> None:
        try:
            stock(self)
        except Exception as error:  # whatever it is, the main thread is to raise it
            self.error = error
            self.queue.put(None)

    def following(stock: Callable[..., Any], self: Any) -> Any:
        try:
            return stock(self)
        except StopIteration:
            error = getattr(self, "error", None)
            if error is None:
                raise
            raise error from None

    wrap(module.BackgroundGenerator, "run", run)
    wrap(module.BackgroundGenerator, "next", following)


def loader_exit(module: ModuleType) -> None:
    """Background threads of loaders end before the interpreter does.

    Training never ends them. One that is in the middle of a batch when Python shuts down takes the
    whole process down (SIGABRT), and a finished training looks like a failed one to `launch`.

    Args:
        module: ``fastreid.data.data_utils``.
    """
    started: Any = weakref.WeakSet()

    def start(stock: Callable[..., None], self: Any) -> None:
        if not started:
            atexit.register(stop)
        started.add(self)
        stock(self)

    def stop() -> None:
        patience = time.monotonic() + 5.0  # a worker process may be stuck for good
        for thread in list(started):
            thread.exit_event.set()
            while thread.is_alive() and time.monotonic() < patience:
                with contextlib.suppress(queue.Empty):
                    thread.queue.get_nowait()  # it may be waiting for room in there
                thread.join(0.02)

    wrap(module.BackgroundGenerator, "start", start)
