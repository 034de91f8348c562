"""The few collectives that RIB needs; with one process, or none set up, they do nothing."""

from typing import Any, List, Optional, Sequence, Tuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_size() -> Tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) without ``torch.distributed``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def exchange(*numbers: int) -> List[Tuple[int, ...]]:
    """Tells every rank a few numbers and returns those of each, in the order of the ranks.

    Never waits for a GPU: where the process group is NCCL's, a gloo group is made beside it, in the
    first call (as FastReID does for its own messages).
    """
    _, size = rank_and_size()
    if size == 1:
        return [numbers]
    own = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own, group=_host_group())
    return [tuple(part.tolist()) for part in parts]


def row_counts(rows: Tensor) -> List[int]:
    """How many rows each rank has; (n, D) here.

    Raises:
        ValueError: on every rank, as D differs.
    """
    sizes = exchange(*rows.shape)
    if len({size for _, size in sizes}) > 1:
        told = ", ".join(f"rank {rank}: {size}" for rank, size in enumerate(sizes))
        raise ValueError(
            f"embeddings must have the same number of columns on every rank, got {told}; only the "
            "number of rows may differ"
        )
    return [number for number, _ in sizes]


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows (n, ...) of all ranks, in the order of the ranks, on every rank: (sum of n, ...).

    One collective whatever the `counts` of :func:`row_counts`: a rank with fewer rows than another
    adds zeros, which every rank removes again.
    """
    most = max(counts)
    if len(counts) == 1 or most == 0:
        return rows
    own = rows.contiguous()
    if len(own) < most:
        own = torch.cat([own, own.new_zeros((most - len(own),) + own.shape[1:])])
    parts = [torch.empty_like(own) for _ in counts]
    dist.all_gather(parts, own)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def sum_over_ranks(*tensors: Tensor) -> None:
    """Replaces each (contiguous) tensor by its sum over the ranks, in place."""
    if rank_and_size()[1] > 1:
        for tensor in tensors:
            if tensor.numel():
                dist.all_reduce(tensor)


def own_slice(rows: int) -> slice:
    """The share of ``rows`` rows that this rank works on; the shares differ by at most one row."""
    rank, size = rank_and_size()
    return slice(rank * rows // size, (rank + 1) * rows // size)


def own_share(weights: Tensor) -> slice:
    """The share of things of different weights (int64, >= 1) that this rank works on."""
    rank, size = rank_and_size()
    total = int(weights.sum())
    # A thing belongs to the rank in whose share of the whole weight it begins.
    begins = weights.cumsum(0) - weights
    ends = torch.tensor([rank * total // size, (rank + 1) * total // size], device=weights.device)
    first, last = torch.searchsorted(begins, ends).tolist()
    return slice(first, last)


def join_slices(own: Tensor, rows: int, where: Optional[slice] = None) -> Tensor:
    """Puts what every rank computed for its share (`where`, or :func:`own_slice`) together.

    The (rows, ...) that come are the same bits on every rank: each value is added to zeros only.
    """
    if rank_and_size()[1] == 1:
        return own
    whole = own.new_zeros((rows,) + own.shape[1:])
    whole[own_slice(rows) if where is None else where] = own
    sum_over_ranks(whole)
    return whole


def copy_from_first(tensor: Tensor) -> Tensor:
    """Gives every rank the bits of rank 0's (contiguous) tensor, in place."""
    if rank_and_size()[1] > 1:
        dist.broadcast(tensor, src=0)
    return tensor


_host_groups: Any = WeakKeyDictionary()  # of a process group, while that is there


def _host_group() -> Any:
    """A process group for tensors in main memory; None: the default one is."""
    if dist.get_backend() == "gloo":
        return None
    if dist.group.WORLD not in _host_groups:
        _host_groups[dist.group.WORLD] = dist.new_group(backend="gloo")
    return _host_groups[dist.group.WORLD]
