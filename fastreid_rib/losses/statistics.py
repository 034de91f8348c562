"""What the loss compares with, and what a checkpoint keeps of it: all of it or nothing.

Legend: D dimensions, K clusters, C identities, V cameras, M pairs of an identity and a camera, N
rows in the reservoir, S differences between cameras. M and S are 0 where no cameras are given.
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops import Clusters, aligned_rows
from fastreid_rib.ops.assignment import half_squared_norms
from fastreid_rib.settings.rib import RIBSettings


class Statistics(NamedTuple):
    """What the loss compares with during an epoch; the same on every rank."""

    centroids: Tensor
    """(K, D), float32."""
    log_q: Tensor
    """(C + M, K), float32: log of the floored Q(a|y), nats."""
    log_p: Optional[Tensor]
    """(K,), float32: log of the marginal P(a) of the rows, nats; None: not asked for."""
    mean: Optional[Tensor]
    """(D,), float32: what embeddings are centred by; None: they are not."""
    class_counts: Tensor
    """(C,), int64: rows in the mean of each identity, when last seen; 0: never seen."""
    class_means: Tensor
    """(C, D), float32: mean (centred) embedding of each identity, when last seen."""
    camera_rows: Optional[Tensor] = None
    """(C, V), int64: the row of ``log_q`` for an identity and a camera; None: no cameras."""
    cameras: Optional[Tensor] = None
    """(V,), int64, sorted; None with ``camera_rows``."""
    compression: float = 0.0
    """0..1: what it is multiplied by, beside gamma; see ``RIBLoss.start_epoch``. On the host, so
    that no step waits for it. 0 in checkpoints of 0.2, which had no use for it."""
    differences: Optional[Tensor] = None
    """(S, D), float16: see ``noise.between_cameras``; None: no cameras, or no noise."""
    half_norms: Optional[Tensor] = None
    """(K,), float32: ``|C_a|^2 / 2``. It follows from the centroids, so no checkpoint has it."""

    @property
    def clusters(self) -> Clusters:
        """What ``ops.bound`` compares with."""
        return Clusters(self.centroids, self.log_q, self.log_p, self.half_norms)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Statistics":
        """The same with each tensor moved, as ``nn.Module.to`` moves its own."""
        return Statistics(*(move(t) if isinstance(t, Tensor) else t for t in self))  # type: ignore[arg-type]

    def prepared(self) -> "Statistics":
        """The same as a step reads it fast: aligned rows, and norms at hand."""
        norms = half_squared_norms(self.centroids)
        return self._replace(log_q=aligned_rows(self.log_q), half_norms=norms)


State = Tuple[int, int, Optional[Statistics], Optional[Tuple[Tensor, Tensor]]]
"""What a process needs to continue as another would have: the epoch last started (-1: none), the
number of its embeddings so far, the statistics, and what the reservoir holds, see `content`."""


class UnusableError(Exception):
    """What is found in a checkpoint cannot be taken over; the text says why."""


_SHAPES = {
    "epoch": "",
    "rows_seen": "",
    "centroids": "KD",
    "log_q": "RK",
    "log_p": "K",
    "mean": "D",
    "class_counts": "C",
    "class_means": "CD",
    "camera_rows": "CV",
    "cameras": "V",
    "compression": "",
    "differences": "SD",
    "bank_rows": "ND",
    "bank_labels": "N",
    "bank_cameras": "N",
}
_COUNTERS, _STATISTICS = ("epoch", "rows_seen"), Statistics._fields[:-1]
_BANK = ("bank_rows", "bank_labels", "bank_cameras")
_SPARSE = ("log_q_index", "log_q_floor")
_OLDER = ("older_rows", "older_labels", "older_inputs", "older_cameras")
GONE = ("steps", "epoch_steps", "bank_inputs", *_OLDER)
"""What earlier versions wrote for settings that are gone."""
NAMES = (*_SHAPES, *_SPARSE, *GONE)
"""The names of everything that may be in a checkpoint, of earlier versions too."""


def to_tensors(state: State) -> Dict[str, Tensor]:
    """A state under the names of a checkpoint."""
    *counters, statistics, bank = state
    found = {name: torch.tensor(value) for name, value in zip(_COUNTERS, counters)}
    if statistics is not None:
        for name, value in zip(_STATISTICS, statistics):
            if isinstance(value, float):
                value = torch.tensor(value, dtype=torch.float64)
            if value is not None:
                found[name] = value.contiguous()
    if bank is not None:
        # Copies: torch.save writes the whole storage of a view.
        labels, cameras = bank[1].t()
        found["bank_rows"], found["bank_labels"] = bank[0].clone(), labels.clone()
        if bool((cameras > 0).any()):
            found["bank_cameras"] = cameras.clone()
    return found


def from_tensors(
    found: Dict[str, Tensor], settings: RIBSettings, num_classes: int, device: torch.device
) -> State:
    """The state that a checkpoint holds, for a loss of these settings; copies the tensors.

    Raises:
        UnusableError: it was made under other settings, or is damaged.
    """
    _check(found, settings, num_classes)
    names = [name for name in _STATISTICS + _BANK if name in found]
    tensors = {name: found[name].detach().to(device, copy=True) for name in names}
    statistics = None
    if "centroids" in tensors:
        if not settings.cross_camera and "camera_rows" in tensors:
            tensors["log_q"] = tensors["log_q"][:num_classes].clone()
            for name in ("camera_rows", "cameras", "differences"):
                tensors.pop(name, None)
        kept: Dict[str, Any] = {name: tensors.get(name) for name in _STATISTICS}
        kept["compression"] = float(tensors.get("compression", 0.0))
        statistics = Statistics(**kept).prepared()
    bank = None
    if "bank_rows" in tensors:
        labels = tensors["bank_labels"]
        cameras = tensors.get("bank_cameras", torch.zeros_like(labels))
        bank = tensors["bank_rows"], torch.stack([labels, cameras], dim=1)
    epoch, seen = (int(found[name]) for name in _COUNTERS)
    return epoch, seen, statistics, bank


def _check(found: Dict[str, Tensor], settings: RIBSettings, num_classes: int) -> None:
    if any(name in found for name in _SPARSE):
        raise UnusableError("as their table is sparse (table_entries, which is gone)")
    needed = [*_COUNTERS]
    if any(name in found for name in _STATISTICS):
        full = settings.relevance == "full"
        kinds = (("mean", "center", settings.center), ("log_p", "relevance", full))
        for name, setting, wanted in kinds:
            if (name in found) != wanted:
                raise UnusableError(
                    f"as they were made with another {setting} than "
                    f"{getattr(settings, setting)!r} (docs/guide/resume.md says how to use them)"
                )
        needed += ["centroids", "log_q", "class_counts", "class_means"]
        if "camera_rows" in found or "cameras" in found:
            needed += ["camera_rows", "cameras"]
    if any(name in found for name in _BANK) or int(found.get("rows_seen", 0)):
        needed += _BANK[:2]
    missing = [name for name in needed if name not in found]
    if missing:
        raise UnusableError(f"as {', '.join(missing)} is missing")

    none = torch.empty(0, dtype=torch.int64)
    of_pairs = found.get("camera_rows", none)
    sizes = {
        "K": settings.num_clusters,
        "C": num_classes,
        "R": max(num_classes, int(of_pairs.max()) + 1 if of_pairs.numel() else 0),
        "D": found.get("centroids", found.get("bank_rows", none)).shape[-1],
        "V": len(found.get("cameras", none)),
        "N": len(found.get("bank_labels", none)),
        "S": len(found.get("differences", none)),
    }
    for name, letters in _SHAPES.items():
        value, shape = found.get(name), tuple(sizes[letter] for letter in letters)
        if value is not None and tuple(value.shape) != shape:
            raise UnusableError(
                f"as {name} is {tuple(value.shape)} and {shape} is needed (another number of "
                "identities, clusters or dimensions)"
            )
        if value is not None and not bool(value.isfinite().all()):
            raise UnusableError(f"as {name} holds NaN or infinity")
    if found.get("bank_labels", none).gt(num_classes - 1).any():
        raise UnusableError(f"as it has labels beyond {num_classes} identities")
