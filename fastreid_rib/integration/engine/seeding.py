"""The key SEED: every random number of a run from one number.

What an epoch draws depends on (SEED, epoch, rank) alone, so that a run which was killed and resumed
goes on as if nothing had happened: the generators of the process begin anew with every epoch
(here), and so do the choice of pictures and their augmentation (``epoch_pictures``).
"""

from typing import Any, Callable

from fastreid_rib.base.patching import wrap

_value = -1


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


def seeded() -> bool:
    """Whether this run has a SEED."""
    return _value >= 0


def keys(count: int, *place: int) -> Any:
    """Seeds for what is drawn at a place of this run, far from those of any other place.

    Args:
        count: how many.
        *place: numbers >= 0, such as the epoch and the rank.

    Returns:
        (count,) NumPy array, uint32; it depends on SEED and ``place`` alone.
    """
    from numpy.random import SeedSequence

    return SeedSequence([_value, *place]).generate_state(count)


def extend_trainer(train_loop: Any) -> None:
    """Begins the generators, and the pictures, of every epoch where a seeded run would have them.

    Args:
        train_loop: the module ``fastreid.engine.train_loop``.
    """

    def train(stock: Callable[..., Any], self: Any, start_epoch: int, *args: Any, **kw: Any) -> Any:
        if seeded() and start_epoch > 0:
            # Not at the top: it is loaded with FastReID's loaders, which know the sampler.
            from fastreid_rib.integration.engine.epoch_pictures import begin_at

            begin_at(start_epoch, getattr(self, "_trainer", self))
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
    """Keeps a seeded run without workers deterministic.

    FastReID loads batches in a background thread. Without workers that thread draws augmentations
    from the same generators as the training loop, in an order that depends on timing; a seeded run
    loads them in the training loop instead.

    Args:
        data_utils: the module ``fastreid.data.data_utils``.
    """
    from torch.utils.data import dataloader

    def batches(stock: Callable[..., Any], generator: Any, *args: Any, **kwargs: Any) -> Any:
        if seeded() and isinstance(generator, dataloader._SingleProcessDataLoaderIter):
            return _Foreground(generator)
        return stock(generator, *args, **kwargs)

    wrap(data_utils, "BackgroundGenerator", batches)


class _Foreground:
    """An iterator with the interface of FastReID's BackgroundGenerator, without its thread."""

    def __init__(self, generator: Any) -> None:
        self._generator = iter(generator)

    def __iter__(self) -> "_Foreground":
        return self

    def __next__(self) -> Any:
        return next(self._generator)

    @staticmethod
    def is_alive() -> bool:
        return False
