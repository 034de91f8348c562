"""Small made-up trees of pictures, in the layouts that people and publishers have them in."""

from pathlib import Path

import numpy as np
from PIL import Image

MARKET = "Market-1501-v15.09.15"
DUKE = "DukeMTMC-reID"


def write_picture(path, color=0, size=(16, 32)):
    """A picture of noise around a colour, by its ending: .jpg, .png, .tif and others."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(color)
    pixels = rng.randint(0, 255, 3) + rng.randn(size[1], size[0], 3) * 20
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def write_tree(root, names, size=(16, 32)):
    """Pictures at some paths below a folder; those in folders or names alike look alike."""
    for name in names:
        write_picture(Path(root) / name, color=sum(map(ord, name.split("_c")[0][-6:])), size=size)
    return str(root)


def market_names(
    identities=range(1, 4), cameras=(1, 2), shots=2, ending=".jpg", form="s1_{:06d}_00"
):
    """Names as in Market-1501: 0001_c1s1_000000_00.jpg."""
    return [
        f"{identity:04d}_c{camera}{form.format(shot)}{ending}"
        for identity in identities
        for camera in cameras
        for shot in range(shots)
    ]


def in_market(train, query, gallery, folder=MARKET):
    """Paths of names in Market-1501's three folders."""
    parts = {"bounding_box_train": train, "query": query, "bounding_box_test": gallery}
    return [f"{folder}/{part}/{name}" for part, names in parts.items() for name in names]


def small_market(folder=MARKET, **how):
    """Paths of a whole data set in Market-1501's layout: three identities train, three test."""
    test = dict(how, identities=how.pop("tested", range(11, 14)))
    return in_market(
        market_names(**how),
        market_names(**dict(test, shots=1)),
        market_names(**dict(test, shots=2))[1::2],
        folder,
    )
