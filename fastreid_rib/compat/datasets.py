"""Data that cannot train or be evaluated: errors that come at once and say what to write."""

import logging
import os
import re
import traceback
from collections import Counter
from types import ModuleType
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Set

from fastreid_rib.base.kept import generators_kept
from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import OWN_DATA, missing
from fastreid_rib.compat.pictures import listed
from fastreid_rib.compat.repairs import Stock, repair

logger = logging.getLogger(__name__)

_SAMPLERS = "fastreid.data.samplers.triplet_sampler"


@repair(
    "fastreid.data.datasets.bases:Dataset.check_before_run",
    defect="a folder that a data set lacks is an error without a hint",
)
def missing_folders(stock: Stock, self: Any, required_files: Any) -> None:
    """The error says what is needed, what is there instead, and names FASTREID_DATASETS."""
    files = [required_files] if isinstance(required_files, str) else list(required_files)
    for path in files:
        if not os.path.exists(path):
            raise RuntimeError(missing(path, type(self).__name__, files))
    stock(self, required_files)


@repair(
    "fastreid.data.build:build_reid_train_loader",
    "fastreid.data.build:build_reid_test_loader",
    defect="data sets such as CUHK03, VeRi and VeRiWild end in an assertion, or lack a package, "
    "without a key",
)
def data_set_errors(stock: Stock, *args: Any, **kwargs: Any) -> Any:
    """ValueError that names DATASETS.NAMES or DATASETS.TESTS, what failed, and what to write."""
    try:
        return stock(*args, **kwargs)
    except (AssertionError, ModuleNotFoundError, OSError) as error:
        cfg: Any = args[0] if args else kwargs.get("cfg")
        if not hasattr(cfg, "DATASETS"):
            raise
        tested = stock.__name__ == "build_reid_test_loader"
        key, names = ("TESTS", cfg.DATASETS.TESTS) if tested else ("NAMES", cfg.DATASETS.NAMES)
        place = traceback.extract_tb(error.__traceback__)[-1]
        remedy = "Expected the files of its authors, unchanged: put them there again"
        if isinstance(error, ModuleNotFoundError):
            remedy = f"Write `python -m pip install {error.name}`"
        raise ValueError(
            f"A data set of DATASETS.{key} {tuple(names)} cannot be read: {error or place.line} "
            f"({os.path.basename(place.filename)}, line {place.lineno}). {remedy}, or another data "
            f"set in DATASETS.{key}; {OWN_DATA}."
        ) from error


@repair(
    "fastreid.data.common:CommDataset.__init__",
    defect="a training or test set without pictures ends in a bare assertion; identities or "
    "cameras that are words fail in the evaluation ('list' object has no attribute 'to'), and "
    "words beside numbers in the training ('<' not supported)",
)
def odd_data_set(
    stock: Stock, self: Any, img_items: Any, transform: Any = None, relabel: bool = True
) -> None:
    """ValueError that names DATASETS.NAMES or DATASETS.TESTS; words are numbered by their order.

    Numbers come first. What FastReID can work with is left as it is.
    """
    if not len(img_items):
        which = (
            "The training set is empty: no data set of DATASETS.NAMES has training pictures"
            if relabel
            else "A test set is empty: a data set of DATASETS.TESTS has no queries, no gallery"
        )
        raise ValueError(
            f"{which}. Expected pictures; the tables in the log say what was found. Write another "
            "data set, or complete this one."
        )
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


@repair(
    "fastreid.engine.defaults",
    defect="a test set that cannot be evaluated is found out after the training",
)
def test_sets(module: ModuleType) -> None:
    """Read before it; ValueError if no query has an answer, a warning for those that have none.

    FastReID asserts then that "all query identities do not appear in gallery". Trainers that
    evaluate in a way of their own are left alone.
    """
    trainer = module.DefaultTrainer

    def evaluates_as_fastreid(cls: Any) -> bool:
        return all(
            getattr(getattr(cls, name), "__func__", None) is getattr(trainer, name).__func__
            for name in ("test", "build_evaluator")
        )

    def init(stock: Stock, self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        self._tests_before = {}  # for the repair damaged-pictures
        if evaluates_as_fastreid(cls):
            for name in cfg.DATASETS.TESTS:
                with generators_kept():  # some data sets draw their queries when they are read
                    loader, queries = cls.build_test_loader(cfg, name)
                items = listed(loader, as_files=True) or ()
                self._tests_before[name] = items[:queries], items[queries:]
        stock(self, cfg, *args, **kwargs)

    def build_test_loader(
        stock: Stock, cls: Any, cfg: Any, dataset_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        loader, queries = stock(cls, cfg, dataset_name, *args, **kwargs)
        items = listed(loader)
        if items is not None and evaluates_as_fastreid(cls):
            refuse_unanswerable(dataset_name, items[:queries], items[queries:])
        return loader, queries

    wrap(trainer, "__init__", init)
    wrap(trainer, "build_test_loader", build_test_loader)


def refuse_unanswerable(dataset: str, queries: Sequence[Any], gallery: Sequence[Any]) -> None:
    """ValueError if no query of a test set can be answered; a warning tells of those that cannot.

    Queries and gallery are (path, identity, camera) of each picture.
    """
    for part, items in (("query", queries), ("gallery", gallery)):
        if not len(items):
            raise ValueError(
                f"{dataset} has no {part} pictures ({len(queries)} queries, {len(gallery)} in the "
                "gallery): it cannot be evaluated. Write another data set in DATASETS.TESTS, or "
                f"complete this one; with DATASETS.TESTS ('FolderReID',) pictures in a folder test "
                "are both."
            )
    seen_by: Dict[Any, Set[Any]] = {}
    for _, identity, camera in gallery:
        seen_by.setdefault(identity, set()).add(camera)
    own = sum(seen_by.get(identity) == {camera} for _, identity, camera in queries)
    absent = sum(identity not in seen_by for _, identity, _ in queries)
    if not own + absent:
        return
    cameras = {item[2] for item in [*queries, *gallery]}
    told = (
        f"{own + absent} of the {len(queries)} queries of {dataset} have no right answer in the "
        f"gallery: {own} have their identity there by their own camera alone, which FastReID "
        f"leaves out, and {absent} not at all ({len(cameras)} cameras)."
    )
    if own + absent < len(queries):
        logger.warning("%s They do not count.", told)
        return
    raise ValueError(
        f"{told} Expected a gallery with pictures of the queries' identities by other cameras. "
        "Without cameras, or with one, write DATASETS.TESTS ('FolderReID',): there every other "
        "picture of an identity may count as a match (DATASETS.FOLDER.CAMERAS False)."
    )


@repair(
    f"{_SAMPLERS}:BalancedIdentitySampler.__init__",
    f"{_SAMPLERS}:NaiveIdentitySampler.__init__",
    defect="training hangs before its first step when batch, instances, processes and identities "
    "do not fit",
)
def identity_batches(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> None:
    """ValueError with the keys and values that would work; whatever trains today still does."""
    stock(self, *args, **kwargs)
    sampler, processes = stock.__qualname__.partition(".")[0], self._world_size
    batch, instances = self.batch_size // processes, self.num_instances
    images = [len(pictures) for pictures in self.pid_index.values()]

    def fills(batch: int, instances: int) -> bool:
        return fills_batches(sampler, images, batch, instances, processes)

    if fills(batch, instances):
        return
    smaller = (n * instances for n in range(max(1, batch // instances), 0, -1))
    totals = [n * processes for n in smaller if fills(n, instances)][:1]
    suits = [n for n in range(2, batch + 1) if batch % n == 0 and fills(batch, n)]
    nearest = [n for n in suits if n < instances][-1:] + [n for n in suits if n > instances][:1]
    remedies = [f"SOLVER.IMS_PER_BATCH {n}" for n in totals]
    remedies += [f"DATALOADER.NUM_INSTANCE {n}" for n in nearest]
    each = f" ({processes} processes with {batch} each)" if processes > 1 else ""
    raise ValueError(
        f"{sampler} can never fill a batch of SOLVER.IMS_PER_BATCH {batch * processes}{each} "
        f"with DATALOADER.NUM_INSTANCE {instances}: it needs IMS_PER_BATCH to be a multiple of "
        f"NUM_INSTANCE x processes, and IMS_PER_BATCH / NUM_INSTANCE identities of the "
        f"{len(images)} in the training set. Write "
        + (" or ".join(remedies) or "DATALOADER.SAMPLER_TRAIN TrainingSampler")
        + "."
    )


def fills_batches(
    sampler: str, images: Sequence[int], batch: int, instances: int, processes: int
) -> bool:
    """Whether a sampler ever yields: `images` of each identity, a `batch` of one process.

    Follows what FastReID's loops do rather than what they are meant to do: some batches that are
    not a multiple of NUM_INSTANCE do train, and those must still do so.
    """
    identities = batch // instances  # of one process
    total = batch * processes
    if not identities or total % instances:
        return False
    if sampler == "BalancedIdentitySampler":
        usable = len(images) - len(images) % (identities * processes)
        return usable * instances >= total
    # Naive: rounds of `identities` distinct ones, each at most len // instances times.
    if total % (identities * instances):
        return False
    rounds = total // (identities * instances)
    return sum(min(max(1, n // instances), rounds) for n in images) >= rounds * identities


@repair(
    _SAMPLERS,
    defect="SetReWeightSampler never fills a batch, and takes cameras numbered from 0 alone",
)
def set_reweight(module: ModuleType) -> None:
    """It fills batches with whole draws, from cameras of any name; SET_WEIGHT is checked.

    FastReID's adds an array to a list, which fails, and compares one draw of every camera with a
    batch, which its own check wants to be several draws. Its own data sets name their cameras,
    ``market1501_0``.
    """

    def init(
        stock: Stock,
        self: Any,
        data_source: Any,
        mini_batch_size: int,
        num_instances: int,
        set_weight: Any,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        pictures = Counter(item[2] for item in data_source)
        cameras = sorted(pictures, key=_natural)
        batch = mini_batch_size * module.comm.get_world_size()
        counts = {camera: pictures[camera] for camera in cameras}
        _refuse_set_weight(set_weight, counts, batch, num_instances)
        number = {camera: i for i, camera in enumerate(cameras)}
        numbered = [(*item[:2], number[item[2]], *item[3:]) for item in data_source]
        stock(self, numbered, mini_batch_size, num_instances, set_weight, *args, **kwargs)

    def indices(stock: Stock, self: Any) -> Iterator[int]:
        draws = module.np.random  # as FastReID's samplers have it
        draws.seed(self._seed)
        while True:
            batch: List[int] = []
            while len(batch) < self.batch_size:
                for camera, identities in enumerate(self.set_weight):
                    share = self.set_pid_prob[camera]
                    chosen = draws.choice(self.cam_pid[camera], identities, False, share)
                    for images in (self.pid_index[identity] for identity in chosen):
                        again = len(images) < self.num_instances
                        batch += draws.choice(images, self.num_instances, again).tolist()
            draws.shuffle(batch)
            yield from module.reorder_index(batch, self._world_size)

    wrap(module.SetReWeightSampler, "__init__", init)
    wrap(module.SetReWeightSampler, "_infinite_indices", indices)


def _natural(name: Any) -> List[Any]:
    """A key to sort names by: numbers in them by their size."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(name))]


def _refuse_set_weight(
    weights: Sequence[int], pictures: Mapping[Any, int], batch: int, instances: int
) -> None:
    told = (
        f"SetReWeightSampler draws DATALOADER.SET_WEIGHT {tuple(weights)} identities, one number "
        "for each camera"
    )
    names = ", ".join(map(str, list(pictures)[:10]))
    whole = all(isinstance(weight, int) and weight >= 0 for weight in weights)
    if len(weights) != len(pictures) or not whole or not sum(weights):
        raise ValueError(
            f"{told}. Expected {len(pictures)} whole numbers, for the cameras {names}, in this "
            "order; 0 leaves a camera out. Without cameras of one's own write "
            "DATALOADER.SAMPLER_TRAIN NaiveIdentitySampler."
        )
    for (camera, there), weight in zip(pictures.items(), weights):
        if weight > there:
            raise ValueError(
                f"{told}. Camera {camera} has {there} pictures: write at most {there} for it."
            )
    draw = sum(weights) * instances
    if batch % draw or batch <= draw:
        raise ValueError(
            f"{told}, with DATALOADER.NUM_INSTANCE {instances} images each: {draw} images. "
            f"Expected SOLVER.IMS_PER_BATCH to be two or more times {draw}, got {batch}. Write "
            f"SOLVER.IMS_PER_BATCH {max(2, batch // draw) * draw}, or other weights."
        )
