"""People's own pictures in a table: a CSV file with a line for each."""

import csv
import io
import logging
import os
import unicodedata
from typing import Dict, List, Sequence, Set, Tuple

from fastreid_rib.data.own_pictures import SPLITS, Collection, Picture
from fastreid_rib.settings.declaration import did_you_mean

logger = logging.getLogger(__name__)

COLUMNS = ("path", "identity", "camera", "split", "occluded")
"""Headings of a table; path and identity have to be there."""

_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_NOT_KNOWN = ("nan", "none", "null", "na", "n/a", "unknown", "?", "-")  # as pandas and people write
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


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
    files = _Files()
    said: Dict[str, Picture] = {}
    seen: Set[Tuple[str, ...]] = set()
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        if not row["path"] or not row["identity"]:
            collection.leave_out("no path or no identity in the line", where)
            continue
        place = files.find(os.path.dirname(path), row["path"])
        picture = _picture(place, row, where)
        other = said.setdefault(place, picture)
        if other._replace(split=None) != picture._replace(split=None):
            raise ValueError(
                f"{where} says {_tells(picture)} of {row['path']}, and an earlier line says "
                f"{_tells(other)}. Expected one identity and camera of a picture: correct one of "
                "the lines."
            )
        if (place, row["split"].lower()) in seen:
            collection.leave_out("listed before", row["path"])
        elif not os.path.isfile(place):
            collection.leave_out("no such file", row["path"])
        else:
            collection.add(picture)
        seen.add((place, row["split"].lower()))
    return collection.checked()


class _Files:
    """Finds files by names as another system may have written them."""

    def __init__(self) -> None:
        self._listed: Dict[str, Dict[str, List[str]]] = {}

    def find(self, folder: str, path: str) -> str:
        """Where a file is, or would be if it is not there."""
        place = os.path.normpath(os.path.join(folder, path))
        if not os.path.exists(place):
            place = os.path.normpath(os.path.join(folder, path.replace("\\", "/")))
        return place if os.path.exists(place) else self._alike(place)

    def _alike(self, place: str) -> str:
        folder, name = os.path.split(place)
        if not name or os.path.exists(place):
            return place
        folder = self._alike(folder)
        if folder not in self._listed:
            names: Dict[str, List[str]] = {}
            for entry in os.listdir(folder) if os.path.isdir(folder) else ():
                names.setdefault(_plain(entry).casefold(), []).append(entry)
            self._listed[folder] = names
        found = self._listed[folder].get(_plain(name).casefold(), [])
        return os.path.join(folder, found[0] if len(found) == 1 else name)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _rows(path: str) -> List[Tuple[int, Dict[str, str]]]:
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
    heading = lines[skipped] if lines[skipped:] else ""
    separator = max(",;\t", key=heading.count)
    reader = csv.reader(lines[skipped:], delimiter=separator, skipinitialspace=True)
    headings = [name.strip().lower() for name in next(reader, [])]
    _check_headings(path, headings)
    rows = []
    for cells in reader:
        number = reader.line_num + skipped
        if any(cells[len(headings) :]):
            raise ValueError(
                f"{path}, line {number} has {len(cells)} values for {len(headings)} columns. Put "
                f'values with {separator!r} in them between quotes: "a{separator}b.jpg".'
            )
        row = dict.fromkeys(COLUMNS, "")
        for name, cell in zip(headings, map(_plain, cells)):
            may_lack = name not in ("path", "identity")
            row[name] = "" if may_lack and cell.lower() in _NOT_KNOWN else cell
        if row["camera"] == "-1":
            row["camera"] = ""
        if any(cells):
            rows.append((number, row))
    return rows


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
        logger.warning(
            "Column %r of %s is not read.%s It may be one of %s.",
            name,
            path,
            did_you_mean(name, COLUMNS),
            ", ".join(COLUMNS),
        )


def _picture(place: str, row: Dict[str, str], where: str) -> Picture:
    for name, known in (("split", SPLITS), ("occluded", _TRUTH)):
        value = row[name]
        if value and value.lower() not in known:
            raise ValueError(
                f"{where}: expected {name} to be empty or one of {', '.join(known)}, got "
                f"{value!r}.{did_you_mean(value, known)}"
            )
    return Picture(
        place,
        row["identity"],
        row["camera"] or None,
        row["split"].lower() or None,
        _TRUTH.get(row["occluded"].lower()),
    )


def _tells(picture: Picture) -> str:
    camera = f" by camera {picture.camera}" if picture.camera else ""
    occluded = {True: ", occluded", False: ", free", None: ""}[picture.occluded]
    return f"identity {picture.identity}{camera}{occluded}"
