"""The key SEED: every random number of a run from one number.

What an epoch draws depends on (SEED, epoch, rank) alone, so that a run which was killed and resumed
continues as if nothing had happened. Three parts make it so:

- the generators of a process begin anew with every epoch, and the training alone draws from them;
- the stream of pictures begins anew with every epoch (FastReID's samplers are endless streams from
  one seed, in which a resumed run could not find its place);
- each picture is augmented from a seed of its own, whatever worker makes it. The number of workers
  then makes no difference either (but to INPUT.RPT, whose workers each collect their own patches).
"""

import contextlib
import itertools
import random
import threading
from typing import Any, Callable, Iterator, Tuple

import numpy as np
import torch
from torch.utils.data import Sampler, dataloader

from fastreid_rib.base.kept import generators_kept
from fastreid_rib.base.patching import overlay, wrap

_value = -1  # the config's SEED
# What the places of keys begin with, beyond (epoch, rank).
_SAMPLER, _PICTURES = 1, 2


def seed(value: int) -> None:
    """Seeds Python, NumPy and torch on this process; the model starts from these.

    Args:
        value: the config's SEED; a negative one leaves FastReID's own random seed in place.
    """
    global _value
    _value = value
    if seeded():
        from fastreid.utils import comm
        from fastreid.utils.env import seed_all_rng

        seed_all_rng(value + comm.get_rank())


def forget_other(cfg: Any) -> None:
    """Ends the seed of a run before this one in the process, which had another SEED.

    Args:
        cfg: this run's config.
    """
    global _value
    if cfg.get("SEED", _value) != _value:
        _value = -1


def seeded() -> bool:
    """Whether this run has a SEED."""
    return _value >= 0


def keys(count: int, *place: int) -> np.ndarray:
    """Seeds for what is drawn at a place of this run, far from those of any other place.

    Args:
        count: how many.
        *place: numbers >= 0, such as the epoch and the rank.

    Returns:
        (count,) uint32; they depend on SEED and ``place`` alone.
    """
    return np.random.SeedSequence([_value, *place]).generate_state(count)


def extend_trainer(train_loop: Any) -> None:
    """Begins the generators of every epoch, and the pictures of the first, as a seeded run has."""

    def train(stock: Callable[..., Any], self: Any, start_epoch: int, *args: Any, **kw: Any) -> Any:
        if hasattr(self, "cfg"):
            forget_other(self.cfg)
        if seeded() and start_epoch > 0:
            _begin_at(start_epoch, getattr(self, "_trainer", self))
        return stock(self, start_epoch, *args, **kw)

    def before_epoch(stock: Callable[..., None], self: Any) -> None:
        if seeded():
            from fastreid.utils import comm
            from fastreid.utils.env import seed_all_rng

            seed_all_rng(int(keys(1, self.epoch, comm.get_rank())[0]))
        stock(self)

    wrap(train_loop.TrainerBase, "train", train)
    wrap(train_loop.TrainerBase, "before_epoch", before_epoch)


def extend_data_loader(data_utils: Any) -> None:
    """Loads the batches of a seeded run without workers in the training loop.

    FastReID loads them in a background thread, which would draw augmentations from the generators
    of the training loop, in an order that depends on timing.
    """

    def batches(stock: Callable[..., Any], generator: Any, *args: Any, **kwargs: Any) -> Any:
        if seeded() and isinstance(generator, dataloader._SingleProcessDataLoaderIter):
            iterator: Any = generator
            iterator.is_alive = lambda: False  # all that FastReID asks of its thread
            return iterator
        return stock(generator, *args, **kwargs)

    wrap(data_utils, "BackgroundGenerator", batches)


class Place(int):
    """The index of a picture, with where in the training it is drawn.

    Attributes:
        epoch: of the training.
        key: seed of its augmentation.
    """

    epoch: int
    key: int

    def __new__(cls, index: int, epoch: int, key: int) -> "Place":
        """See the class."""
        place = super().__new__(cls, index)
        place.epoch, place.key = epoch, key
        return place

    def __getnewargs__(self) -> Tuple[int, int, int]:  # type: ignore[override]
        """What pickling needs: places travel to the workers."""
        return int(self), self.epoch, self.key


class EpochSampler(Sampler):
    """An endless stream of `Place`, which begins anew with every epoch.

    Args:
        sampler: one of FastReID's training samplers.
        size: pictures of an epoch on this rank.
    """

    def __init__(self, sampler: Any, size: int) -> None:
        self.sampler, self.size = sampler, size
        self.first_epoch = 0

    def __iter__(self) -> Iterator[Place]:
        """From the first picture of `first_epoch` on."""
        for epoch in itertools.count(self.first_epoch):
            yield from self.pictures_of(epoch)

    def pictures_of(self, epoch: int) -> Iterator[Place]:
        """The pictures of one epoch on this rank, drawn at once."""
        from fastreid.utils import comm

        # The same on every rank: FastReID's samplers take their ranks' shares of one stream.
        key = int(keys(1, epoch, 0, _SAMPLER)[0])
        with _drawing_from(key):
            self.sampler._seed = key
            indices = list(itertools.islice(iter(self.sampler), self.size))
        own = keys(self.size, epoch, comm.get_rank(), _PICTURES)
        return map(Place, indices, itertools.repeat(epoch), own.tolist())


def extend_train_loader(build: Any) -> None:
    """Lets the training loader of a seeded run draw epoch by epoch.

    A sampler of one's own is left alone.
    """
    samplers = build.samplers
    own = (
        samplers.TrainingSampler,
        samplers.NaiveIdentitySampler,
        samplers.BalancedIdentitySampler,
        samplers.SetReWeightSampler,
        samplers.ImbalancedDatasetSampler,
    )
    for name in ("data_sampler", "triplet_sampler", "imbalance_sampler"):
        overlay(getattr(samplers, name), "np", random=_Draws())
    overlay(samplers.imbalance_sampler, "torch", multinomial=_multinomial)

    def build_reid_train_loader(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cfg = args[0] if args else kwargs.get("cfg")
        configured = hasattr(cfg, "DATALOADER")
        if configured:
            forget_other(cfg)
        if not seeded():
            return stock(*args, **kwargs)
        if configured:  # FastReID's own two steps: the config's arguments, then the loader
            given = build._train_loader_from_config(*args, **kwargs)
        else:
            given = {"train_set": args[0], **kwargs} if args else kwargs
        sampler = given.get("sampler")
        if isinstance(sampler, own):
            from fastreid.utils import comm

            total = given["total_batch_size"]
            # Not zero: that a training set is smaller than a batch is said later, by name.
            batches = max(1, len(given["train_set"]) // total)
            sampler = EpochSampler(sampler, batches * (total // comm.get_world_size()))
        if configured:
            return stock(cfg, train_set=given["train_set"], sampler=sampler)
        return stock(**{**given, "sampler": sampler})

    wrap(build, "build_reid_train_loader", build_reid_train_loader)


def _begin_at(epoch: int, trainer: Any) -> None:
    """Lets FastReID's trainer continue with the pictures of an epoch; it stands at the first."""
    loader = getattr(trainer, "data_loader", None)
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if loader is None or not isinstance(sampler, EpochSampler):
        return
    loader.shutdown()
    sampler.first_epoch = epoch
    trainer._data_loader_iter = iter(loader)


# FastReID's samplers draw from the generators of the process, in the thread that loads batches
# while the training draws from them in another. Theirs are the thread's own instead.
_thread = threading.local()


@contextlib.contextmanager
def _drawing_from(key: int) -> Iterator[None]:
    """Gives the samplers generators of their own in this thread."""
    _thread.numpy = np.random.RandomState(key)
    _thread.torch = torch.Generator().manual_seed(key)
    try:
        yield
    finally:
        del _thread.numpy, _thread.torch


class _Draws:
    """``numpy.random`` as the samplers see it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(_thread, "numpy", np.random), name)


def _multinomial(*args: Any, **kwargs: Any) -> Any:
    generator = getattr(_thread, "torch", None)
    return torch.multinomial(*args, **{"generator": generator, **kwargs})


def extend_dataset(common: Any) -> None:
    """Lets FastReID's data set augment a picture from the seed of its `Place`."""

    def getitem(stock: Callable[..., Any], self: Any, index: int) -> Any:
        if not isinstance(index, Place):
            return stock(self, index)
        if index.epoch != vars(self).get("_epoch", index.epoch):
            # Patches (INPUT.RPT) of the epoch before: a resumed run would not have them.
            for transform in getattr(self.transform, "transforms", ()):
                if hasattr(transform, "patchpool"):
                    transform.patchpool.clear()
        self._epoch = index.epoch
        # Without workers pictures are made between the steps of the training, which draws too.
        with generators_kept():
            random.seed(index.key)
            np.random.seed(index.key)
            torch.default_generator.manual_seed(index.key)  # not manual_seed, which seeds GPUs too
            return stock(self, int(index))

    wrap(common.CommDataset, "__getitem__", getitem)
