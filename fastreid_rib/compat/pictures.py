"""Pictures as files: every colour mode, errors that name the file, all of them before training."""

import contextlib
import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from fastreid_rib.base.patching import overlay, wrap
from fastreid_rib.compat.repairs import Stock, repair

logger = logging.getLogger(__name__)

Item = Tuple[str, Any, Any]
"""Path, identity and camera of a picture, as FastReID's data sets list them."""

Tests = Dict[str, Tuple[Sequence[Item], Sequence[Item]]]
"""Queries and gallery of each test set."""

_MAY_MOVE = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff")
_DARK = 4096  # of 65536: whose brightest value is below holds 12 bits or fewer, at an unknown scale
_CONVERT = "Convert it to 8 bits, as RGB or grey, or leave it out"


@repair(
    "fastreid.data.data_utils",
    defect="pictures with transparency, a palette, CMYK, 16 bits or 1 bit fail in the first batch, "
    "or are read as others than they are",
    where="own pictures",
    essential=True,
)
def colour_modes(module: ModuleType) -> None:
    """All are read as RGB of 8 bits, of several frames the first.

    Values of an unknown range are an error with the file. FastReID gives the network as many
    channels as the file has.
    """
    from PIL import Image

    def open_as_rgb(file: Any, *args: Any, **kwargs: Any) -> Any:
        return as_rgb(Image.open(file, *args, **kwargs))

    overlay(module, "Image", open=open_as_rgb)


def as_rgb(image: Any) -> Any:
    """A picture of Pillow as RGB, or as grey of 8 bits; ValueError if its range is not known.

    Transparency is dropped, as ``convert("RGB")`` of Pillow does; 65535 of 16 bits becomes 255.
    """
    from PIL import ImageOps

    if image.mode in ("RGB", "L"):
        return image
    sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM", "JPEG2000")
    with contextlib.suppress(Exception):  # as FastReID: broken EXIF is no reason
        image = ImageOps.exif_transpose(image)  # now: conversion may lose what says that it lies
    if image.mode in ("F", "I") and not (image.mode == "I" and sixteen):
        raise ValueError(f"its values (mode {image.mode}) have no known range. {_CONVERT}")
    if image.mode.startswith("I"):
        return _eight_bits(image)
    if image.mode in ("P", "PA", "La", "RGBa"):  # which have no way of their own to RGB
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _eight_bits(image: Any) -> Any:
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if 0 < values.max() < _DARK:
        raise ValueError(
            f"its brightest value is {values.max()} of 65535 (16 bits): the range in use is not "
            f"known. {_CONVERT}"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


@repair(
    "fastreid.data.data_utils:read_image",
    defect="a picture that is gone, empty or damaged is an error without its name or a hint",
)
def lost_pictures(stock: Stock, file_name: str, *args: Any, **kwargs: Any) -> Any:
    """The error names it and says whether the picture or its folder is gone, and what to do."""
    try:
        return stock(file_name, *args, **kwargs)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise what they like: SyntaxError, too
        # One argument: an error from a worker process is made anew from its text.
        raise OSError(f"{file_name} cannot be read: {_what_happened(file_name, error)}") from error


def _what_happened(path: str, error: Exception) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"{folder} is gone: is the disk with the data root (FASTREID_DATASETS) there?"
    if not os.path.exists(path):
        return "the picture is missing"
    if not os.path.getsize(path):
        return "the picture is empty (0 bytes). Copy it again, or remove it"
    if isinstance(error, ValueError) and _CONVERT in str(error):
        return str(error)
    return f"the picture is damaged ({error}). Copy it again, or remove it"


@repair(
    "fastreid.engine.defaults",
    defect="a damaged picture ends the training when it is met, a damaged test picture ends it "
    "before its last checkpoint; copies of a picture in training and test, or query and gallery, "
    "are not noticed",
)
def damaged_pictures(module: ModuleType) -> None:
    """All are read once before training: an error names those that cannot be; copies are counted.

    It takes as long as the reading of one epoch and of one evaluation, on all cores and ranks.
    """
    unchecked: List[Any] = []  # the trainer that is being made

    def init(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> None:
        unchecked[:] = [self]
        try:
            stock(self, *args, **kwargs)
            check(getattr(getattr(self, "_trainer", None), "data_loader", None))
        finally:
            unchecked.clear()

    def build_train_loader(stock: Stock, cls: Any, *args: Any, **kwargs: Any) -> Any:
        loader = stock(cls, *args, **kwargs)
        check(loader)  # now, before its first batches are read and a network is built
        return loader

    def check(loader: Any) -> None:
        if unchecked:
            tests = unchecked.pop().__dict__.pop("_tests_before", {})
            check_pictures(listed(loader, as_files=True) or (), tests)

    wrap(module.DefaultTrainer, "__init__", init)
    wrap(module.DefaultTrainer, "build_train_loader", build_train_loader)


def listed(loader: Any, as_files: bool = False) -> Optional[Sequence[Item]]:
    """The pictures that a loader loads; None for other data sets than FastReID's.

    With `as_files` those alone that are read file by file, as FastReID does.
    """
    from fastreid.data.common import CommDataset

    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(dataset, CommDataset) or any(len(item) != 3 for item in dataset.img_items):
        return None
    plain = type(dataset).__getitem__ is CommDataset.__getitem__
    plain = plain and all(isinstance(item[0], str) for item in dataset.img_items)
    return dataset.img_items if plain or not as_files else None


def check_pictures(train: Sequence[Item], tests: Tests) -> None:
    """Reads all pictures, and looks for copies. Every rank calls it, with the same pictures.

    Raises:
        OSError: pictures cannot be read; it names some of them.
    """
    began = time.monotonic()
    parts = [train, *(part for test in tests.values() for part in test)]
    paths = sorted({item[0] for items in parts for item in items})
    files = dict(zip(paths, _shared_out(paths)))
    errors = [file.error for file in files.values() if file.error]
    if errors:
        others = f"; and {len(errors) - 5} others" if len(errors) > 5 else ""
        raise OSError(
            f"{len(errors)} of {len(paths)} pictures cannot be used, found before training. "
            + "; ".join(errors[:5])
            + others
        )
    logger.info(
        "All %d pictures can be read (%.0f s; FASTREID_RIB_DISABLE=damaged-pictures leaves out "
        "this check).",
        len(paths),
        time.monotonic() - began,
    )
    moving = [path for path, file in files.items() if file.frames > 1]
    if moving:
        logger.warning(
            "%d pictures have several frames, such as %s: the first one is read.",
            len(moving),
            moving[0],
        )
    of = {path: file.digest for path, file in files.items()}
    for line in _copies(train, tests, of):
        logger.warning("%s", line)


class _File(NamedTuple):
    """What was found in one file."""

    digest: bytes = b""
    frames: int = 1
    error: str = ""


def _shared_out(paths: Sequence[str]) -> List[_File]:
    """Reads all files, each rank a share of them."""
    from fastreid.utils import comm

    rank, size = comm.get_rank(), comm.get_world_size()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        mine = list(pool.map(_read, paths[rank::size]))
    files = [_File()] * len(paths)
    for place, share in enumerate(comm.all_gather(mine)):
        files[place::size] = share
    return files


def _read(path: str) -> _File:
    from fastreid.data import common
    from PIL import Image

    try:
        common.read_image(path)
        frames = 1
        if path.lower().endswith(_MAY_MOVE):
            with Image.open(path) as image:
                frames = getattr(image, "n_frames", 1)
        with open(path, "rb") as file:
            return _File(hashlib.blake2b(file.read(), digest_size=16).digest(), frames)
    except OSError as error:
        return _File(error=str(error))


def _copies(train: Sequence[Item], tests: Tests, of: Dict[str, bytes]) -> List[str]:
    """What is said of pictures that are there more than once; `of` has their contents."""
    first: Dict[bytes, Item] = {}
    known = [(item, first.setdefault(of[item[0]], item)) for item in train]
    twice = [(item[0], other[0]) for item, other in known if item[1] != other[1]]
    found = [(f"{len(twice)} training pictures are the same as one of another identity", twice)]
    for name, (queries, gallery) in tests.items():
        tested = sorted({item[0] for item in [*queries, *gallery]})
        both = [(path, first[of[path]][0]) for path in tested if of[path] in first]
        told = f"{name}: {len(both)} of {len(tested)} test pictures are training pictures, too"
        found.append((f"{told}: the results will look better than they are", both))
        shown: Dict[bytes, List[Item]] = {}
        for item in gallery:
            shown.setdefault(of[item[0]], []).append(item)
        pairs = [(query, item) for query in queries for item in shown.get(of[query[0]], ())]
        wrong = [(query[0], item[0]) for query, item in pairs if query[1] != item[1]]
        right = [  # by the query's own camera it is left out
            (query[0], item[0])
            for query, item in pairs
            if query[1] == item[1] and query[2] != item[2]
        ]
        for copies, meaning in (
            (right, "counts as a right answer: the results look better than they are"),
            (wrong, "counts as wrong: it has another identity"),
        ):
            told = f"{name}: {len({path for path, _ in copies})} of {len(queries)} queries have a"
            found.append((f"{told} copy in the gallery that {meaning}", copies))
    return [f"{told} (such as {pairs[0][0]} and {pairs[0][1]})." for told, pairs in found if pairs]
