"""The two layouts of the benchmarks in `occluded` and `cuhk03_np`."""

import logging
import os
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from fastreid.data.datasets.bases import ImageDataset

from fastreid_rib.base.pictures import ENDINGS, is_picture, shots_in

logger = logging.getLogger(__name__)

Item = Tuple[str, int, int]
OCCLUDED, WHOLE = "occluded_body_images", "whole_body_images"


class Benchmark(ImageDataset):
    """A published data set, in a folder of its own below the data root.

    Attributes:
        dataset_name: begins the names of identities in training.
        folders: where it may be below the data root; the first is what the publishers call it.
        published: number of pictures of each part. Another one is a warning: results on a part of
            a benchmark, or on an extended one, do not compare with published ones.
    """

    dataset_name = ""
    folders: Tuple[str, ...] = ()
    published: Dict[str, int] = {}

    @classmethod
    def folder(cls, root: str) -> str:
        """Where it is below the data root, or should be."""
        places = [os.path.join(root, folder) for folder in cls.folders]
        return next(filter(os.path.isdir, places), places[0])

    def show_train(self) -> None:
        """Logs FastReID's table, and whether the pictures are as many as published.

        Raises:
            ValueError: the benchmark has no training pictures.
        """
        name = type(self).__name__
        if "train" not in self.published:
            raise ValueError(
                f"{name} is a test set without training pictures, but DATASETS.NAMES holds it. "
                f"Write DATASETS.NAMES ('Market1501',), as its published results do, and "
                f"DATASETS.TESTS ('{name}',)."
            )
        super().show_train()
        self._compare("train", self.train)

    def show_test(self) -> None:
        """Logs FastReID's table, and whether the pictures are as many as published."""
        super().show_test()
        self._compare("query", self.query)
        self._compare("gallery", self.gallery)

    def _compare(self, part: str, items: Sequence[Any]) -> None:
        if len(items) != self.published[part]:
            logger.warning(
                "%s has %d %s pictures here, and %d as published: results do not compare.",
                type(self).__name__,
                len(items),
                part,
                self.published[part],
            )

    def _named(self, items: Sequence[Item]) -> List[Tuple[str, str, str]]:
        # FastReID trains on names, so that identities of several data sets stay apart
        name = self.dataset_name
        return [(path, f"{name}_{pid}", f"{name}_{camera}") for path, pid, camera in items]


class MarketLayout(Benchmark):
    """``bounding_box_train``, ``query``, ``bounding_box_test``; identity and camera in the names.

    Args:
        root: data root.
        **kwargs: what FastReID's `ImageDataset` takes.

    Raises:
        RuntimeError: a folder is missing.
        ValueError: a folder is empty, or the name of a picture says nothing.
    """

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        """Read the names."""
        folder = self.folder(root)
        parts = [
            os.path.join(folder, part)
            for part in ("bounding_box_train", "query", "bounding_box_test")
        ]
        self.check_before_run([folder, *parts])
        train, query, gallery = map(self._read, parts)
        super().__init__(self._named(train), query, gallery, **kwargs)

    def _read(self, folder: str) -> List[Item]:
        shots = shots_in(folder, type(self).__name__).read
        return [(os.path.join(folder, s.name), s.identity, s.camera - 1) for s in shots]


class SidesLayout(Benchmark):
    """A folder of hidden persons and one of whole ones, which is the gallery; no cameras.

    Pictures stand in a folder for each identity, or directly; their names begin with the number of
    the identity (``001_02.tif``). The two sides count as two cameras, so that every picture of the
    gallery is kept.

    Attributes:
        test: folders of the queries and of the gallery.
        train: the same for training; None: a test set.

    Args:
        root: data root.
        **kwargs: what FastReID's `ImageDataset` takes.

    Raises:
        RuntimeError: a folder is missing.
        ValueError: a folder is empty, or the name of a picture says nothing or something else than
            its folder.
    """

    sides: Tuple[str, str] = (OCCLUDED, WHOLE)
    train_sides: Optional[Tuple[str, str]] = None

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        """Read the names."""
        folder = self.folder(root)
        places = [os.path.join(folder, *side.split("/")) for side in self.sides]
        training = [os.path.join(folder, *side.split("/")) for side in self.train_sides or ()]
        self.check_before_run([folder, *training, *places])
        train = [
            item for camera, place in enumerate(training) for item in self._read(place, camera)
        ]
        query, gallery = (self._read(place, camera) for camera, place in enumerate(places))
        super().__init__(self._named(train), query, gallery, **kwargs)

    @property
    def occluded_queries(self) -> List[str]:
        """Paths of the queries: all of them."""
        return [item[0] for item in self.query]

    def _read(self, folder: str, camera: int) -> List[Item]:
        items = []
        for place, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(filter(is_picture, names)):
                path = os.path.join(place, name)
                items.append((path, self._identity(path, place != folder), camera))
        if not items:
            raise ValueError(
                f"{type(self).__name__}: {folder} holds no picture. Expected names such as "
                f"001/001_01.tif ({', '.join(ENDINGS)}, in any case)."
            )
        return items

    def _identity(self, path: str, in_folder: bool) -> int:
        number = re.match(r"(\d+)_", os.path.basename(path))
        outer = os.path.basename(os.path.dirname(path)) if in_folder else ""
        if number is None or (outer.isdigit() and int(outer) != int(number.group(1))):
            raise ValueError(
                f"{type(self).__name__}: the name of {path} does not begin with the number of an "
                f"identity{' that is the one of its folder' if in_folder else ''}. Expected names "
                "such as 001/001_01.tif. Rename the file, or move it out of the folder."
            )
        return int(number.group(1))
