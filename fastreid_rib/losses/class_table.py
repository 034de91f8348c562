"""The class table Q(a|y) as the loss reads it: whole, or the largest entries of each row.

Legend: C identities (or a block of them), K clusters, m entries kept of a row.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.ops.group_sum import group_sum


class ClassTable(NamedTuple):
    """Natural logarithms of Q; without index and floor all of it."""

    log_q: Tensor
    """(C, K), or (C, m) if sparse: float32, nats."""
    log_q_index: Optional[Tensor]
    """(C, m), int32: the cluster of each entry."""
    log_q_floor: Optional[Tensor]
    """(C,), float32: log Q of the clusters that are not listed."""


def kept_entries(entries: int, clusters: int) -> int:
    """Entries m kept of a row of K clusters; 0, and any number from K on, means all."""
    return entries if 0 < entries < clusters else clusters


def class_table(q: Tensor, entries: int, least: float) -> ClassTable:
    """The table of given rows.

    A sparse row keeps its m largest entries, and the clusters that are left out share what is left
    of the row: each gets their mean. So a row still sums to one, and since the bound holds for any
    Q, the loss stays a bound; it is looser by the divergence of the row from its sparse form. The
    mean is the best shared value: no other that sums to one has a smaller divergence.

    Args:
        q: (C, K), floating point, rows that sum to one.
        entries: m; see :func:`kept_entries`.
        least: the least value, > 0. Values below it, the shared one too, are raised to it, so a row
            sums to at most ``1 + K * least``.
    """
    clusters = q.shape[1]
    entries = kept_entries(entries, clusters)
    if entries == clusters:
        return ClassTable(q.clamp(min=least).log().float(), None, None)
    largest, index = q.topk(entries, dim=1)
    rest = (1 - largest.sum(dim=1, dtype=torch.float64)) / (clusters - entries)
    floor = rest.clamp(min=least).log().float()
    return ClassTable(largest.clamp(min=least).log().float(), index.int(), floor)


def empty_table(rows: int, entries: int, clusters: int, device: torch.device) -> ClassTable:
    """Room for the table of so many rows of K clusters; ``entries`` as for :func:`class_table`."""
    width = kept_entries(entries, clusters)
    log_q = torch.zeros(rows, width, device=device)
    if width == clusters:
        return ClassTable(log_q, None, None)
    index = torch.zeros(rows, width, dtype=torch.int32, device=device)
    return ClassTable(log_q, index, torch.zeros(rows, device=device))


def put_rows_(table: ClassTable, part: slice, made: ClassTable) -> None:
    """Writes the rows that were made for a part of a table, in place."""
    for target, source in zip(table, made):
        if target is not None and source is not None:
            target[part] = source


def join_shares(own: ClassTable, rows: int, share: slice) -> ClassTable:
    """Puts the shares of all ranks together: see ``ranks.join_slices``."""
    joined = [None if t is None else ranks.join_slices(t, rows, share) for t in own]
    return ClassTable(*joined)  # type: ignore[arg-type]


def sum_of_logs(weights: Tensor, table: ClassTable) -> Tensor:
    """``sum_ya weights_ya log Q(a|y)``, float64.

    Args:
        weights: (C, K), floating point.
        table: of the same identities.
    """
    log_q, index, floor = table
    if index is None or floor is None:
        return (weights * log_q).sum(dtype=torch.float64)
    listed = weights.gather(1, index.long()) * (log_q - floor[:, None])
    others = weights.sum(dim=1, dtype=torch.float64) * floor
    return listed.sum(dtype=torch.float64) + others.sum()


def weighted_sum(weights: Tensor, table: ClassTable, clusters: int) -> Tensor:
    """``sum_y weights_y Q(a|y)``, (K,) float64.

    Args:
        weights: (C,), any dtype.
        table: of the same identities.
        clusters: K.
    """
    log_q, index, floor = table
    weights = weights.double()
    if index is None or floor is None:
        return weights @ log_q.double().exp()
    shared = floor.double().exp()
    listed = (log_q.double().exp() - shared[:, None]) * weights[:, None]
    total = (weights @ shared).expand(clusters).clone()
    return total + group_sum(listed.reshape(-1, 1), index.reshape(-1).long(), clusters).squeeze(1)
