"""The few collectives that RIB needs; with one process, or none set up, they do nothing."""

from typing import Tuple

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> Tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the ranks, on every rank.

    Args:
        rows: (n, ...), of the same shape and dtype on every rank.

    Returns:
        (n * ranks, ...)
    """
    _, size = rank_and_size()
    if size == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replace each (contiguous) tensor by its sum over the ranks, in place."""
    if rank_and_size()[1] > 1:
        for tensor in tensors:
            if tensor.numel():
                dist.all_reduce(tensor)


def own_slice(rows: int) -> slice:
    """The share of ``rows`` rows that this rank works on; the shares differ by at most one row."""
    rank, size = rank_and_size()
    return slice(rank * rows // size, (rank + 1) * rows // size)


def join_slices(own: Tensor, rows: int) -> Tensor:
    """Put what every rank computed for its :func:`own_slice` together.

    Args:
        own: (length of the own slice, ...)
        rows: number of rows of the whole.

    Returns:
        (rows, ...), the same bits on every rank: each value is added to zeros only.
    """
    if rank_and_size()[1] == 1:
        return own
    whole = own.new_zeros((rows,) + own.shape[1:])
    whole[own_slice(rows)] = own
    sum_over_ranks(whole)
    return whole


def copy_from_first(tensor: Tensor) -> Tensor:
    """Give every rank the bits of rank 0's (contiguous) tensor, in place."""
    if rank_and_size()[1] > 1:
        dist.broadcast(tensor, src=0)
    return tensor
