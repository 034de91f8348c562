"""People's own pictures in a tree of folders."""

import os
import re
import unicodedata
from typing import Dict, Optional, Pattern, Union

from fastreid_rib.base.pictures import pictures_below
from fastreid_rib.data.own_pictures import GALLERY, SPLITS, Collection, Picture

_NAME = re.compile(r"(.+?)_c(\d+)", re.IGNORECASE)
_CAMERA_IN_NAME = re.compile(r"(?:^|[-_ ])c(?:am(?:era)?[-_ ]?)?(\d+)", re.IGNORECASE)
_CAMERA_FOLDER = re.compile(
    r"c\d+|(?:cam|camera|kamera|view|angle|sensor|channel)(?:[-_ ]?\d+|[-_ ]\w+|(?-i:[A-Z]))",
    re.IGNORECASE,
)
_NOBODY_S_FOLDER = re.compile(  # of a split, or of all pictures
    r"(?:.*[-_ ])?(?:train(?:ing)?|test(?:ing)?|query|probe|gallery|val(?:id(?:ation)?)?)"
    r"(?:set|s)?(?:[-_ ]?\d*|[-_ ].*)"
    r"|(?:image|img|picture|photo|crop|frame|person|pedestrian|vehicle)s?"
    r"|data(?:set)?|all|bbox|jpe?g|png",
    re.IGNORECASE,
)


class _DoubtError(Exception):
    """What a folder is cannot be known; args: why, and the pattern that would say it."""


def read_tree(folder: str, pattern: str = "") -> Collection:
    r"""Reads a tree of folders.

    The first folder may be one of `SPLITS`. Below it the folder is the identity, with folders for
    cameras inside or around it if they are named like cameras (c1, cam1, camera_1); or there is
    none, and the files are named as in Market-1501. A camera may stand in the name of a file, too.

    Args:
        folder: the root of the tree; links are followed, hidden folders are not read.
        pattern: a regular expression for another layout, with the named groups identity, camera
            and split, such as ``(?P<camera>\w+)/(?P<identity>\w+)/``. It is searched in the path of
            each picture below the folder, with ``/`` between folders.

    Raises:
        ValueError: the pattern is none, no picture is there or can be understood, or it is doubtful
            which folder is the identity.
    """
    expression = _compiled(pattern) if pattern else None
    collection = Collection(folder)
    paths, collection.left_out = pictures_below(folder)
    # Archives of Windows unpack to names with backslashes, those of macOS to accents of their own.
    plain = {path: unicodedata.normalize("NFC", path.replace("\\", "/")) for path in paths}
    firsts = (meaning.split("/")[0] for meaning in plain.values() if "/" in meaning)
    has_splits = any(first.lower() in SPLITS for first in firsts)
    in_folders: Dict[str, str] = {}
    path = ""
    try:
        for path, meaning in plain.items():
            read = expression and _searched(meaning, expression)
            read = read or _understood(meaning, has_splits, in_folders)
            if isinstance(read, str):
                collection.leave_out(read, path)
            else:
                collection.add(read._replace(path=os.path.join(folder, *path.split("/"))))
        identities = {picture.identity for picture in collection.pictures}
        if not (expression or has_splits) and len(identities) == 1:
            why = f"all pictures would be of one identity, {identities.pop()!r}"
            raise _DoubtError(why, r"(?P<identity>[^/_.]+)[^/]*$")
    except _DoubtError as doubt:
        why, example = doubt.args
        raise ValueError(
            f"DATASETS.FOLDER.PATH {folder}: {why}, as in {path}. Write the regular expression "
            "DATASETS.FOLDER.PATTERN, which says what the parts of such a path are: for example "
            f"'{'(?P<split>[^/]+)/.*?' if has_splits else ''}{example}' (docs/guide/data.md)."
        ) from None
    return collection.checked()


def _understood(path: str, has_splits: bool, in_folders: Dict[str, str]) -> Union[Picture, str]:
    """What the folders and the name of a picture say, or why they say nothing.

    `in_folders` has the identity that the names of files in a folder say, of those read before.
    """
    *folders, name = path.split("/")
    split: Optional[str] = None
    if has_splits:
        if not folders or folders[0].lower() not in SPLITS:
            return f"in none of the folders {', '.join(SPLITS)}"
        split = folders.pop(0).lower()
    elif any(part.lower() in SPLITS for part in folders):
        return "train or test is not the first folder: write DATASETS.FOLDER.PATH up to it"
    named = _NAME.match(name)
    if not folders:
        if named is None:
            return "no folder, and no name such as anna_c1_17.jpg"
        if named.group(1) == "0000" and SPLITS.get(split or "") != (GALLERY,):
            return "identity 0000 outside of a gallery: nobody, as in Market-1501"
        return Picture(path, named.group(1), named.group(2), split)
    cameras = [part for part in folders if _CAMERA_FOLDER.fullmatch(part)]
    people = [part for part in folders if part not in cameras]
    if len(people) > 1 or len(cameras) > 1:
        return (
            "folders of which it is not clear which is the identity: write DATASETS.FOLDER.PATTERN"
        )
    if not people:
        why = f"{cameras[0]} looks like a camera, and no folder is the identity"
        raise _DoubtError(why, r"(?P<camera>[^/]+)/(?P<identity>[^/_.]+)")
    by_names = r"(?P<identity>[^/]+?)_c(?P<camera>\d+)" if named else r"(?P<identity>[^/_.]+)[^/]*$"
    if _NOBODY_S_FOLDER.fullmatch(people[0]):
        raise _DoubtError(f"{people[0]} does not look like an identity", by_names)
    if cameras:
        return Picture(path, people[0], cameras[0], split)
    if named:
        other = in_folders.setdefault("/".join(path.split("/")[:-1]), named.group(1))
        if other != named.group(1):
            names = f"{other!r} and {named.group(1)!r}"
            raise _DoubtError(f"files in {people[0]} are named like identities {names}", by_names)
    camera = _CAMERA_IN_NAME.search(name)
    return Picture(path, people[0], camera.group(1) if camera else None, split)


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
    groups = sorted(expression.groupindex)
    if "identity" not in groups or not set(groups) <= {"identity", "camera", "split"}:
        came = ", ".join(groups) or "none"
        raise ValueError(f"{expected}, but the named groups of {pattern!r} are: {came}.")
    return expression
