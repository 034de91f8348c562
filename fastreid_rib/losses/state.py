"""What a checkpoint keeps of RIB: written as tensors, and read back all or nothing."""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.losses.cameras import join_cameras, split_cameras
from fastreid_rib.losses.class_table import kept_entries
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.settings.rib import RIBSettings

Rows = Tuple[Tensor, Tensor, Optional[Tensor]]
"""What a reservoir holds: embeddings, labels (joined with cameras) and inputs."""

_COUNTERS = ("epoch", "rows_seen", "steps", "epoch_steps")
_BANK = ("bank_rows", "bank_labels", "bank_inputs", "bank_cameras")
_OLDER = ("older_rows", "older_labels", "older_inputs", "older_cameras")
NAMES = _COUNTERS + Statistics._fields + _BANK + _OLDER
"""The names of everything that may be in a checkpoint."""


class State(NamedTuple):
    """Everything that a process needs to go on as another would have."""

    epoch: int
    """That was last started; -1: none."""
    rows_seen: int
    """Embeddings of this epoch so far."""
    steps: int
    """Of this epoch so far."""
    epoch_steps: int
    """Of the epoch before."""
    statistics: Optional[Statistics]
    bank: Optional[Rows]
    """Of this epoch."""
    older: Optional[Rows]
    """Of the epoch before."""


class UnusableError(Exception):
    """What is found in a checkpoint cannot be taken over; the text says why."""


def to_tensors(state: State, num_classes: int) -> Dict[str, Tensor]:
    """A state of so many identities under the names of a checkpoint."""
    found = {
        name: torch.tensor(count, dtype=torch.int64) for name, count in zip(_COUNTERS, state[:4])
    }
    if state.statistics is not None:
        found.update((k, v) for k, v in state.statistics._asdict().items() if v is not None)
    for names, rows in ((_BANK, state.bank), (_OLDER, state.older)):
        if rows is None:
            continue
        labels, cameras = split_cameras(rows[1], num_classes)
        seen = cameras if bool((cameras > 0).any()) else None
        for name, value in zip(names, (rows[0], labels, rows[2], seen)):
            if value is not None:
                # A copy: torch.save writes the whole storage behind a view.
                found[name] = value.clone()
    return found


def from_tensors(
    found: Dict[str, Tensor], settings: RIBSettings, num_classes: int, device: torch.device
) -> State:
    """The state that a checkpoint holds.

    Args:
        found: tensors by their names, without prefix.
        settings: of the loss that is to go on with it, which numbers its clusters.
        num_classes: its number of identities.
        device: where the tensors, which are copied, go.

    Raises:
        UnusableError: it was made under other settings, or is damaged.
    """
    _check(found, settings, num_classes)
    tensors = {
        name: value.detach().to(device, copy=True)
        for name, value in found.items()
        if name not in _COUNTERS
    }
    statistics = None
    if "centroids" in tensors:
        if not settings.cross_camera and "camera_rows" in tensors:
            for name in ("log_q", "log_q_index", "log_q_floor"):
                if name in tensors:
                    tensors[name] = tensors[name][:num_classes].clone()
            del tensors["camera_rows"], tensors["cameras"]
        statistics = Statistics(*(tensors.get(name) for name in Statistics._fields))  # type: ignore[arg-type]
    # Checkpoints of 0.1 have no steps: refreshes within an epoch begin an epoch later.
    epoch, seen, steps, before = (int(found.get(name, torch.zeros(()))) for name in _COUNTERS)
    bank, older = (
        (
            tensors[names[0]],
            join_cameras(tensors[names[1]], tensors.get(names[3]), num_classes),
            tensors.get(names[2]),
        )
        if names[0] in tensors
        else None
        for names in (_BANK, _OLDER)
    )
    return State(epoch, seen, steps, before, statistics, bank, older)


def _check(found: Dict[str, Tensor], settings: RIBSettings, num_classes: int) -> None:
    needed = list(_COUNTERS[:2])
    if any(name in found for name in Statistics._fields):
        _check_kind(found, settings)
        needed += _names(settings)
    if any(name in found for name in _BANK) or int(found.get("rows_seen", 0)):
        needed += _BANK[:2]
    if any(name in found for name in _OLDER):
        needed += _OLDER[:2]
    missing = [name for name in needed if name not in found]
    if missing:
        raise UnusableError(
            f"as {', '.join(missing)} is missing or has another shape: they start afresh"
        )
    for name, value in found.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UnusableError(f"as {name} holds NaN or infinity: they start afresh")
    size = found["centroids" if "centroids" in found else "bank_rows"].shape[-1]
    rows, older = (len(found[name]) if name in found else 0 for name in (_BANK[0], _OLDER[0]))
    entries = kept_entries(settings.table_entries, settings.num_clusters)
    table, cameras = num_classes, 0
    if "camera_rows" in found and "cameras" in found:
        cameras, rows_of = len(found["cameras"]), found["camera_rows"]
        table = max(table, int(rows_of.max()) + 1 if rows_of.numel() else 0)
    expected = {
        "centroids": (settings.num_clusters, size),
        "log_q": (table, entries),
        "log_q_index": (table, entries),
        "log_q_floor": (table,),
        "log_p": (settings.num_clusters,),
        "mean": (size,),
        "class_counts": (num_classes,),
        "class_means": (num_classes, size),
        "camera_rows": (num_classes, cameras),
        "cameras": (cameras,),
        "bank_rows": (rows, size),
        "bank_labels": (rows,),
        "older_rows": (older, size),
        "older_labels": (older,),
        "bank_cameras": (rows,),
        "older_cameras": (older,),
    }
    for name, shape in expected.items():
        if name in found and tuple(found[name].shape) != shape:
            raise UnusableError(
                f"as {name} is {tuple(found[name].shape)} and {shape} is needed (another number of "
                "identities, clusters, table entries or dimensions): they start afresh"
            )
    for name in (_BANK[1], _OLDER[1]):
        if name in found and len(found[name]) and int(found[name].max()) >= num_classes:
            raise UnusableError(
                f"as it has labels beyond {num_classes} identities: they start afresh"
            )


def _check_kind(found: Dict[str, Tensor], settings: RIBSettings) -> None:
    """Statistics that were made under other settings cannot be taken over."""
    kinds = (
        ("mean", settings.center, "center", "centred", "not centred, as those of 0.1"),
        (
            "log_p",
            settings.relevance == "full",
            "relevance",
            "of the full bound",
            "of the paper's",
        ),
    )
    for name, wanted, setting, with_it, without in kinds:
        if (name in found) != wanted:
            is_, asked = (without, with_it) if wanted else (with_it, without)
            raise UnusableError(
                f"as they are {is_} and {setting}={getattr(settings, setting)!r} needs them "
                f"{asked}: they start afresh (docs/method.md says how to go on with them)"
            )


def _names(settings: RIBSettings) -> List[str]:
    """Names of the statistics that there are if there are any."""
    sparse = kept_entries(settings.table_entries, settings.num_clusters) < settings.num_clusters
    optional = {
        "log_q_index": sparse,
        "log_q_floor": sparse,
        "log_p": settings.relevance == "full",
        "mean": settings.center,
        "camera_rows": False,  # they are there if cameras came
        "cameras": False,
    }
    return [name for name in Statistics._fields if optional.get(name, True)]
