"""Pictures in the two layouts of the benchmarks: whose each is, and by which camera."""

import os
import re
from typing import List, Tuple

from fastreid_rib.base.pictures import ENDINGS, log_left_out, pictures_below, shots_in

Item = Tuple[str, int, int]
"""Path, identity and camera (from 0) of a picture, as FastReID's data sets list them."""


def named_as_market(folder: str, dataset: str) -> List[Item]:
    """Pictures named as in Market-1501: ``0001_c1s1_000001_00.jpg``.

    Args:
        folder: it holds the pictures themselves.
        dataset: who asks, for messages.

    Raises:
        ValueError: the folder is empty, or the name of a picture says nothing.
    """
    shots = shots_in(folder, dataset)
    return [(os.path.join(folder, s.name), s.identity, s.camera - 1) for s in shots]


def named_by_identity(folder: str, dataset: str, camera: int) -> List[Item]:
    """Pictures whose names begin with the number of the identity: ``001/001_02.tif``.

    Args:
        folder: it holds the pictures, or a folder of them for each identity.
        dataset: who asks, for messages.
        camera: what all of them get; their names say none.

    Raises:
        ValueError: the folder is empty, or the name of a picture says nothing, or something else
            than its folder.
    """
    paths, left_out = pictures_below(folder)
    items = [
        (os.path.join(folder, path), _identity(folder, path, dataset), camera) for path in paths
    ]
    if not items:
        raise ValueError(
            f"{dataset}: {folder} holds no picture. Expected names such as 001/001_01.tif "
            f"({', '.join(ENDINGS)}, in any case)."
        )
    log_left_out(dataset, folder, left_out)
    return items


def _identity(folder: str, path: str, dataset: str) -> int:
    *outer, name = path.split("/")
    number = re.match(r"(\d+)_", name)
    wrong = outer and outer[-1].isdigit() and number and int(outer[-1]) != int(number.group(1))
    if number is None or wrong:
        raise ValueError(
            f"{dataset}: the name of {os.path.join(folder, path)} does not begin with the number "
            f"of an identity{', the one of its folder' if outer else ''}. Expected names such as "
            "001/001_01.tif. Rename the file, or move it out of the folder."
        )
    return int(number.group(1))
