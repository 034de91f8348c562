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
from typing import Any, Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from fastreid_rib.base.kept import generators_kept
from fastreid_rib.base.patching import wrap
from fastreid_rib.base.ranks import rank_and_size

_value = -1  # the config's SEED
# What the places of keys begin with, beyond (epoch, rank).
_SAMPLER, _PICTURES = 1, 2


def seed(value: int) -> None:
    """Seeds Python, NumPy and torch on this process by the config's SEED; the model starts so.

    A negative one leaves FastReID's own random seed in place.
    """
    global _value
    _value = value
    if seeded():
        from fastreid.utils.env import seed_all_rng

        seed_all_rng(value + rank_and_size()[0])


def seeded() -> bool:
    """Whether this run has a SEED."""
    return _value >= 0


def keys(count: int, *place: int) -> np.ndarray:
    """(count,) uint32 seeds for what is drawn at a place of this run, far from those of any other.

    They depend on SEED and the place alone: numbers >= 0, such as the epoch and the rank.
    """
    return np.random.SeedSequence([_value, *place]).generate_state(count)


def extend_trainer(train_loop: Any) -> None:
    """Begins the pictures of the first epoch and the generators of every one, as SEED has them."""

    def train(
        stock: Callable[..., Any], self: Any, start_epoch: int, max_epoch: int, iters_per_epoch: int
    ) -> Any:
        trainer: Any = getattr(self, "_trainer", self)  # which has loaded its first batches
        loader: Any = getattr(trainer, "data_loader", None)
        batches: Any = getattr(loader, "batch_sampler", None)
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, EpochSampler):
            begin = start_epoch, max(1, iters_per_epoch) * batches.batch_size
            if begin != (sampler.first_epoch, sampler.size):
                loader.shutdown()
                sampler.first_epoch, sampler.size = begin
                trainer._data_loader_iter = iter(loader)
        return stock(self, start_epoch, max_epoch, iters_per_epoch)

    def before_epoch(stock: Callable[..., None], self: Any) -> None:
        if seeded():
            from fastreid.utils.env import seed_all_rng

            seed_all_rng(int(keys(1, self.epoch, rank_and_size()[0])[0]))
        stock(self)

    wrap(train_loop.TrainerBase, "train", train)
    wrap(train_loop.TrainerBase, "before_epoch", before_epoch)


def extend_data_loader(data_utils: Any) -> None:
    """Lets a seeded run draw its pictures epoch by epoch, in the thread of the training loop.

    FastReID takes batches from the workers in a background thread. That would draw from the
    generators of the training, in an order that depends on timing. A sampler of one's own is left
    alone.
    """

    def batches(stock: Callable[..., Any], generator: Any, *args: Any, **kwargs: Any) -> Any:
        if seeded():
            generator.is_alive = lambda: False  # all that FastReID asks of its thread
            return generator
        return stock(generator, *args, **kwargs)

    def init(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        chosen: Any = kwargs.get("batch_sampler")
        if seeded() and hasattr(getattr(chosen, "sampler", None), "_seed"):  # as FastReID's have
            # Not zero: that a training set is smaller than a batch is said later, by name.
            steps = len(kwargs["dataset"]) // (chosen.batch_size * rank_and_size()[1])
            chosen.sampler = EpochSampler(chosen.sampler, max(1, steps) * chosen.batch_size)
        stock(self, *args, **kwargs)

    wrap(data_utils, "BackgroundGenerator", batches)
    wrap(data_utils.DataLoaderX, "__init__", init)


class Place(int):
    """The index of a picture, with where in the training it is drawn; it travels to the workers.

    Attributes:
        epoch: of the training.
        key: seed of its augmentation.
    """

    epoch: int
    key: int


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
        """From the first picture of `first_epoch` on; those of an epoch are drawn at once."""
        for epoch in itertools.count(self.first_epoch):
            # The same on every rank: FastReID's samplers take their ranks' shares of one stream.
            key = int(keys(1, epoch, 0, _SAMPLER)[0])
            with _drawing_from(key):
                self.sampler._seed = key
                indices = list(itertools.islice(iter(self.sampler), self.size))
            own = keys(self.size, epoch, rank_and_size()[0], _PICTURES)
            for index, picture in zip(indices, own.tolist()):
                place = Place(index)
                place.epoch, place.key = epoch, picture
                yield place


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
        with _drawing_from(index.key):
            return stock(self, int(index))

    wrap(common.CommDataset, "__getitem__", getitem)


@contextlib.contextmanager
def _drawing_from(key: int) -> Iterator[None]:
    """Seeds what is drawn within it on the CPU; the training's generators are as before, after."""
    with generators_kept():
        random.seed(key)
        np.random.seed(key)
        torch.default_generator.manual_seed(key)  # not manual_seed, which seeds GPUs too
        yield
