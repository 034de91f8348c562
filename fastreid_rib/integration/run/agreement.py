"""Settings compared over the ranks before the first collective that depends on them.

RIB's collectives come at the same steps on every rank only if all ranks have the same settings. A
rank with others, or without the plugin, would otherwise show as a hang. What is compared goes
through the store at which the processes met (``torch.distributed``'s own), since a collective would
wait for a rank that never calls it.
"""

import itertools
import json
import logging
import time
from typing import Any, Dict, List

from fastreid_rib.base import __version__
from fastreid_rib.base.ranks import exchange, rank_and_size
from fastreid_rib.integration import config
from fastreid_rib.integration.config import at

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a rank waits for the others' settings: they met a moment ago, so it is plenty."""

_KEYS = (
    "MODEL.LOSSES.NAME", "MODEL.HEADS.NAME", "MODEL.HEADS.NUM_CLASSES", "SEED",
    "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_EPOCH", "DATASETS.NAMES",
)  # fmt: skip
_NODES = ("MODEL.LOSSES.RIB", "MODEL.ATTENTION", "MODEL.SEARCH", "DATASETS.FOLDER")
_FAREWELL = 10.0  # seconds that the rank which holds the store stays for the others to read it
_rounds = itertools.count(1)  # of comparisons: every rank makes as many


class RanksDisagreeError(RuntimeError):
    """Ranks have different settings or data, or one says nothing; the message names them."""


def settings(cfg: Any) -> Dict[str, Any]:
    """What has to be the same on every rank, flat, by the names that users write."""
    found: Dict[str, Any] = {"fastreid-rib": __version__}
    found.update((path, at(cfg, path)) for path in _KEYS)
    for path in _NODES:
        found.update((f"{path}.{key}", value) for key, value in at(cfg, path).items())
    return json.loads(json.dumps(found))  # as it will come back: tuples are lists


def compare_settings(cfg: Any) -> None:
    """Raises if a rank has other settings of this plugin than another, or not the plugin at all.

    Every rank calls it, at the start, and waits for the others, `PATIENCE` seconds at most.

    Raises:
        RanksDisagreeError: on every rank that has the plugin, naming ranks and settings. Where
            neither RIB nor attention is in use, a rank without the plugin is a warning.
    """
    rank, size = rank_and_size()
    if size == 1:
        return
    store, prefix = _store(), f"fastreid_rib/settings/{next(_rounds)}"
    said = {rank: settings(cfg)}
    _say(store, f"{prefix}/{rank}", json.dumps(said[rank]))
    end = time.monotonic() + PATIENCE
    for other in [other for other in range(size) if other != rank]:
        if _heard(store, f"{prefix}/{other}", end):
            said[other] = json.loads(store.get(f"{prefix}/{other}").decode())
    silent = [str(other) for other in range(size) if other not in said]
    problem = _difference(said)
    if silent:
        problem = (
            f"rank {', '.join(silent)} of {size} says nothing about its settings of fastreid-rib "
            f"within {PATIENCE:g} s: there the plugin is not installed, is switched off by "
            "FASTREID_RIB_DISABLE, or its training script does not call default_setup, or has not "
            "come to it. Install the same version everywhere (`python -m fastreid_rib doctor` "
            "says what is there)"
        )
    _say(store, f"{prefix}/{rank}/done", "")
    if rank == 0:  # it holds the store and may be about to end: the others read it first
        end = time.monotonic() + _FAREWELL
        for other in said:
            _heard(store, f"{prefix}/{other}/done", end)
    if problem and silent and not config.asks_for_plugin(cfg):
        logger.warning("%s", problem)
    elif problem:
        raise RanksDisagreeError(problem)


def compare_identities(number: int) -> None:
    """Raises if the training data of the ranks have other numbers of identities.

    It waits for a rank that reads its data slowly, as long as ``torch.distributed`` does.

    Raises:
        RanksDisagreeError: on every rank.
    """
    numbers = enumerate(exchange(number))
    problem = _difference({rank: {"number of identities": found} for rank, (found,) in numbers})
    if problem:
        raise RanksDisagreeError(problem)


def _difference(said: Dict[int, Dict[str, Any]]) -> str:
    """What differs between the ranks, for people to read; empty if nothing does."""
    lines: List[str] = []
    for name in sorted(set().union(*said.values())):
        ranks: Dict[str, List[str]] = {}
        for rank in sorted(said):
            ranks.setdefault(repr(said[rank].get(name)), []).append(str(rank))
        if len(ranks) > 1:
            values = "; ".join(f"{value} on rank {', '.join(at)}" for value, at in ranks.items())
            lines.append(f"{name} is {values}. ")
    found = "".join(lines)
    return found and f"The ranks have different settings: {found}Make them the same on every rank"


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
