"""FastReID's readers of Market-1501, DukeMTMC and MSMT17, with pictures that people add to them.

Where FastReID reads a folder or a list rightly it does so itself: the real data sets keep the
order, the identities and the cameras that it gives them.
"""

import glob
import logging
import os
import re
from types import ModuleType
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import OWN_DATA, Shot, missing, shots_in
from fastreid_rib.compat.repairs import Stock, repair

logger = logging.getLogger(__name__)

_STOCK_NAME = re.compile(r"([-\d]+)_c(\d)")


class _Limits(NamedTuple):
    """What FastReID asserts of a data set in Market-1501's layout, from the least to the most."""

    identities: Tuple[float, float]
    cameras: Tuple[int, int]
    junk: Optional[int]  # the identity that is left out, if one is


@repair(
    "fastreid.data.datasets.market1501:Market1501.process_dir",
    defect="Market1501 reads .jpg alone, one digit of a camera and the names of folders, and "
    "asserts 1501 identities and 6 cameras",
    where="own pictures in its layout",
    essential=True,
)
def market_names(stock: Stock, self: Any, dir_path: str, is_train: bool = True) -> Any:
    """Any ending, camera and identity, by the file's name; one that says nothing is an error.

    Where FastReID reads a folder rightly it still does.
    """
    limits = _Limits((0, 1501), (1, 6), junk=-1)
    return _read_by_names(stock, self, dir_path, is_train, limits)


@repair(
    "fastreid.data.datasets.dukemtmcreid:DukeMTMC.process_dir",
    defect="DukeMTMC does the same, and asserts 8 cameras",
    where="own pictures in its layout",
    essential=True,
)
def duke_names(stock: Stock, self: Any, dir_path: str, is_train: bool = True) -> Any:
    """The same; it has no junk."""
    limits = _Limits((-float("inf"), float("inf")), (1, 8), junk=None)
    return _read_by_names(stock, self, dir_path, is_train, limits)


def _read_by_names(stock: Stock, self: Any, dir_path: str, is_train: bool, limits: _Limits) -> Any:
    name = type(self).__name__
    shots = shots_in(dir_path, name)
    if _stock_reads_the_same(dir_path, shots, limits):
        return stock(self, dir_path, is_train)
    items: List[Tuple[str, Any, Any]] = []
    for shot in shots:
        identity, camera = shot.identity, shot.camera - 1
        if identity == limits.junk:
            continue
        path = os.path.join(dir_path, shot.name)
        if is_train:
            prefix = self.dataset_name
            items.append((path, f"{prefix}_{identity}", f"{prefix}_{camera}"))
        else:
            items.append((path, identity, camera))
    logger.info(
        "%s: %d pictures of %s are read by the names of their files; FastReID's own reader would "
        "leave some out or misread them.",
        name,
        len(items),
        dir_path,
    )
    return items


def _stock_reads_the_same(folder: str, shots: Sequence[Shot], limits: _Limits) -> bool:
    if glob.escape(folder) != folder:  # FastReID would take it for a pattern
        return False
    for shot in shots:
        # What FastReID finds: the name of a folder may look like an identity and a camera, too.
        found = _STOCK_NAME.search(os.path.join(folder, shot.name))
        alone = _STOCK_NAME.search(shot.name)
        if found is None or alone is None or found.groups() != alone.groups():
            return False
        taken = shot.name.endswith(".jpg") and int(alone.group(2)) == shot.camera
        (least, most), (first, last) = limits.identities, limits.cameras
        within = least <= shot.identity <= most and first <= shot.camera <= last
        if shot.identity != limits.junk and not (taken and within):
            return False
    return True


@repair(
    "fastreid.data.datasets.msmt17",
    defect="MSMT17 wants exactly one space in a line of its lists and no underscore in a folder's "
    "name, and has bare errors for the rest",
    where="own pictures in its layout",
)
def msmt17_lists(module: ModuleType) -> None:
    """What is clear is read; the error for another line names list and line."""

    def init(stock: Stock, self: Any, root: str = "datasets", **kwargs: Any) -> None:
        places = [os.path.join(root, folder) for folder in module.VERSION_DICT]
        if not any(map(os.path.exists, places)):
            raise RuntimeError(missing(places[0], f"MSMT17 (or {places[1]})"))
        stock(self, root, **kwargs)

    def process_dir(
        stock: Stock, self: Any, dir_path: str, list_path: str, is_train: bool = True
    ) -> Any:
        if not os.path.isfile(list_path):
            raise RuntimeError(missing(list_path, "MSMT17"))
        items: List[Tuple[str, int, int]] = []
        with open(list_path, encoding="utf-8") as file:
            text = file.read()
        as_stock = not text.startswith("\ufeff")  # the mark that Windows' editors begin with
        for number, line in enumerate(text.lstrip("\ufeff").splitlines(), 1):
            if not line.strip():
                as_stock = False
                continue
            path, identity, camera = _listed(line, f"{list_path}, line {number}")
            as_stock = as_stock and _stock_splits(line, path, camera)
            whole = os.path.join(dir_path, path)
            if not items and not os.path.isfile(whole):
                raise RuntimeError(missing(whole, f"{list_path}, line {number},"))
            items.append((whole, identity, camera - 1))
        if as_stock:
            return stock(self, dir_path, list_path, is_train)
        if not is_train:
            return items
        name = self.dataset_name
        return [(path, f"{name}_{pid}", f"{name}_{camera}") for path, pid, camera in items]

    wrap(module.MSMT17, "__init__", init)
    wrap(module.MSMT17, "process_dir", process_dir)


def _listed(line: str, where: str) -> Tuple[str, int, int]:
    """Path, identity and camera of a line of MSMT17's lists."""
    path, identity = (line.strip().replace("\\", "/").rsplit(None, 1) + [""])[:2]
    parts = os.path.basename(path).split("_")
    try:
        return path, int(identity), int(parts[2])
    except (IndexError, ValueError):
        raise ValueError(
            f"{where}: {line.strip()!r} is not a picture and its identity. Expected a line such as "
            "'0000/0000_000_01_0303morning_0008_0.jpg 0', with the camera (01) third in the name "
            f"of the file and a number for the identity. Mend the line, or {OWN_DATA}."
        ) from None


def _stock_splits(line: str, path: str, camera: int) -> bool:
    parts = line.split(" ")
    if len(parts) != 2 or parts[0] != path:
        return False
    fields = path.split("_")
    return len(fields) > 2 and fields[2].isdigit() and int(fields[2]) == camera
