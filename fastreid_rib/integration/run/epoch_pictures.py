"""Which pictures an epoch of a seeded run sees, and how they are augmented.

Both depend on (SEED, epoch, rank) alone. FastReID's samplers are endless streams from one seed, and
its augmentations draw from the generators of whatever worker they run in, so both depend on all
that was drawn before, and a resumed run could not find its place in them. Here the stream begins
anew with every epoch, and each picture is augmented from a seed of its own. The number of workers
then makes no difference either (but to INPUT.RPT, whose workers each collect their own patches).
"""

import contextlib
import itertools
import random
import threading
from typing import Any, Callable, Iterator, Tuple

import torch
from torch.utils.data import Sampler

from fastreid_rib.base.generators import generators_kept
from fastreid_rib.base.patching import overlay, wrap
from fastreid_rib.integration.run import seeding

# What the places of keys (:func:`seeding.keys`) begin with, beyond (epoch, rank).
_SAMPLER, _PICTURES = 1, 2


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
        key = int(seeding.keys(1, epoch, 0, _SAMPLER)[0])
        with _drawing_from(key):
            self.sampler._seed = key
            indices = list(itertools.islice(iter(self.sampler), self.size))
        own = seeding.keys(self.size, epoch, comm.get_rank(), _PICTURES)
        return map(Place, indices, itertools.repeat(epoch), own.tolist())


def extend_train_loader(build: Any) -> None:
    """Lets the training loader of a seeded run draw epoch by epoch.

    A sampler of one's own is left alone.

    Args:
        build: the module ``fastreid.data.build``.
    """
    own = tuple(
        getattr(build.samplers, name)
        for name in (
            "TrainingSampler",
            "NaiveIdentitySampler",
            "BalancedIdentitySampler",
            "SetReWeightSampler",
            "ImbalancedDatasetSampler",
        )
    )
    for name in ("data_sampler", "triplet_sampler", "imbalance_sampler"):
        overlay(getattr(build.samplers, name), "np", random=_Draws())
    overlay(build.samplers.imbalance_sampler, "torch", multinomial=_multinomial)

    def build_reid_train_loader(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cfg = args[0] if args else kwargs.get("cfg")
        if not seeding.seeded():
            return stock(*args, **kwargs)
        if not hasattr(cfg, "DATALOADER"):
            given = {"train_set": args[0], **kwargs} if args else kwargs
        else:
            # FastReID's own two steps: the config's arguments, then the loader.
            given = build._train_loader_from_config(*args, **kwargs)
        sampler = given.get("sampler")
        if isinstance(sampler, own):
            from fastreid.utils import comm

            total = given["total_batch_size"]
            # Not zero: that a training set is smaller than a batch is said later, by name.
            batches = max(1, len(given["train_set"]) // total)
            sampler = EpochSampler(sampler, batches * (total // comm.get_world_size()))
        if not hasattr(cfg, "DATALOADER"):
            return stock(**{**given, "sampler": sampler})
        return stock(cfg, train_set=given["train_set"], sampler=sampler)

    wrap(build, "build_reid_train_loader", build_reid_train_loader)


def begin_at(epoch: int, trainer: Any) -> None:
    """Lets a trainer go on with the pictures of an epoch; it stands at those of the first.

    Args:
        epoch: that comes next.
        trainer: FastReID's ``SimpleTrainer`` or ``AMPTrainer``.
    """
    loader = getattr(trainer, "data_loader", None)
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    if loader is None or not isinstance(sampler, EpochSampler):
        return
    loader.shutdown()
    sampler.first_epoch = epoch
    trainer._data_loader_iter = iter(loader)


def extend_dataset(common: Any) -> None:
    """Lets FastReID's data set augment a picture from the seed of its `Place`.

    Args:
        common: the module ``fastreid.data.common``.
    """

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
            _seed_generators(index.key)
            return stock(self, int(index))

    wrap(common.CommDataset, "__getitem__", getitem)


def _seed_generators(key: int) -> None:
    """Seeds the generators of the CPU."""
    import numpy as np

    random.seed(key)
    np.random.seed(key)
    # Not torch.manual_seed, which seeds GPUs as well.
    torch.default_generator.manual_seed(key)


# FastReID's samplers draw from the generators of the process, in the thread that loads batches
# while the training draws from them in another. Theirs are the thread's own instead.
_thread = threading.local()


@contextlib.contextmanager
def _drawing_from(key: int) -> Iterator[None]:
    """Gives the samplers generators of their own in this thread."""
    import numpy as np

    _thread.numpy = np.random.RandomState(key)
    _thread.torch = torch.Generator().manual_seed(key)
    try:
        yield
    finally:
        del _thread.numpy, _thread.torch


class _Draws:
    """``numpy.random`` as the samplers see it."""

    def __getattr__(self, name: str) -> Any:
        import numpy as np

        return getattr(getattr(_thread, "numpy", np.random), name)


def _multinomial(*args: Any, **kwargs: Any) -> Any:
    generator = getattr(_thread, "torch", None)
    return torch.multinomial(*args, **{"generator": generator, **kwargs})
