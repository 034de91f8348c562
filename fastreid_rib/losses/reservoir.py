"""A uniform sample of the embeddings of an epoch, the same on every rank."""

import random
from typing import Callable, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.base import ranks


class Reservoir:
    """Rows of an epoch's stream: all of them up to ``limit``, a uniform sample beyond.

    Vitter's algorithm R. Which row goes where is decided on the host, from a generator keyed by
    (seed, epoch, rows seen): nothing waits for a GPU, ranks that are fed the same rows agree
    without talking, and a process that resumes does what the one that stopped would have done.
    Memory grows by doubling.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self.limit = limit
        self.seed = seed
        self.begin(-1)

    @property
    def filled(self) -> int:
        """Number of rows held."""
        return min(self.seen, self._stream_limit)

    def begin(
        self, epoch: int, seen: int = 0, content: Optional[Tuple[Tensor, Tensor]] = None
    ) -> None:
        """The stream of an epoch begins, or resumes with what another saw and its ``content()``."""
        self.rows: Optional[Tensor]
        self.labels: Optional[Tensor]
        self.rows, self.labels = content or (None, None)
        self._largest: Optional[Tensor] = None  # label since then
        self.seen, self.epoch = seen, epoch
        held = 0 if self.rows is None else len(self.rows)
        # A stream that has already been sampled must stay at its size, or it would be biased.
        self._stream_limit = held if seen > held else max(self.limit, held)

    def content(self) -> Tuple[Tensor, Tensor]:
        """The rows held, (filled, D), and their labels, (filled, 2)."""
        assert self.rows is not None and self.labels is not None
        return self.rows[: self.filled], self.labels[: self.filled]

    def largest_label(self) -> int:
        """Of the rows added since `begin`, held or not; -1: there are none. Waits for a GPU."""
        return -1 if self._largest is None else int(self._largest)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Moves all tensors, as ``nn.Module`` does its own."""
        for name in ("rows", "labels", "_largest"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else fn(value))

    @torch.no_grad()
    def gather(self, embeddings: Tensor, labels: Tensor, cameras: Optional[Tensor]) -> None:
        """Next batch of the stream: that of all ranks, L2-normalised; unknown cameras are 0.

        Raises:
            ValueError: on every rank, as the ranks' embeddings have other numbers of columns.
        """
        rows = F.normalize(embeddings.float(), dim=1)
        # Marked, not dropped: how many there are is known on the device only.
        usable = rows.isfinite().all(dim=1) & rows.bool().any(dim=1)
        labels = labels.masked_fill(~usable, -1)
        cameras = torch.zeros_like(labels) if cameras is None else cameras
        counts = ranks.row_counts(rows)
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
        if len(labels):
            largest, before = labels[:, 0].max(), self._largest
            self._largest = largest if before is None else torch.maximum(before, largest)
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


def _put(buffer: Tensor, targets: List[int], new: Tensor, sources: List[int]) -> None:
    first, count = targets[0], len(targets)
    if targets == list(range(first, first + count)) and count == len(new):
        buffer[first : first + count] = new
        return
    # non_blocking: a plain copy of the indices would wait for the GPU.
    target = torch.tensor(targets, device="cpu").to(buffer.device, non_blocking=True)
    source = torch.tensor(sources, device="cpu").to(buffer.device, non_blocking=True)
    buffer.index_copy_(0, target, new.index_select(0, source))
