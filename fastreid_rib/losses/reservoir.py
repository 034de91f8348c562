"""A uniform sample of the embeddings of an epoch, the same on every rank."""

import random
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.base import ranks


class Reservoir(nn.Module):
    """Rows of an epoch's stream: all of them up to ``limit``, a uniform sample beyond.

    Vitter's algorithm R. Which row goes where is decided on the host, from a generator keyed by
    (seed, epoch, rows seen): nothing waits for a GPU, ranks that are fed the same rows agree
    without talking, and a process that resumes does what the one that stopped would have done.

    Memory grows by doubling. A module only so that its tensors follow ``.to``; they stay out of the
    state_dict, where their owner puts the filled part.

    Args:
        limit: most rows kept, >= 1.
        seed: any integer.
    """

    rows: Optional[Tensor]
    labels: Optional[Tensor]

    def __init__(self, limit: int, seed: int) -> None:
        super().__init__()
        self.limit = limit
        self.seed = seed
        self.seen = 0
        self.epoch = -1
        for name in ("rows", "labels"):
            self.register_buffer(name, None, persistent=False)
        self._stream_limit = limit

    @property
    def filled(self) -> int:
        """Number of rows held."""
        return min(self.seen, self._stream_limit)

    def clear(self, epoch: int) -> None:
        """Forgets all rows; the stream of ``epoch`` begins."""
        self.restore(None, 0, epoch)

    def restore(self, content: Optional[Tuple[Tensor, Tensor]], seen: int, epoch: int) -> None:
        """Takes over the state of another: what :meth:`content` gave, and its counters."""
        self.rows, self.labels = content or (None, None)
        self.seen, self.epoch = seen, epoch
        held = 0 if self.rows is None else len(self.rows)
        # A stream that has already been sampled must stay at its size, or it would be biased.
        self._stream_limit = held if seen > held else max(self.limit, held)

    def content(self) -> Tuple[Tensor, Tensor]:
        """The rows held (filled, D) and their labels (filled, 2)."""
        assert self.rows is not None and self.labels is not None
        return self.rows[: self.filled], self.labels[: self.filled]

    @torch.no_grad()
    def gather(self, embeddings: Tensor, labels: Tensor, cameras: Optional[Tensor]) -> None:
        """Next batch of the stream: that of all ranks, L2-normalised, with its marks.

        Args:
            embeddings: (n, D), floating point; n may differ from rank to rank.
            labels: (n,), int64.
            cameras: (n,), int64; None: not known, which is written as 0.

        Raises:
            ValueError: on every rank, as the ranks' embeddings have other numbers of columns.
        """
        rows = F.normalize(embeddings.float(), dim=1)
        # Marked, not dropped: how many there are is known on the device only.
        labels = labels.masked_fill(~rows.isfinite().all(dim=1), -1)
        cameras = torch.zeros_like(labels) if cameras is None else cameras
        counts = _rows_of_ranks(*rows.shape)
        rows = ranks.gather_rows(torch.nan_to_num(rows).half(), counts)
        self.add(rows, ranks.gather_rows(torch.stack([labels, cameras], dim=1), counts))

    @torch.no_grad()
    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Next rows of the stream.

        Args:
            rows: (m, D), float16; D as in the call before.
            labels: (m, 2), int64: identity and camera of each; a negative identity marks a row
                that counts but carries nothing.
        """
        targets, sources = self._places(len(labels))
        self._grow(max(targets, default=-1) + 1, rows, labels)
        for buffer, new in ((self.rows, rows), (self.labels, labels)):
            if buffer is not None and targets:
                _put(buffer, targets, new, sources)
        self.seen += len(labels)

    def _places(self, count: int) -> Tuple[List[int], List[int]]:
        """Where the next ``count`` rows go: targets here, and which of the new rows (sources)."""
        draw = random.Random(f"{self.seed}/{self.epoch}/{self.seen}")
        last = {}  # a place that is drawn twice keeps the later row
        for source in range(count):
            position = self.seen + source
            full = position >= self._stream_limit
            target = draw.randrange(position + 1) if full else position
            if target < self._stream_limit:
                last[target] = source
        return list(last.keys()), list(last.values())

    def _grow(self, needed: int, rows: Tensor, labels: Tensor) -> None:
        held = 0 if self.rows is None else len(self.rows)
        if needed <= held:
            return
        capacity = min(max(needed, 2 * held), self._stream_limit)
        for name, like in (("rows", rows), ("labels", labels)):
            old, new = getattr(self, name), like.new_zeros((capacity, like.shape[1]))
            if old is not None:
                new[:held] = old
            setattr(self, name, new)


def _rows_of_ranks(rows: int, dimensions: int) -> List[int]:
    """The batch size of each rank; raises, on all of them, if their rows cannot be put together."""
    sizes = ranks.exchange(rows, dimensions)
    if len({size for _, size in sizes}) > 1:
        told = ", ".join(f"rank {rank}: {size}" for rank, size in enumerate(sizes))
        raise ValueError(
            f"embeddings must have the same number of columns on every rank, got {told}; only the "
            "number of rows may differ"
        )
    return [number for number, _ in sizes]


def _put(buffer: Tensor, targets: List[int], new: Tensor, sources: List[int]) -> None:
    first, count = targets[0], len(targets)
    if targets == list(range(first, first + count)) and count == len(new):
        buffer[first : first + count] = new
        return
    # non_blocking: a plain copy of the indices would wait for the GPU.
    target = torch.tensor(targets).to(buffer.device, non_blocking=True)
    source = torch.tensor(sources).to(buffer.device, non_blocking=True)
    buffer.index_copy_(0, target, new.index_select(0, source))
