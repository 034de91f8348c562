"""Reading data: images to tensors, augmentations, loader workers, errors in the background."""

import atexit
import contextlib
import inspect
import pickle
import queue
import time
import weakref
from types import ModuleType
from typing import Any

from fastreid_rib.base.patching import overlay, wrap
from fastreid_rib.compat.repairs import Stock, repair


def typed_storage_warns() -> bool:
    """Torch 2 deprecates the storage class that FastReID reads bytes with."""
    import torch

    return hasattr(torch, "UntypedStorage") and hasattr(torch, "compile")


@repair(
    "fastreid.data.transforms.functional:to_tensor",
    defect="images become tensors by a storage class that torch 2 deprecates (a warning in every "
    "worker) and by np.array(copy=False), which NumPy 2 refuses",
    where="torch >= 2",
    present=typed_storage_warns,
)
def image_tensors(stock: Stock, pic: Any) -> Any:
    """Through NumPy, same values and dtypes."""
    import numpy as np

    if isinstance(pic, np.ndarray):
        return stock(pic)
    types = {"I": np.int32, "I;16": np.int16, "F": np.float32}
    # A copy: torch warns about the read-only memory of an image.
    array = np.array(pic).astype(types.get(pic.mode, np.uint8))
    if pic.mode == "1":
        array *= 255
    return stock(array).contiguous()


@repair(
    "fastreid.utils.comm:_serialize_to_tensor",
    defect="objects sent between processes pass the same deprecated storage class",
    where="torch >= 2",
    present=typed_storage_warns,
)
def exchanged_objects(stock: Stock, data: Any, group: Any) -> Any:
    """Through `torch.frombuffer`."""
    import torch

    device = "cpu" if torch.distributed.get_backend(group) == "gloo" else "cuda"
    return torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8).to(device)


def random_affine_renamed() -> bool:
    """Torchvision 0.15 renamed ``resample`` and ``fillcolor``."""
    from torchvision.transforms import RandomAffine

    return "resample" not in inspect.signature(RandomAffine.__init__).parameters


@repair(
    "fastreid.data.transforms.build",
    defect="INPUT.AFFINE uses argument names that torchvision 0.15 dropped",
    where="torchvision >= 0.14",
    present=random_affine_renamed,
)
def random_affine(module: ModuleType) -> None:
    """Today's names."""
    from torchvision.transforms import InterpolationMode, RandomAffine

    def affine(resample: Any, fillcolor: Any, **kwargs: Any) -> RandomAffine:
        # FastReID says resample=False: Pillow's 0, the nearest pixel.
        return RandomAffine(interpolation=InterpolationMode.NEAREST, fill=fillcolor, **kwargs)

    overlay(module, "T", RandomAffine=affine)


@repair(
    "fastreid.data.data_utils",
    defect="an error while a batch is prepared (an unreadable image) stops training for ever",
)
def loader_errors(module: ModuleType) -> None:
    """The error is raised in the training loop.

    It ended the background thread only; the training waited for a batch that never came.
    """

    def run(stock: Stock, self: Any) -> None:
        try:
            stock(self)
        except Exception as error:  # whatever it is, the main thread is to raise it
            self.error = error
            self.queue.put(None)

    def following(stock: Stock, self: Any) -> Any:
        try:
            return stock(self)
        except StopIteration:
            error = getattr(self, "error", None)
            if error is None:
                raise
            raise error from None

    wrap(module.BackgroundGenerator, "run", run)
    wrap(module.BackgroundGenerator, "next", following)


_started: Any = weakref.WeakSet()


@repair(
    "fastreid.data.data_utils:BackgroundGenerator.start",
    defect="a background thread that is preparing a batch when Python ends aborts the process",
)
def loader_exit(stock: Stock, self: Any) -> None:
    """The threads are ended first.

    Training never ends them, and `launch` takes a process that was aborted for a failed one.
    """
    if not _started:
        atexit.register(_stop)
    _started.add(self)
    stock(self)


def _stop() -> None:
    patience = time.monotonic() + 5.0  # a worker process may be stuck for good
    for thread in list(_started):
        thread.exit_event.set()
        while thread.is_alive() and time.monotonic() < patience:
            with contextlib.suppress(queue.Empty):
                thread.queue.get_nowait()  # it may be waiting for room in there
            thread.join(0.02)
