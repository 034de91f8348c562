"""Data sets that are not there, are empty or cannot be evaluated: errors before training."""

import logging
import os
from types import ModuleType
from typing import Any, Callable, Optional, Sequence

from fastreid_rib.base.generators import generators_kept
from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import missing, unanswered
from fastreid_rib.compat.pictures import read_as_files

logger = logging.getLogger(__name__)


def missing_folders(module: ModuleType) -> None:
    """A folder that a data set lacks is named with what is there instead, and what to write.

    Args:
        module: ``fastreid.data.datasets.bases``.
    """

    def check(stock: Callable[..., None], self: Any, required_files: Any) -> None:
        files = [required_files] if isinstance(required_files, str) else list(required_files)
        for path in files:
            if not os.path.exists(path):
                raise RuntimeError(missing(path, type(self).__name__, files))
        stock(self, required_files)

    wrap(module.Dataset, "check_before_run", check)


def empty_data_set(module: ModuleType) -> None:
    """A training or test set without a picture is named as such; it was a bare assertion.

    Args:
        module: ``fastreid.data.common``.
    """

    def init(
        stock: Callable[..., None],
        self: Any,
        img_items: Any,
        transform: Any = None,
        relabel: bool = True,
    ) -> None:
        if not len(img_items):
            which = (
                "The training set is empty: no data set of DATASETS.NAMES has training pictures"
                if relabel
                else "A test set is empty: a data set of DATASETS.TESTS has no queries, no gallery"
            )
            raise ValueError(
                f"{which}. Expected pictures; the tables in the log say what was found. Write "
                "another data set, or complete this one."
            )
        stock(self, img_items, transform, relabel)

    wrap(module.CommDataset, "__init__", init)


def word_labels(module: ModuleType) -> None:
    """Identities and cameras of a data set may be words, or words in one and numbers in another.

    Training pictures got numbers already, unless words and numbers could not be sorted; those of
    test sets reached the evaluation as words. What FastReID can work with is left as it is.

    Args:
        module: ``fastreid.data.common``.
    """

    def init(
        stock: Callable[..., None],
        self: Any,
        img_items: Any,
        transform: Any = None,
        relabel: bool = True,
    ) -> None:
        for place in (1, 2):  # identity, camera
            labels = {item[place] for item in img_items}
            words = sum(isinstance(label, str) for label in labels)
            if words and (words < len(labels) or not relabel):
                ordered = sorted(labels, key=lambda label: (isinstance(label, str), label))
                number = {label: i for i, label in enumerate(ordered)}
                img_items = [
                    (*item[:place], number[item[place]], *item[place + 1 :]) for item in img_items
                ]
        stock(self, img_items, transform, relabel)

    wrap(module.CommDataset, "__init__", init)


def test_sets(module: ModuleType) -> None:
    """Test sets are read before training, and refused if no query can be answered.

    FastReID reads them after it has trained, and then asserts that "all query identities do not
    appear in gallery". Trainers that evaluate in a way of their own are left alone.

    Args:
        module: ``fastreid.engine.defaults``.
    """
    trainer = module.DefaultTrainer

    def evaluates_as_fastreid(cls: Any) -> bool:
        return all(
            getattr(getattr(cls, name), "__func__", None) is getattr(trainer, name).__func__
            for name in ("test", "build_evaluator")
        )

    def init(stock: Callable[..., None], self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        self._tests_before = {}  # for the repair damaged-pictures
        if evaluates_as_fastreid(cls):
            for name in cfg.DATASETS.TESTS:
                with generators_kept():  # some data sets draw their queries when they are read
                    loader, queries = cls.build_test_loader(cfg, name)
                items = read_as_files(loader)
                self._tests_before[name] = items[:queries], items[queries:]
        stock(self, cfg, *args, **kwargs)

    def build_test_loader(
        stock: Callable[..., Any], cls: Any, cfg: Any, dataset_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        loader, queries = stock(cls, cfg, dataset_name, *args, **kwargs)
        items = _items(loader)
        if items is not None and evaluates_as_fastreid(cls):
            refuse_unanswerable(dataset_name, items[:queries], items[queries:])
        return loader, queries

    wrap(trainer, "__init__", init)
    wrap(trainer, "build_test_loader", build_test_loader)


def _items(loader: Any) -> Optional[Sequence[Any]]:
    """(path, identity, camera) of what a test loader loads; None for other data sets than these."""
    from fastreid.data.common import CommDataset

    dataset = getattr(loader, "dataset", None)
    items = dataset.img_items if isinstance(dataset, CommDataset) else None
    return items if items is None or all(len(item) == 3 for item in items) else None


def refuse_unanswerable(dataset: str, queries: Sequence[Any], gallery: Sequence[Any]) -> None:
    """Raises if no query of a test set can be answered; a warning tells of those that cannot.

    Args:
        dataset: its name in FastReID's registry.
        queries: (path, identity, camera) of each.
        gallery: the same.

    Raises:
        ValueError: with what was expected, what came, and what to write.
    """
    for part, items in (("query", queries), ("gallery", gallery)):
        if not len(items):
            raise ValueError(
                f"{dataset} has no {part} pictures ({len(queries)} queries, {len(gallery)} in the "
                "gallery): it cannot be evaluated. Write another data set in DATASETS.TESTS, or "
                f"complete this one; with DATASETS.TESTS ('FolderReID',) pictures in a folder test "
                "are both."
            )
    lost = unanswered(queries, gallery)
    if not any(lost):
        return
    known = {item[1] for item in gallery}
    absent = sum(item[1] not in known for item in queries)
    own = sum(lost) - absent
    cameras = sorted({item[2] for item in [*queries, *gallery]}, key=str)
    told = (
        f"{sum(lost)} of the {len(queries)} queries of {dataset} have no right answer in the "
        f"gallery: {own} have their identity there by their own camera alone, which FastReID "
        f"leaves out, and {absent} not at all ({len(cameras)} cameras)."
    )
    if not all(lost):
        logger.warning("%s They do not count.", told)
        return
    raise ValueError(
        f"{told} Expected a gallery with pictures of the queries' identities by other cameras. "
        "Without cameras, or with one, write DATASETS.TESTS ('FolderReID',): there every other "
        "picture of an identity may count as a match (DATASETS.FOLDER.CAMERAS False)."
    )
