"""The key SEED: every random number of a run from one number.

What an epoch draws depends on (SEED, epoch, rank) alone, so that a run which was killed and resumed
goes on as if nothing had happened: the generators of the process begin anew with every epoch
(``epoch_generators``), and so do the choice of pictures and their augmentation
(``epoch_pictures``).
"""

from typing import Any

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
