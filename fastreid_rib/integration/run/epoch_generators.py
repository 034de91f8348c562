"""The generators of a seeded run begin anew with every epoch; the training alone draws from them.

What they draw then depends on (SEED, epoch, rank) alone, see ``seeding``.
"""

from typing import Any, Callable

from fastreid_rib.base.patching import wrap
from fastreid_rib.integration.run import seeding
from fastreid_rib.integration.run.epoch_pictures import begin_at


def extend_trainer(train_loop: Any) -> None:
    """Begins the generators, and the pictures, of every epoch where a seeded run would have them.

    Args:
        train_loop: the module ``fastreid.engine.train_loop``.
    """

    def train(stock: Callable[..., Any], self: Any, start_epoch: int, *args: Any, **kw: Any) -> Any:
        if seeding.seeded() and start_epoch > 0:
            begin_at(start_epoch, getattr(self, "_trainer", self))
        return stock(self, start_epoch, *args, **kw)

    def before_epoch(stock: Callable[..., None], self: Any) -> None:
        if seeding.seeded():
            from fastreid.utils import comm
            from fastreid.utils.env import seed_all_rng

            seed_all_rng(int(seeding.keys(1, self.epoch, comm.get_rank())[0]))
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
        if seeding.seeded() and isinstance(generator, dataloader._SingleProcessDataLoaderIter):
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
