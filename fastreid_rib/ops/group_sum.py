"""Sum the rows of a tensor by group, with the same result in every run."""

import torch
from torch import Tensor

from fastreid_rib.ops.precision import full_precision


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
    if values.device.type == "cpu":
        return values.new_zeros(num_groups, values.shape[1]).index_add_(0, groups, values)
    one_hot = torch.arange(num_groups, device=groups.device)[:, None] == groups
    with full_precision(values.device):
        return one_hot.to(values.dtype) @ values
