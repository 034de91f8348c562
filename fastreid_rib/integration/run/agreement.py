"""Settings compared over the ranks before the first collective that depends on them.

RIB's collectives come at the same steps on every rank only if all ranks have the same settings. A
rank with others, or without the plugin, would otherwise show as a hang. What is compared goes
through the store at which the processes met (``torch.distributed``'s own), since a collective would
wait for a rank that never calls it.
"""

import json
import logging
import time
from typing import Any, Dict, List, Optional

from fastreid_rib.base import __version__
from fastreid_rib.base.ranks import rank_and_size
from fastreid_rib.integration import config
from fastreid_rib.integration.config import at

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a rank waits for the others' settings: they met a moment ago, so it is plenty.

For what they found in their data it waits as long as ``torch.distributed`` does, and says so after
these seconds: a rank may read its data slowly.
"""

_KEYS = (
    "MODEL.LOSSES.NAME", "MODEL.HEADS.NAME", "MODEL.HEADS.NUM_CLASSES", "SEED",
    "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_EPOCH", "DATASETS.NAMES",
)  # fmt: skip
_NODES = ("MODEL.LOSSES.RIB", "MODEL.ATTENTION", "MODEL.SEARCH", "DATASETS.FOLDER")
_FAREWELL = 10.0  # seconds that the rank which holds the store stays for the others to read it
_rounds: Dict[str, int] = {}


class RanksDisagreeError(RuntimeError):
    """Ranks have different settings, or one says nothing; the message names them."""


def settings(cfg: Any) -> Dict[str, Any]:
    """What has to be the same on every rank, flat, by the names that users write."""
    found: Dict[str, Any] = {"fastreid-rib": __version__}
    found.update((path, at(cfg, path)) for path in _KEYS)
    for path in _NODES:
        found.update((f"{path}.{key}", value) for key, value in at(cfg, path).items())
    return json.loads(json.dumps(found))  # as it will come back: tuples are lists


def compare_settings(cfg: Any, patience: Optional[float] = None) -> None:
    """Raises if a rank has other settings of this plugin than another, or not the plugin at all.

    Every rank calls it, at the start.

    Args:
        cfg: a FastReID config.
        patience: seconds to wait for the other ranks; None: `PATIENCE`.

    Raises:
        RanksDisagreeError: on every rank that has the plugin, naming ranks and settings. Where
            neither RIB nor attention is in use, a rank without the plugin is a warning.
    """
    patience = PATIENCE if patience is None else patience
    compare("settings", settings(cfg), patience, required=config.asks_for_plugin(cfg))


def compare(
    topic: str, own: Dict[str, Any], patience: Optional[float] = None, required: bool = True
) -> None:
    """Raises if `own` is not the same on every rank; alone it does nothing.

    Args:
        topic: of the comparison; each may be made several times, by every rank as often.
        own: of this rank, plain values by name.
        patience: seconds to wait for the other ranks; None: as long as ``torch.distributed``.
        required: whether a rank that says nothing is an error, and not just a warning.

    Raises:
        RanksDisagreeError: see above.
    """
    rank, size = rank_and_size()
    if size == 1:
        return
    _rounds[topic] = _rounds.get(topic, 0) + 1
    prefix = f"fastreid_rib/{topic}/{_rounds[topic]}"
    store = _store()
    _say(store, f"{prefix}/{rank}", json.dumps(own))
    patience = store.timeout.total_seconds() if patience is None else patience
    began = time.monotonic()
    said: Dict[int, Dict[str, Any]] = {rank: own}
    for other in [other for other in range(size) if other != rank]:
        key = f"{prefix}/{other}"
        if patience > PATIENCE and not _heard(store, key, began + PATIENCE):
            logger.warning(
                "Waiting for rank %d and its %s, %.0f s at most.", other, topic, patience
            )
        if _heard(store, key, began + patience):
            said[other] = json.loads(store.get(key).decode())
    problem = _difference(said, size, topic, patience)
    _say(store, f"{prefix}/{rank}/done", "")
    if rank == 0:  # it holds the store and may be about to end: the others read it first
        end = time.monotonic() + _FAREWELL
        for other in said:
            _heard(store, f"{prefix}/{other}/done", end)
    if problem and (required or len(said) == size):
        raise RanksDisagreeError(problem)
    if problem:
        logger.warning("%s", problem)


def _difference(
    said: Dict[int, Dict[str, Any]], size: int, topic: str = "settings", patience: float = PATIENCE
) -> str:
    """What differs between the ranks, for people to read; empty if nothing does."""
    silent = [rank for rank in range(size) if rank not in said]
    if silent:
        told = (
            f"rank {', '.join(map(str, silent))} of {size} says nothing about its {topic} of "
            f"fastreid-rib within {patience:g} s: "
        )
        if topic != "settings":
            return (
                f"{told}it has ended, which its log shows, or still reads. Put the pictures on a "
                "faster disk, or give torch.distributed.init_process_group a longer timeout"
            )
        return (
            f"{told}there the plugin is not installed, is switched off by FASTREID_RIB_DISABLE, or "
            "its training script does not call default_setup, or has not come to it. Install "
            "the same version everywhere (`python -m fastreid_rib doctor` says what is there)"
        )
    lines: List[str] = []
    for name in sorted(set().union(*said.values())):
        ranks: Dict[str, List[str]] = {}
        for rank in sorted(said):
            ranks.setdefault(repr(said[rank].get(name)), []).append(str(rank))
        if len(ranks) > 1:
            values = "; ".join(f"{value} on rank {', '.join(at)}" for value, at in ranks.items())
            lines.append(f"{name} is {values}")
    if not lines:
        return ""
    return (
        f"The ranks have different settings: {'. '.join(lines)}. Make them the same on every rank"
    )


def _say(store: Any, key: str, value: str) -> None:
    store.set(key, value)
    store.add(f"{key}/said", 1)


def _heard(store: Any, key: str, end: float) -> bool:
    """Whether a key was said by the time `end`.

    Asked again and again: a wait that times out leaves the connection of torch 1.13 out of step.
    """
    try:
        while not store.add(f"{key}/said", 0):
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
    except RuntimeError:  # the rank that holds the store has ended
        return False
    return True


def _store() -> Any:
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()
