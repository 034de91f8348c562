"""A Market-1501 folder made here, and what FastReID does with its repairs switched off."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_market(root, identities=6, size=(16, 32)):
    """Writes a Market-1501 layout: per identity two cameras with two training shots each."""
    rng = np.random.RandomState(0)
    for split, first, shots in (
        ("bounding_box_train", 1, 2),
        ("query", 1001, 1),
        ("bounding_box_test", 1001, 2),
    ):
        folder = Path(root) / "Market-1501-v15.09.15" / split
        folder.mkdir(parents=True, exist_ok=True)
        for identity in range(identities):
            clothes = rng.randint(0, 255, (2, 1, 3)).repeat(size[1] // 2, 0).repeat(size[0], 1)
            for camera in (1, 2):
                for shot in range(shots):
                    pixels = np.clip(clothes + rng.randn(*clothes.shape) * 20, 0, 255)
                    name = f"{first + identity:04d}_c{camera}s1_{shot:06d}_00.png"
                    image = Image.fromarray(pixels.astype(np.uint8))
                    image.save(folder / name.replace("png", "jpg"))
    return str(root)


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    return write_market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def as_after_setup(tmp_path):
    """FastReID's trainer writes into a folder, as `default_setup` makes it, and sets up logs."""
    (tmp_path / "logs").mkdir()
    log = logging.getLogger("fastreid")
    before = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate, log.level = before


@pytest.fixture(scope="session")
def stock(request, tmp_path_factory):
    """What FastReID without the repairs in question does: {case: error or value}."""
    from reports import report
    from stock_behaviour import SWITCHED_OFF

    script = Path(__file__).parent / "stock_behaviour.py"
    return report(script, tmp_path_factory.mktemp("stock"), SWITCHED_OFF)
