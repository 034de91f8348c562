"""The key SEED: every random number of a run from one number."""

from typing import Any, Callable

from fastreid_rib.base.patching import wrap

_seeded = False


def seed(value: int) -> None:
    """Seeds Python, NumPy and torch on this process; samplers and workers draw from these.

    Args:
        value: the config's SEED; a negative one leaves FastReID's own random seed in place.
    """
    global _seeded
    _seeded = value >= 0
    if _seeded:
        from fastreid.utils import comm
        from fastreid.utils.env import seed_all_rng

        seed_all_rng(value + comm.get_rank())


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
        if _seeded and isinstance(generator, dataloader._SingleProcessDataLoaderIter):
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
