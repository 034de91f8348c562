"""Pictures in folders, and what Market-1501's way of naming them says: ``0001_c1s1_000001_00.jpg``.

The identity stands before ``_c`` and the number of the camera behind it; what follows is free.
"""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Files that are taken for pictures, in any case."""

EXAMPLE = "0001_c1s1_000001_00.jpg"
"""A name as in Market-1501, for messages."""

OWN_DATA = "pictures laid out in another way are read by DATASETS.NAMES ('FolderReID',)"
"""What to write instead, for messages."""

_NAME = re.compile(r"([-\d]+)_c(\d+)")


class Shot(NamedTuple):
    """One picture of a folder.

    Attributes:
        name: its file name.
        identity: the number of the person; Market-1501 has -1 for junk and 0 for nobody's pictures.
        camera: the number of the camera, as written.
    """

    name: str
    identity: int
    camera: int


class Shots(NamedTuple):
    """What a folder holds.

    Attributes:
        read: the pictures, in the order of their names.
        left_out: names of pictures that are passed over: beside .jpg pictures, those with another
            ending whose name says nothing, or that repeat the name of a .jpg (masks, copies).
    """

    read: List[Shot]
    left_out: List[str]


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its ending; hidden files (of macOS: ``._x.jpg``) are none."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def shot_of(name: str) -> Optional[Shot]:
    """What the name of a picture says, or None if it is not named as in Market-1501.

    Args:
        name: without its folders, whose names may look like an identity and a camera.
    """
    found = _NAME.search(name)
    try:
        return Shot(name, int(found.group(1)), int(found.group(2))) if found else None
    except ValueError:  # such as 12-7_c1.jpg
        return None


def shots_in(folder: str, dataset: str) -> Shots:
    """Reads a folder that is laid out as Market-1501's.

    Args:
        folder: it holds the pictures themselves.
        dataset: who asks, for messages.

    Raises:
        ValueError: no picture is there, or one whose name says neither identity nor camera; with
            the file or folder, what was expected and what to write.
    """
    names = sorted(name for name in os.listdir(folder) if is_picture(name))
    plain = {os.path.splitext(name)[0] for name in names if name.endswith(".jpg")}
    read, left_out, odd = [], [], []
    for name in names:
        shot, extra = shot_of(name), plain and not name.endswith(".jpg")
        if extra and (shot is None or os.path.splitext(name)[0] in plain):
            left_out.append(name)
        elif shot is None:
            odd.append(name)
        else:
            read.append(shot)
    if odd:
        raise ValueError(
            f"{dataset}: the name of {os.path.join(folder, odd[0])}{_and_others(odd)} says neither "
            f"identity nor camera. Expected names such as {EXAMPLE}. Rename such files, or move "
            f"them out of the folder; {OWN_DATA}."
        )
    if not read:
        raise ValueError(f"{dataset}: {_what_is_there(folder)}; {OWN_DATA}.")
    return Shots(read, left_out)


def missing(path: str, dataset: str, expected: Sequence[str] = ()) -> str:
    """The message for a file or folder of a data set that is not there.

    Args:
        path: what is not there.
        dataset: who asks for it.
        expected: everything that it asks for.
    """
    there = os.path.abspath(path)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    names = sorted(name for name in os.listdir(there) if not name.startswith("."))
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    needs = f" It needs {', '.join(expected)}." if len(expected) > 1 else ""
    return (
        f'"{path}" is not found: {dataset} expects it there.{needs} {there} holds '
        f"{found or 'nothing'}. Put the data set there, or write another data root "
        f"(FASTREID_DATASETS, now {os.environ.get('FASTREID_DATASETS', 'datasets')!r}); {OWN_DATA}."
    )


def unanswered(queries: Sequence[Sequence[Any]], gallery: Sequence[Sequence[Any]]) -> List[bool]:
    """Which queries have no right answer: no gallery picture of their identity by another camera.

    Args:
        queries: (path, identity, camera) of each.
        gallery: the same.
    """
    cameras: Dict[Any, Set[Any]] = {}
    for _, identity, camera in gallery:
        cameras.setdefault(identity, set()).add(camera)
    return [not cameras.get(identity, set()) - {camera} for _, identity, camera in queries]


def _and_others(names: Sequence[str]) -> str:
    return f" (and of {len(names) - 1} others)" if len(names) > 1 else ""


def _what_is_there(folder: str) -> str:
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    if folders:
        return (
            f"{folder} holds no picture but {len(folders)} folders, such as {min(folders)}. "
            f"Expected the pictures themselves, such as {EXAMPLE}"
        )
    what = f"of its {len(names)} files, such as {min(names)}, none is a picture" if names else ""
    return (
        f"{folder} {what or 'is empty'}. Expected pictures such as {EXAMPLE} "
        f"({', '.join(ENDINGS)}, in any case)"
    )
