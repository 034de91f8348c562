"""People's own pictures in a table: a CSV file with a line for each."""

import csv
import io
import logging
import os
import unicodedata
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from fastreid_rib.data.own_pictures import SPLITS, Collection, Picture
from fastreid_rib.settings.declaration import did_you_mean

logger = logging.getLogger(__name__)

COLUMNS = ("path", "identity", "camera", "split", "occluded")
"""Headings of a table; path and identity have to be there."""

_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
# as pandas, FastReID and people write
_NOT_KNOWN = ("nan", "none", "null", "na", "n/a", "unknown", "?", "-", "-1")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

_Listed = Dict[str, Dict[str, List[str]]]  # of each folder, its files by names without case


def read_table(path: str) -> Collection:
    """Reads a table: a CSV file with a line of headings, `COLUMNS`, in any order.

    Columns are parted by commas, semicolons or tabs. A camera, a split, or whether a picture is
    occluded (1, yes, true; 0, no, false) may be left empty. Paths may have backslashes, and other
    case or accents than the file's if no other file could be meant.

    Args:
        path: of the table; the pictures' paths count from its folder.

    Raises:
        ValueError: the headings are others, a value is none of those expected, two lines say
            different things of a picture, or no picture is there; with file and line.
    """
    collection = Collection(path)
    listed: _Listed = {}
    said: Dict[str, Picture] = {}
    seen: Set[Tuple[str, Optional[str]]] = set()
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        if not row["path"] or not row["identity"]:
            collection.leave_out("no path or no identity in the line", where)
            continue
        place = _find(os.path.dirname(path), row["path"], listed)
        picture = _picture(place, row, where)
        other = said.setdefault(place, picture)
        if other._replace(split=None) != picture._replace(split=None):
            raise ValueError(
                f"{where} says {_tells(picture)} of {row['path']}, and an earlier line says "
                f"{_tells(other)}. Expected one identity and camera of a picture: correct one of "
                "the lines."
            )
        if (place, picture.split) in seen:
            collection.leave_out("listed before", row["path"])
        elif not os.path.isfile(place):
            collection.leave_out("no such file", row["path"])
        else:
            collection.add(picture)
        seen.add((place, picture.split))
    return collection.checked()


def _find(folder: str, path: str, listed: _Listed) -> str:
    """Where a file is, or would be, whose name another system may have written."""
    places = [os.path.normpath(os.path.join(folder, p)) for p in (path, path.replace("\\", "/"))]
    return next(filter(os.path.exists, places), None) or _alike(places[1], listed)


def _alike(place: str, listed: _Listed) -> str:
    folder, name = os.path.split(place)
    if not name or os.path.exists(place):
        return place
    folder = _alike(folder, listed)
    if folder not in listed:
        listed[folder] = {}
        for entry in os.listdir(folder) if os.path.isdir(folder) else ():
            listed[folder].setdefault(_plain(entry).casefold(), []).append(entry)
    found = listed[folder].get(_plain(name).casefold(), [])
    return os.path.join(folder, found[0] if len(found) == 1 else name)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _rows(path: str) -> Iterator[Tuple[int, Dict[str, str]]]:
    """The number and the values of each line below the headings."""
    with open(path, "rb") as file:
        content = file.read()
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    text = content.decode(encoding, errors="replace")
    if "\0" in text or "\ufffd" in text:
        raise ValueError(
            f"DATASETS.FOLDER.PATH {path} is no text in UTF-8. Save it as CSV UTF-8, or name a "
            "folder."
        )
    lines = list(io.StringIO(text, newline=None))
    skipped = 1 if lines and lines[0].startswith("sep=") else 0  # of Excel
    separator = max(",;\t", key="".join(lines[skipped : skipped + 1]).count)
    reader = csv.DictReader(lines[skipped:], restval="", delimiter=separator, skipinitialspace=True)
    headings = [name.strip().lower() for name in reader.fieldnames or ()]
    _check_headings(path, headings)
    reader.fieldnames = headings
    for cells in reader:
        number, more = reader.line_num + skipped, cells.pop(None, ())
        if any(more):
            raise ValueError(
                f"{path}, line {number} has {len(headings) + len(more)} values for {len(headings)} "
                f"columns. Put values with {separator!r} in them between quotes: "
                f'"a{separator}b.jpg".'
            )
        row = {name: _plain(cells.get(name, "")) for name in COLUMNS}
        for name in ("camera", "split", "occluded"):
            if row[name].lower() in _NOT_KNOWN:
                row[name] = ""
        if any(cells.values()):
            yield number, row


def _check_headings(path: str, headings: Sequence[str]) -> None:
    missing = [name for name in ("path", "identity") if name not in headings]
    if missing:
        raise ValueError(
            f"The first line of DATASETS.FOLDER.PATH {path} must name the columns path, identity "
            f"and, if they are known, camera, split and occluded, but it is "
            f"{', '.join(headings) or 'empty'}: there is no {' and no '.join(missing)}. Expected a "
            "line such as path,identity,camera,split and below it shop/anna-1.jpg,anna,left,train."
        )
    if len(set(headings)) < len(headings):
        raise ValueError(f"The first line of {path} names a column twice: {', '.join(headings)}.")
    for name in set(headings).difference(COLUMNS):
        hint = f"{did_you_mean(name, COLUMNS)} It may be one of {', '.join(COLUMNS)}."
        logger.warning("Column %r of %s is not read.%s", name, path, hint)


def _picture(place: str, row: Dict[str, str], where: str) -> Picture:
    for name, known in (("split", SPLITS), ("occluded", _TRUTH)):
        value = row[name]
        if value and value.lower() not in known:
            raise ValueError(
                f"{where}: expected {name} to be empty or one of {', '.join(known)}, got "
                f"{value!r}.{did_you_mean(value, known)}"
            )
    occluded = _TRUTH.get(row["occluded"].lower())
    split = row["split"].lower() or None
    return Picture(place, row["identity"], row["camera"] or None, split, occluded)


def _tells(picture: Picture) -> str:
    camera = f" by camera {picture.camera}" if picture.camera else ""
    occluded = {True: ", occluded", False: ", free", None: ""}[picture.occluded]
    return f"identity {picture.identity}{camera}{occluded}"
