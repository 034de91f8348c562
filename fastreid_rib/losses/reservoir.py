"""A uniform sample of the embeddings of an epoch, the same on every rank."""

import random
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn


class Reservoir(nn.Module):
    """Rows of an epoch's stream: all of them up to ``limit``, a uniform sample beyond.

    Vitter's algorithm R. Which row goes where is decided on the host, from a generator keyed by
    (seed, epoch, rows seen): nothing waits for a GPU, ranks that are fed the same rows agree
    without talking, and a process that resumes goes on as the one that stopped would have.

    Memory grows by doubling. A module only so that its tensors follow ``.to``; they stay out of the
    state_dict, where their owner puts the filled part.

    Args:
        limit: most rows kept, >= 1.
        seed: any integer.
    """

    rows: Optional[Tensor]
    labels: Optional[Tensor]
    inputs: Optional[Tensor]

    def __init__(self, limit: int, seed: int) -> None:
        super().__init__()
        self.limit = limit
        self.seed = seed
        self.seen = 0
        self.epoch = -1
        for name in ("rows", "labels", "inputs"):
            self.register_buffer(name, None, persistent=False)
        self._stream_limit = limit

    @property
    def filled(self) -> int:
        """Number of rows held."""
        return min(self.seen, self._stream_limit)

    def clear(self, epoch: int) -> None:
        """Forgets all rows; the stream of ``epoch`` begins."""
        self.restore(None, None, None, 0, epoch)

    def restore(
        self,
        rows: Optional[Tensor],
        labels: Optional[Tensor],
        inputs: Optional[Tensor],
        seen: int,
        epoch: int,
    ) -> None:
        """Takes over the state of another: what :meth:`content` gave, and its counters."""
        self.rows, self.labels, self.inputs = rows, labels, inputs
        self.seen, self.epoch = seen, epoch
        held = 0 if rows is None else len(rows)
        # A stream that has already been sampled must stay at its size, or it would be biased.
        self._stream_limit = held if seen > held else max(self.limit, held)

    def content(self) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
        """The rows held (filled, D), their labels (filled,) and inputs (filled, P) or None."""
        assert self.rows is not None and self.labels is not None
        inputs = None if self.inputs is None else self.inputs[: self.filled]
        return self.rows[: self.filled], self.labels[: self.filled], inputs

    @torch.no_grad()
    def add(self, rows: Tensor, labels: Tensor, inputs: Optional[Tensor] = None) -> None:
        """Next rows of the stream.

        Args:
            rows: (m, D), float16.
            labels: (m,), int64; a negative one marks a row that counts but carries nothing.
            inputs: (m, P), float16, in every call of a stream or in none.

        Raises:
            ValueError: inputs came in one call of the stream and not in another, or sizes changed.
        """
        if self.seen:
            held = self.content()
            for name, new, old in zip(("embeddings", "inputs"), (rows, inputs), held[::2]):
                if (new is None) != (old is None) or (
                    new is not None and old is not None and new.shape[1] != old.shape[1]
                ):
                    raise ValueError(
                        f"{name} of one epoch must all have the same size: expected "
                        f"{_size(old)}, got {_size(new)}; pass the same kind in every step"
                    )
        targets, sources = self._places(len(labels))
        self._grow(max(targets, default=-1) + 1, rows, labels, inputs)
        for buffer, new in ((self.rows, rows), (self.labels, labels), (self.inputs, inputs)):
            if buffer is not None and new is not None and targets:
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

    def _grow(self, needed: int, rows: Tensor, labels: Tensor, inputs: Optional[Tensor]) -> None:
        held = 0 if self.rows is None else len(self.rows)
        if needed <= held:
            return
        capacity = min(max(needed, 2 * held), self._stream_limit)
        self.rows = _enlarged(self.rows, capacity, rows)
        self.labels = _enlarged(self.labels, capacity, labels)
        self.inputs = None if inputs is None else _enlarged(self.inputs, capacity, inputs)


def _size(rows: Optional[Tensor]) -> str:
    return "none" if rows is None else f"(n, {rows.shape[1]})"


def _enlarged(buffer: Optional[Tensor], capacity: int, like: Tensor) -> Tensor:
    new = like.new_zeros((capacity,) + like.shape[1:])
    if buffer is not None:
        new[: len(buffer)] = buffer
    return new


def _put(buffer: Tensor, targets: List[int], new: Tensor, sources: List[int]) -> None:
    first, count = targets[0], len(targets)
    if targets == list(range(first, first + count)) and count == len(new):
        buffer[first : first + count] = new
        return
    # non_blocking: a plain copy of the indices would wait for the GPU.
    target = torch.tensor(targets).to(buffer.device, non_blocking=True)
    source = torch.tensor(sources).to(buffer.device, non_blocking=True)
    buffer.index_copy_(0, target, new.index_select(0, source))
