"""A contact sheet of SyntheticReID: `python -m fastreid_rib.data.contact_sheet FILE.png`.

A row is a test identity: six gallery pictures, one a camera, then its queries.
"""

import sys
from typing import List

import numpy as np
from PIL import Image

from fastreid_rib.data.synthetic_folder import GALLERY, QUERY, Shot, SyntheticSpec, picture, plan

_GAP = 2  # pixels between pictures, before they are enlarged
_WHITE = 255


def contact_sheet(spec: SyntheticSpec, rows: int, enlarge: int) -> np.ndarray:
    """Draws the sheet.

    Args:
        spec: the data set.
        rows: identities to show, the first ones of the test set.
        enlarge: side of the square that a pixel becomes.

    Returns:
        (height, width, 3), uint8, RGB.
    """
    first = spec.num_train_ids + 1
    strips = [_strip(spec, pid) for pid in range(first, first + min(rows, spec.num_test_ids))]
    sheet = np.concatenate(strips)
    return sheet.repeat(enlarge, axis=0).repeat(enlarge, axis=1)


def _strip(spec: SyntheticSpec, pid: int) -> np.ndarray:
    shots = [shot for shot in plan(spec) if shot.pid == pid]
    gallery = {shot.camera: shot for shot in shots if shot.subset == GALLERY}
    row = [gallery[camera] for camera in sorted(gallery)]
    row += [shot for shot in shots if shot.subset == QUERY]
    return np.concatenate([_framed(spec, shot) for shot in row], axis=1)


def _framed(spec: SyntheticSpec, shot: Shot) -> np.ndarray:
    # queries stand a little apart from the gallery
    left = 3 * _GAP if shot.subset == QUERY else _GAP
    frame = ((_GAP, _GAP), (left, _GAP), (0, 0))
    return np.pad(picture(spec, shot), frame, constant_values=_WHITE)


def main(arguments: List[str]) -> None:
    """Writes the sheet of the default data set to the file that is named."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m fastreid_rib.data.contact_sheet FILE.png")
    # 256 colours make the file a third as large
    Image.fromarray(contact_sheet(SyntheticSpec(), rows=6, enlarge=2)).quantize().save(
        arguments[0], optimize=True
    )


if __name__ == "__main__":
    main(sys.argv[1:])
