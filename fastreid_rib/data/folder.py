"""FolderReID: people's own pictures as a data set in FastReID's registry.

    DATASETS:
      NAMES: ("FolderReID",)
      TESTS: ("FolderReID",)
      FOLDER:
        PATH: "my_pictures"     # IDENTITY/picture.jpg, or a CSV file

docs/guide/data.md says which layouts are understood. Importing this module registers it.
"""

import logging
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Set

from fastreid.data.datasets.bases import ImageDataset

from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import log_left_out, missing, named
from fastreid_rib.data import register
from fastreid_rib.data.own_pictures import (
    GALLERY,
    QUERY,
    SPLITS,
    TRAIN,
    Collection,
    Picture,
    divide,
)
from fastreid_rib.data.own_table import read_table
from fastreid_rib.data.own_tree import read_tree
from fastreid_rib.settings.declaration import from_keys
from fastreid_rib.settings.run import FolderSettings

logger = logging.getLogger(__name__)

_configured = FolderSettings()


def configure(cfg: Any) -> None:
    """Takes the settings of a config: FastReID makes its data sets without one.

    Raises:
        ValueError: a key out of its range.
    """
    global _configured
    _configured = from_keys(FolderSettings, cfg.DATASETS.FOLDER, "DATASETS.FOLDER")


def extend_loaders(build: Any) -> None:
    """Lets the loaders of ``fastreid.data.build`` say which config they are built from."""

    def built(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cfg = args[0] if args else kwargs.get("cfg")
        if "FOLDER" in getattr(cfg, "DATASETS", {}):
            configure(cfg)
        return stock(*args, **kwargs)

    wrap(build, "build_reid_train_loader", built)
    wrap(build, "build_reid_test_loader", built)


@register
class FolderReID(ImageDataset):
    """Pictures in any folders, or in a table, with identities and cameras of any name.

    FastReID's evaluation leaves out gallery pictures of a query's identity by the query's camera.
    Where cameras are not known each picture has one of its own, so that a query leaves out itself
    and nothing else. The settings are those of the config that a loader was built from last.

    Attributes:
        identities: name of each identity of query and gallery; its number is its place here.

    Args:
        root: data root; FastReID passes the environment variable FASTREID_DATASETS, or "datasets".
        **kwargs: what FastReID's `ImageDataset` takes (transform, mode, combineall, verbose).

    Raises:
        ValueError: a setting is out of its range, or the pictures cannot be understood; with the
            key, the file or the folder, and what to write.
    """

    dataset_name = "FolderReID"

    def __init__(self, root: str = "datasets", **kwargs: Any) -> None:
        self._found = _read(root, _configured)
        pictures = self._found.pictures
        self._divided = not any(picture.split for picture in pictures)
        if self._divided:
            pictures = divide(pictures, _configured.test_share)
        self._parts: Dict[str, List[Picture]] = {TRAIN: [], QUERY: [], GALLERY: []}
        for picture in pictures:
            if picture.split is None:
                self._found.leave_out("no split, where others have one", picture.path)
            for part in SPLITS[picture.split] if picture.split else ():
                kept = picture if _configured.cameras else picture._replace(camera=None)
                self._parts[part].append(kept)
        tested = [*self._parts[QUERY], *self._parts[GALLERY]]
        self.identities = tuple(sorted({picture.identity for picture in tested}))
        known = sorted({p.camera for p in tested if p.camera is not None})
        # A picture without a camera is its own: by its path.
        own = sorted({p.path for p in tested if p.camera is None})
        numbers = {name: number for number, name in enumerate(self.identities)}
        cameras = {key: number for number, key in enumerate([*known, *own])}
        train = [(p.path, p.identity, p.camera or p.path) for p in self._parts[TRAIN]]
        query, gallery = (
            [(p.path, numbers[p.identity], cameras[p.camera or p.path]) for p in self._parts[part]]
            for part in (QUERY, GALLERY)
        )
        super().__init__(named(self.dataset_name, train), query, gallery, **kwargs)

    @property
    def occluded_queries(self) -> Optional[Set[str]]:
        """Paths of the queries in which something stands before the person; None: not known."""
        if all(picture.occluded is None for picture in self._parts[QUERY]):
            return None
        return {picture.path for picture in self._parts[QUERY] if picture.occluded}

    def combine_all(self) -> None:
        """As FastReID's, with each picture once: those in ``test`` are queries and gallery."""
        super().combine_all()
        self._train = list(dict.fromkeys(self.train))

    def show_train(self) -> None:
        """Logs FastReID's table, what was left out, and what deserves a look."""
        super().show_train()
        self._show(self._parts[TRAIN], "training", "each is treated as a separate camera")
        both = {picture.identity for picture in self._parts[TRAIN]} & set(self.identities)
        if both:
            logger.warning(
                "FolderReID: %d identities are in training and test, such as %s: the results will "
                "look better than they are.",
                len(both),
                min(both),
            )

    def show_test(self) -> None:
        """Logs FastReID's table, what was left out, and what counts as a right answer."""
        super().show_test()
        tested = {p.path: p for p in [*self._parts[QUERY], *self._parts[GALLERY]]}
        counts = "every other picture of their identity counts as a match"
        self._show(list(tested.values()), "test", counts)

    def _show(self, pictures: Sequence[Picture], part: str, counts: str) -> None:
        place = self._found.place
        if self._divided:
            logger.info(
                "FolderReID: nothing says which pictures of %s are for training: %d identities "
                "train, %d test, as DATASETS.FOLDER.TEST_SHARE says.",
                place,
                self.get_num_pids(self.train),
                len(self.identities),
            )
        log_left_out("FolderReID", place, self._found.left_out)
        without = sum(picture.camera is None for picture in pictures)
        if without:
            told = "FolderReID: %d of %d %s pictures have no camera: %s."
            logger.info(told, without, len(pictures), part, counts)


def _read(root: str, settings: FolderSettings) -> Collection:
    """What is in the folder or table."""
    if not settings.path:
        raise ValueError(
            "DATASETS.FOLDER.PATH must be a folder of pictures or a CSV file for FolderReID, but "
            "is ''. A relative one counts from the data root (FASTREID_DATASETS)."
        )
    place = os.path.join(root, os.path.expanduser(settings.path))
    if os.path.isdir(place):
        return read_tree(place, settings.pattern)
    if not os.path.isfile(place):
        raise ValueError(f"DATASETS.FOLDER.PATH: {missing(place, 'FolderReID')}")
    if settings.pattern:
        raise ValueError(
            f"DATASETS.FOLDER.PATTERN is for folders, but DATASETS.FOLDER.PATH {place} is a file: "
            "write PATTERN ''."
        )
    return read_table(place)
