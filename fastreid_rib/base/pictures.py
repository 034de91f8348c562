"""Pictures in folders, and what Market-1501's way of naming them says: ``0001_c1s1_000001_00.jpg``.

The identity stands before ``_c`` and the number of the camera after it; what follows is free. What
is left out is counted by its reason, and said.
"""

import logging
import os
import re
from typing import Any, Dict, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

logger = logging.getLogger(__name__)

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"),
)
"""Files that are taken for pictures, in any case."""

HIDDEN = "hidden, or made by a system"
"""Why files such as ``._1.jpg`` and ``Thumbs.db`` are left out."""

LeftOut = Dict[str, List[str]]
"""Files that are left out, by the reason."""

EXAMPLE = "0001_c1s1_000001_00.jpg"
"""A name as in Market-1501, for messages."""

OWN_DATA = "pictures laid out in another way are read by DATASETS.NAMES ('FolderReID',)"
"""What to write instead, for messages."""

_NAME = re.compile(r"([-\d]+)_c(\d+)")
_OF_SYSTEMS = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found"),
    *("$recycle.bin", "system volume information"),
)


class Shot(NamedTuple):
    """One picture of a folder."""

    name: str
    identity: int  # Market-1501 has -1 for junk and 0 for nobody's pictures
    camera: int  # as written


def why_left_out(name: str) -> Optional[str]:
    """Why a file or folder is no picture by its name alone; None: it is one."""
    if name.startswith(".") or name.lower() in _OF_SYSTEMS:
        return HIDDEN
    ending = os.path.splitext(name)[1].lower()
    if ending in ENDINGS:
        return None
    return f"the ending {ending} is not read" if ending else "a name without an ending is not read"


def told(left_out: LeftOut) -> List[str]:
    """A sentence for each reason: how many were left out, and one of them."""
    return [
        f"{len(paths)} left out, {reason} (such as {paths[0]})"
        for reason, paths in left_out.items()
    ]


def log_left_out(dataset: str, place: str, left_out: LeftOut) -> None:
    """Says what is left out, a line for each reason: a warning, except for hidden files."""
    for reason, line in zip(left_out, told(left_out)):
        level = logging.INFO if reason == HIDDEN else logging.WARNING
        logger.log(level, "%s: of %s %s.", dataset, place, line)


def pictures_below(folder: str) -> Tuple[List[str], LeftOut]:
    """Sorted paths of all pictures below a folder, and what is no picture; links are followed.

    Raises:
        OSError: a folder cannot be read.
    """
    paths: List[str] = []
    left_out: LeftOut = {}

    def below(place: str, name: str) -> str:
        return os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")

    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if _is_loop(place, folder):
            folders.clear()
            continue
        for name in sorted(name for name in folders if why_left_out(name) == HIDDEN):
            folders.remove(name)
            left_out.setdefault(HIDDEN, []).append(below(place, name) + "/")
        folders.sort()
        for name in sorted(names):
            reason = why_left_out(name)
            into = left_out.setdefault(reason, []) if reason else paths
            into.append(below(place, name))
    return sorted(paths), left_out


def _raise(error: OSError) -> NoReturn:
    raise error  # os.walk ignores folders that cannot be read


def _is_loop(place: str, root: str) -> bool:
    """Whether a folder is one of those around it, by a link."""
    real = os.path.realpath(place)
    while len(place) > len(root):
        place = os.path.dirname(place)
        if os.path.realpath(place) == real:
            return True
    return False


def shot_of(name: str) -> Optional[Shot]:
    """What the name of a picture says, or None if it is not named as in Market-1501."""
    found = _NAME.search(name)
    try:
        return Shot(name, int(found.group(1)), int(found.group(2))) if found else None
    except ValueError:  # such as 12-7_c1.jpg
        return None


def shots_in(folder: str, dataset: str) -> List[Shot]:
    """The pictures of a folder that is laid out as Market-1501's, in the order of their names.

    Beside .jpg pictures those with another ending are left out if their names say nothing, or
    repeat the name of a .jpg (masks, copies). The log says what is left out.

    Raises:
        ValueError: no picture is there, or one whose name says neither identity nor camera; with
            the file or folder, what was expected and what to write.
    """
    read: List[Shot] = []
    odd: List[str] = []
    left_out: LeftOut = {}
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    plain = {name[:-4] for name in names if name.endswith(".jpg") and not why_left_out(name)}
    for name in names:
        shot, reason = shot_of(name), why_left_out(name)
        extra = plain and not reason and not name.endswith(".jpg")
        if extra and (shot is None or os.path.splitext(name)[0] in plain):
            reason = "beside .jpg pictures, without a name like theirs or with that of one"
        if reason:
            left_out.setdefault(reason, []).append(name)
        elif shot is None:
            odd.append(name)
        else:
            read.append(shot)
    if odd:
        others = f" (and of {len(odd) - 1} others)" if len(odd) > 1 else ""
        raise ValueError(
            f"{dataset}: the name of {os.path.join(folder, odd[0])}{others} says neither "
            f"identity nor camera. Expected names such as {EXAMPLE}. Rename such files, or move "
            f"them out of the folder; {OWN_DATA}."
        )
    if not read:
        raise ValueError(
            f"{dataset}: {folder} has no picture, it holds {_names_in(folder)}. Expected the "
            f"pictures themselves, such as {EXAMPLE} ({', '.join(ENDINGS)}, in any case); "
            f"{OWN_DATA}."
        )
    log_left_out(dataset, folder, left_out)
    return read


def missing(path: str, dataset: str, expected: Sequence[str] = ()) -> str:
    """The message for a file or folder that is not there, of `expected`, which a data set needs."""
    there = os.path.abspath(path)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    needs = f" It needs {', '.join(expected)}." if len(expected) > 1 else ""
    return (
        f'"{path}" is not found: {dataset} expects it there.{needs} {there} holds '
        f"{_names_in(there)}. Put the data set there, or write another data root "
        f"(FASTREID_DATASETS, now {os.environ.get('FASTREID_DATASETS', 'datasets')!r}); {OWN_DATA}."
    )


def named(dataset: str, items: Sequence[Tuple[str, Any, Any]]) -> List[Tuple[str, str, str]]:
    """Path, identity and camera of training pictures, with names that begin with the data set's.

    So identities of several data sets stay apart.
    """
    return [(path, f"{dataset}_{pid}", f"{dataset}_{camera}") for path, pid, camera in items]


def _names_in(folder: str) -> str:
    """Some of what a folder holds, for messages."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more or "nothing"
