"""People's own pictures in a table: a CSV file with a line for each."""

import csv
import logging
import os
from typing import Dict, List, Sequence, Set, Tuple

from fastreid_rib.base.spelling import did_you_mean
from fastreid_rib.data.own_pictures import SPLITS, Collection, Found, Picture

logger = logging.getLogger(__name__)

COLUMNS = ("path", "identity", "camera", "split", "occluded")
"""Headings of a table; path and identity have to be there."""

_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def read_table(path: str) -> Found:
    """Reads a table: a CSV file with a line of headings, `COLUMNS`, in any order.

    Columns are parted by commas, semicolons or tabs. A camera, a split, or whether a picture is
    occluded (1, yes, true; 0, no, false) may be left empty.

    Args:
        path: of the table; the pictures' paths count from its folder.

    Raises:
        ValueError: the headings are others, a value is none of those expected, two lines say
            different things of a picture, or no picture is there; with file and line.
    """
    collection = Collection(path)
    rows = _rows(path)
    said: Dict[str, Picture] = {}
    seen: Set[Tuple[str, ...]] = set()
    for number, row in rows:
        where = f"{path}, line {number}"
        if not row["path"] or not row["identity"]:
            collection.skip("no path or no identity in the line", where)
            continue
        place = os.path.normpath(os.path.join(os.path.dirname(path), row["path"]))
        picture = _picture(place, row, where)
        other = said.setdefault(place, picture)
        if other._replace(split=None) != picture._replace(split=None):
            raise ValueError(
                f"{where} says {_tells(picture)} of {row['path']}, and an earlier line says "
                f"{_tells(other)}. Expected one identity and camera of a picture: correct one of "
                "the lines."
            )
        if (place, row["split"].lower()) in seen:
            collection.skip("listed before", row["path"])
        elif not os.path.isfile(place):
            collection.skip("no such file", row["path"])
        else:
            collection.add(picture)
        seen.add((place, row["split"].lower()))
    return collection.found()


def _rows(path: str) -> List[Tuple[int, Dict[str, str]]]:
    """The number and the values of each line below the headings."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = file.read().splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"DATASETS.FOLDER.PATH {path} is no text in UTF-8 ({error}). Save it as CSV UTF-8."
        ) from error
    heading = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=heading.count))
    headings = [name.strip().lower() for name in next(reader, [])]
    _check_headings(path, headings)
    rows = []
    for cells in reader:
        row = dict.fromkeys(COLUMNS, "")
        row.update((name, cell.strip()) for name, cell in zip(headings, cells))
        if any(cells):
            rows.append((reader.line_num, row))
    return rows


def _check_headings(path: str, headings: Sequence[str]) -> None:
    missing = [name for name in ("path", "identity") if name not in headings]
    unknown = [name for name in headings if name not in COLUMNS]
    if missing:
        raise ValueError(
            f"The first line of DATASETS.FOLDER.PATH {path} must name the columns path, identity "
            f"and, if they are known, camera, split and occluded, but it is "
            f"{', '.join(headings) or 'empty'}: there is no {' and no '.join(missing)}."
        )
    if len(set(headings)) < len(headings):
        raise ValueError(f"The first line of {path} names a column twice: {', '.join(headings)}.")
    for name in unknown:
        logger.warning(
            "Column %r of %s is not read.%s It may be one of %s.",
            name,
            path,
            did_you_mean(name, COLUMNS),
            ", ".join(COLUMNS),
        )


def _picture(place: str, row: Dict[str, str], where: str) -> Picture:
    for name, value, known in (
        ("split", row["split"], SPLITS),
        ("occluded", row["occluded"], _TRUTH),
    ):
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
