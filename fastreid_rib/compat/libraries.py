"""What FastReID takes from Python, torch, torchvision and NumPy and is no longer there."""

import pickle
import sys
from types import ModuleType
from typing import Any, Iterator

from fastreid_rib.base.patching import Overlay, overlay
from fastreid_rib.compat.repairs import Stock, repair

_UNDECLARED = ("six", "matplotlib", "tqdm", "faiss", "tensorboard", "mat4py")


@repair(
    "fastreid.data.build",
    "fastreid.evaluation.testing",
    "fastface.utils_amp",
    defect="three modules import Mapping from collections, which Python 3.10 took away, and names "
    "from torch._six, which torch 1.9 and 2 took away",
    where="Python >= 3.10, torch >= 1.9",
)
def lost_names() -> Iterator[None]:
    """They are lent while those modules load.

    Left in place they would mislead libraries that test ``hasattr(collections, "Mapping")``.
    """
    import collections
    import collections.abc

    found = sys.modules.get("torch._six")
    names = {"string_classes": str, "container_abcs": collections.abc}
    sys.modules["torch._six"] = Overlay(found or ModuleType("torch._six"), **names)
    collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del collections.Mapping, sys.modules["torch._six"]  # type: ignore[attr-defined]
        if found is not None:
            sys.modules["torch._six"] = found


@repair(
    "fastreid.engine",
    "fastreid.utils.visualizer",
    "fastreid.utils.compute_dist",
    "fastretri.retri_evaluator",
    "fastattr.datasets",
    "fastface.face_evaluator",
    defect="packages that FastReID uses and does not declare fail without a hint",
    where="fresh environments",
)
def dependencies() -> Iterator[None]:
    """The error says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _UNDECLARED:
            raise
        package = "faiss-cpu" if error.name == "faiss" else error.name
        raise ModuleNotFoundError(
            f"FastReID needs {error.name}, which its own requirements leave out: "
            f"write `python -m pip install {package}`",
            name=error.name,
        ) from error


@repair(
    "fastreid.data.transforms.functional:to_tensor",
    defect="images become tensors by a storage class that torch 2 deprecates (a warning in every "
    "worker) and by np.array(copy=False), which NumPy 2 refuses",
    where="torch >= 2",
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
)
def exchanged_objects(stock: Stock, data: Any, group: Any) -> Any:
    """Through `torch.frombuffer`."""
    import torch

    device = "cpu" if torch.distributed.get_backend(group) == "gloo" else "cuda"
    return torch.frombuffer(bytearray(pickle.dumps(data)), dtype=torch.uint8).to(device)


@repair(
    "fastreid.data.transforms.build",
    defect="INPUT.AFFINE uses argument names that torchvision 0.15 dropped",
    where="torchvision >= 0.15",
)
def random_affine(module: ModuleType) -> None:
    """Today's names."""
    from torchvision.transforms import InterpolationMode, RandomAffine

    def affine(resample: Any, fillcolor: Any, **kwargs: Any) -> RandomAffine:
        # FastReID says resample=False: Pillow's 0, the nearest pixel.
        return RandomAffine(interpolation=InterpolationMode.NEAREST, fill=fillcolor, **kwargs)

    overlay(module, "T", RandomAffine=affine)


@repair(
    "fastreid.evaluation.rank",
    defect="eval_cuhk03 uses np.bool, which NumPy 1.24 to 1.26 do not have",
    where="NumPy 1.24 to 1.26",
)
def cuhk03_bool(module: ModuleType) -> None:
    """That module alone sees a NumPy with `bool`."""
    overlay(module, "np", bool=bool)


@repair(
    "fastreid.config.defaults",
    defect="configs of projects/NAIC20 have SOLVER.FREEZE_FC_ITERS, which FastReID took away",
)
def retired_keys(module: ModuleType) -> None:
    """The key warns and is ignored."""
    key = "SOLVER.FREEZE_FC_ITERS"
    if "FREEZE_FC_ITERS" not in module._C.SOLVER and not module._C.key_is_deprecated(key):
        module._C.register_deprecated_key(key)
