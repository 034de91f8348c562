"""FastReID's readers of Market-1501, DukeMTMC and MSMT17, with pictures that people add to them.

The real data sets keep the order, the identities and the cameras that FastReID gives them.
"""

import contextlib
import logging
import os
from types import ModuleType
from typing import Any, List, Tuple

from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import OWN_DATA, missing, named, shots_in
from fastreid_rib.compat.repairs import Stock, repair

logger = logging.getLogger(__name__)


@repair(
    "fastreid.data.datasets.market1501:Market1501.process_dir",
    "fastreid.data.datasets.dukemtmcreid:DukeMTMC.process_dir",
    defect="Market1501 and DukeMTMC read .jpg alone, one digit of a camera and the names of "
    "folders, and assert 6 and 8 cameras, 1501 identities",
    where="own pictures in their layout",
    essential=True,
)
def market_names(stock: Stock, self: Any, dir_path: str, is_train: bool = True) -> Any:
    """Any ending, camera and identity, by the file's name; one that says nothing is an error.

    Where FastReID reads a folder rightly it still does, in its own order.
    """
    from fastreid.data.datasets.market1501 import Market1501

    name, junk = type(self).__name__, -1 if isinstance(self, Market1501) else None
    items: List[Tuple[str, Any, Any]] = [
        (os.path.join(dir_path, shot.name), shot.identity, shot.camera - 1)
        for shot in shots_in(dir_path, name)
        if shot.identity != junk
    ]
    if is_train:
        items = named(self.dataset_name, items)
    with contextlib.suppress(AssertionError, AttributeError, ValueError):  # of other names
        read = stock(self, dir_path, is_train)
        if sorted(read) == sorted(items):
            return read
    logger.info(
        "%s: %d pictures of %s are read by the names of their files; FastReID's own reader would "
        "leave some out or misread them.",
        name,
        len(items),
        dir_path,
    )
    return items


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
        with open(list_path, encoding="utf-8-sig") as file:  # as Windows' editors write it, too
            lines = file.read().splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            path, identity, camera = _listed(line, f"{list_path}, line {number}")
            whole = os.path.join(dir_path, path)
            if not items and not os.path.isfile(whole):
                raise RuntimeError(missing(whole, f"{list_path}, line {number},"))
            items.append((whole, identity, camera - 1))
        return named(self.dataset_name, items) if is_train else items

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
