"""People's own pictures in a tree of folders."""

import os
import re
from typing import Iterator, List, Optional, Pattern, Union

from fastreid_rib.base.pictures import is_picture
from fastreid_rib.data.own_pictures import SPLITS, Collection, Found, Picture

GROUPS = ("identity", "camera", "split")
"""Named groups of a pattern; identity has to be there."""

_NAME = re.compile(r"(.+?)_c(\d+)")
_CAMERA_IN_NAME = re.compile(r"(?:^|_)c(?:am)?(\d+)", re.IGNORECASE)
_CAMERA_FOLDER = re.compile(r"c(?:am(?:era)?)?[-_]?\d+", re.IGNORECASE)


def read_tree(folder: str, pattern: str = "") -> Found:
    r"""Reads a tree of folders.

    The first folder may be one of `SPLITS`. Below it the folder is the identity, with folders for
    cameras inside or around it if they are named like cameras (c1, cam1, camera_1); or there is
    none, and the files are named as in Market-1501. A camera may stand in the name of a file, too.

    Args:
        folder: the root of the tree; links are followed, hidden folders are not read.
        pattern: a regular expression for another layout, with the named groups `GROUPS`, such as
            ``(?P<camera>\w+)/(?P<identity>\w+)/``. It is searched in the path of each picture below
            the folder, with ``/`` between folders.

    Raises:
        ValueError: the pattern is none, or no picture is there or can be understood.
    """
    expression = _compiled(pattern) if pattern else None
    paths = sorted(_walk(folder))
    has_splits = any("/" in path and path.split("/")[0].lower() in SPLITS for path in paths)
    collection = Collection(folder)
    for path in paths:
        read = _searched(path, expression) if expression else _understood(path, has_splits)
        if isinstance(read, str):
            collection.skip(read, path)
        else:
            collection.add(read._replace(path=os.path.join(folder, *path.split("/"))))
    return collection.found()


def _walk(folder: str) -> Iterator[str]:
    """The paths of all pictures below a folder, with "/" in them."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder around it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in filter(is_picture, names):
            yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")


def _understood(path: str, has_splits: bool) -> Union[Picture, str]:
    """What the folders and the name of a picture say, or why they say nothing."""
    *folders, name = path.split("/")
    split: Optional[str] = None
    if has_splits:
        if not folders or folders[0].lower() not in SPLITS:
            return f"in none of the folders {', '.join(SPLITS)}"
        split = folders.pop(0).lower()
    elif any(part.lower() in SPLITS for part in folders):
        return "train or test is not the first folder: write DATASETS.FOLDER.PATH up to it"
    if not folders:
        named = _NAME.match(name)
        if named is None:
            return "no folder, and no name such as anna_c1_17.jpg"
        return Picture(path, named.group(1), named.group(2), split)
    cameras = [part for part in folders if _CAMERA_FOLDER.fullmatch(part)]
    people = [part for part in folders if part not in cameras]
    if len(folders) == 1:
        camera = _CAMERA_IN_NAME.search(name)
        return Picture(path, folders[0], camera.group(1) if camera else None, split)
    if len(people) == len(cameras) == 1:
        return Picture(path, people[0], cameras[0], split)
    return "folders of which it is not clear which is the identity: write DATASETS.FOLDER.PATTERN"


def _searched(path: str, expression: Pattern[str]) -> Union[Picture, str]:
    """What a pattern finds in the path of a picture, or why it finds nothing."""
    found = expression.search(path)
    if found is None:
        return "DATASETS.FOLDER.PATTERN does not match"
    values = {group: value for group, value in found.groupdict().items() if value}
    if "identity" not in values:
        return "DATASETS.FOLDER.PATTERN finds no identity"
    split = values.get("split", "").lower()
    if split and split not in SPLITS:
        return f"split {split!r} is none of {', '.join(SPLITS)}"
    return Picture(path, values["identity"], values.get("camera"), split or None)


def _compiled(pattern: str) -> Pattern[str]:
    expected = (
        "DATASETS.FOLDER.PATTERN must be '' or a regular expression with the named groups identity "
        r"and, if they are known, camera and split, such as '(?P<camera>\w+)/(?P<identity>\w+)/'"
    )
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{expected}, but {pattern!r} is none: {error}.") from error
    groups: List[str] = sorted(expression.groupindex)
    if "identity" not in groups or not set(groups) <= set(GROUPS):
        came = ", ".join(groups) or "none"
        raise ValueError(f"{expected}, but the named groups of {pattern!r} are: {came}.")
    return expression
