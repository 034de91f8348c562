"""FastReID's data sets: their own pictures in its layouts, and errors before training, not after.

Where FastReID reads a folder or a list rightly it does so itself: the real data sets keep the
order, the identities and the cameras that it gives them.
"""

import glob
import logging
import os
import re
from types import ModuleType
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from fastreid_rib.base.generators import generators_kept
from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import OWN_DATA, Shot, missing, shots_in, unanswered

logger = logging.getLogger(__name__)

_STOCK_NAME = re.compile(r"([-\d]+)_c(\d)")


class _Limits(NamedTuple):
    """What FastReID asserts of a data set in Market-1501's layout.

    Attributes:
        identities: the smallest and the largest number of a person.
        cameras: the same of a camera.
        junk: the identity that is passed over, if one is.
    """

    identities: Tuple[float, float]
    cameras: Tuple[int, int]
    junk: Optional[int]


def market_names(module: ModuleType) -> None:
    """Market1501 reads what people add to it: other endings, cameras, identities, any data root.

    FastReID's sees ``.jpg`` alone, cuts the number of a camera to its first digit, asserts at most
    1501 identities and 6 cameras, and looks for both in the whole path.

    Args:
        module: ``fastreid.data.datasets.market1501``.
    """
    _read_by_names(module.Market1501, _Limits((0, 1501), (1, 6), junk=-1))


def duke_names(module: ModuleType) -> None:
    """DukeMTMC reads the same; it has no junk and asserts 8 cameras.

    Args:
        module: ``fastreid.data.datasets.dukemtmcreid``.
    """
    _read_by_names(module.DukeMTMC, _Limits((-float("inf"), float("inf")), (1, 8), junk=None))


def _read_by_names(dataset: Any, limits: _Limits) -> None:
    def process_dir(
        stock: Callable[..., Any], self: Any, dir_path: str, is_train: bool = True
    ) -> Any:
        name = type(self).__name__
        shots, left_out = shots_in(dir_path, name)
        if left_out:
            logger.warning(
                "%s: %d pictures of %s are left out, such as %s: they stand beside .jpg pictures, "
                "and repeat the name of one or say neither identity nor camera.",
                name,
                len(left_out),
                dir_path,
                left_out[0],
            )
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
            "%s: %d pictures of %s are read by the names of their files; FastReID's own reader "
            "would leave some out or misread them.",
            name,
            len(items),
            dir_path,
        )
        return items

    wrap(dataset, "process_dir", process_dir)


def _stock_reads_the_same(folder: str, shots: Sequence[Shot], limits: _Limits) -> bool:
    if glob.escape(folder) != folder:  # FastReID would take it for a pattern
        return False
    for shot in shots:
        found = _STOCK_NAME.search(os.path.join(folder, shot.name))
        if not shot.name.endswith(".jpg") or found is None:
            return False
        if found.groups() != (_STOCK_NAME.search(shot.name) or found).groups():
            return False  # a folder's name looks like an identity and a camera
        if shot.identity == limits.junk:
            continue
        if int(found.group(2)) != shot.camera:
            return False
        if not limits.identities[0] <= shot.identity <= limits.identities[1]:
            return False
        if not limits.cameras[0] <= shot.camera <= limits.cameras[1]:
            return False
    return True


def msmt17_lists(module: ModuleType) -> None:
    """MSMT17 says which line of which list it cannot read, and reads those that are clear.

    FastReID's wants exactly one space in a line and no underscore in a folder's name, and has bare
    errors for the rest.

    Args:
        module: ``fastreid.data.datasets.msmt17``.
    """

    def init(stock: Callable[..., None], self: Any, root: str = "datasets", **kwargs: Any) -> None:
        places = [os.path.join(root, folder) for folder in module.VERSION_DICT]
        if not any(map(os.path.exists, places)):
            raise RuntimeError(missing(places[0], f"MSMT17 (or {places[1]})"))
        stock(self, root, **kwargs)

    def process_dir(
        stock: Callable[..., Any],
        self: Any,
        dir_path: str,
        list_path: str,
        is_train: bool = True,
    ) -> Any:
        if not os.path.isfile(list_path):
            raise RuntimeError(missing(list_path, "MSMT17"))
        as_stock = True
        items: List[Tuple[str, int, int]] = []
        with open(list_path) as file:
            for number, line in enumerate(file, 1):
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
    path, _, identity = line.strip().rpartition(" ")
    parts = os.path.basename(path).split("_")
    try:
        return path.strip(), int(identity), int(parts[2])
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


def test_sets(module: ModuleType) -> None:
    """Test sets are read before training, and refused if no query can be answered.

    FastReID reads them after it has trained, and then asserts that "all query identities do not
    appear in gallery". Trainers that evaluate in a way of their own are left alone.

    Args:
        module: ``fastreid.engine.defaults``.
    """
    trainer = module.DefaultTrainer

    def init(stock: Callable[..., None], self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        own = [
            name
            for name in ("test", "build_evaluator")
            if getattr(getattr(cls, name), "__func__", None) is not getattr(trainer, name).__func__
        ]
        if not own and cfg.TEST.EVAL_PERIOD > 0:
            for name in cfg.DATASETS.TESTS:
                with generators_kept():  # some data sets draw their queries when they are read
                    cls.build_test_loader(cfg, name)
        stock(self, cfg, *args, **kwargs)

    def build_test_loader(
        stock: Callable[..., Any], cls: Any, cfg: Any, dataset_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        loader, queries = stock(cls, cfg, dataset_name, *args, **kwargs)
        items = _items(loader)
        if items is not None:
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
