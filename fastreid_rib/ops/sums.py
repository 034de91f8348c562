"""Sums by group, with the same result in every run; and what a table of sums tells, in nats."""

from typing import Iterator

import torch
from torch import Tensor

from fastreid_rib.ops.modes import full_precision

# Elements of the one-hot matrix of a chunk of rows: 64 MiB in float32.
_ONE_HOT_ELEMENTS = 2**24
# Elements of another temporary, (rows of a chunk, clusters): 16 MiB in float32.
_CHUNK_ELEMENTS = 2**22


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` rows such that a (chunk, columns) matrix stays small."""
    step = max(1, min(_CHUNK_ELEMENTS // max(columns, 1), 8192))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def group_sum(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Sums of the rows that belong to each group.

    On the CPU ``index_add_`` adds in order. On a GPU it adds with atomics, in another order each
    time, so there the sum is a product with the one-hot matrix of the groups.

    Args:
        values: (n, d), floating point.
        groups: (n,), int64, 0..num_groups-1.
        num_groups: number of groups G.

    Returns:
        (G, d), dtype of ``values``; zero for a group without rows.
    """
    sums = values.new_zeros(num_groups, values.shape[1])
    if values.device.type == "cpu":
        return sums.index_add_(0, groups, values)
    step = max(1, _ONE_HOT_ELEMENTS // max(num_groups, 1))
    for start in range(0, len(values), step):
        part = groups[start : start + step]
        one_hot = torch.arange(num_groups, device=groups.device)[:, None] == part
        with full_precision(values.device):
            sums.addmm_(one_hot.to(values.dtype), values[start : start + step])
    return sums


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information of a joint table of weights >= 0, which need not sum to one: float64."""
    of_cells = joint.new_zeros((), dtype=torch.float64)
    for part in chunks(len(joint), joint.shape[1]):
        of_cells += negentropy(joint[part])
    columns, rows = (joint.sum(dim=dim, dtype=torch.float64) for dim in (0, 1))
    total = columns.sum()
    return (of_cells - (negentropy(rows) + negentropy(columns) - negentropy(total))) / total


def negentropy(weights: Tensor) -> Tensor:
    """sum w log w of weights >= 0, which need not sum to one: float64."""
    weights = weights.double()
    # The least normal number: 0 log 0 counts as 0. (torch.xlogy is several times slower.)
    return (weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum()
