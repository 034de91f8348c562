"""Compiled kernels prove themselves on a device before anything is computed with them there.

Small problems are computed by the kernels, and by plain PyTorch in float32 and in float64. Kernels
may differ from float32 PyTorch by :data:`ALLOWED` times as much as that differs from float64, or by
``ALLOWED * 2^-23`` of the largest number if that is more. What differs is not used.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops import native
from fastreid_rib.ops.layout import aligned_rows
from fastreid_rib.ops.rows import (
    DTYPES,
    Clusters,
    Objective,
    compiled_bound,
    compiled_table,
    plain_bound,
    plain_table,
)
from fastreid_rib.settings.rib import FORMS

ALLOWED = 16.0
"""Measured: the kernels need at most 3 of it, and a factor that is wrong by 0.1 % takes 100."""

_BETA = 5.0
_Operation = Callable[..., Tensor]


class Comparison(NamedTuple):
    """How far a kernel is off where it is off most, compared with what is allowed there."""

    kernel: str
    """"bound" or "table"."""
    difference: float
    """Largest difference from PyTorch, float32."""
    allowed: float
    """What the rounding of float32 explains of it."""
    where: str
    """Which result of which problem."""


_Verdict = Tuple[Tuple[Comparison, ...], str]  # the worst of each kernel; what is wrong, or ""
_made: Dict[Tuple[str, torch.device], _Verdict] = {}
_making = threading.Lock()


class Postponed(native.Unavailable):
    """Kernels cannot be compared just now; later they may."""


def require(kind: str, device: torch.device) -> Tuple[Comparison, ...]:
    """Loads the kernels of a kind and compares them on a device, once in a process.

    Safe to call from any thread. The first call waits for the GPU.

    Args:
        kind: "cuda" or "cpu".
        device: where the tensors are; a GPU with its number.

    Returns:
        The worst of each kernel.

    Raises:
        native.Unavailable: the kernels cannot be used, or differ. :class:`Postponed` while a CUDA
            graph is captured, or where torch sees no GPU.
    """
    comparisons, complaint = _made.get((kind, device)) or _compare_once(kind, device)
    if complaint:
        raise native.Unavailable(complaint)
    return comparisons


def _compare_once(kind: str, device: torch.device) -> _Verdict:
    library = native.load(kind)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise Postponed("torch sees no GPU here")
        if torch.cuda.is_current_stream_capturing():
            raise Postponed(
                "the kernels have not been compared with PyTorch yet, which cannot be done while a "
                "CUDA graph is captured: do a step before"
            )
    with _making:
        if (kind, device) not in _made:
            which = f"of {library.path} ({library.description})"
            remedy = f"`python -m fastreid_rib build-kernels --kind {kind}` builds them anew"
            # A thread of its own is in no autocast, inference or dispatch mode.
            with ThreadPoolExecutor(1) as thread:
                try:
                    comparisons = thread.submit(compare, kind, device).result()
                except (native.Unavailable, torch.cuda.OutOfMemoryError):
                    raise
                except RuntimeError as error:
                    raise native.Unavailable(
                        f"the kernels {which} fail on {_name(device)}: {error}; start again with "
                        "the backend 'torch'"
                    ) from error
            complaints = [
                f"the kernel '{kernel}' {which} computes wrongly on {_name(device)}: it differs "
                f"from PyTorch by {difference:.2g} ({where}), where rounding explains "
                f"{allowed:.2g}; {remedy}, the backend 'torch' does without them"
                for kernel, difference, allowed, where in comparisons
                if difference > allowed
            ]
            _made[kind, device] = comparisons, "; ".join(complaints)
    return _made[kind, device]


@torch.no_grad()
def compare(kind: str, device: torch.device) -> Tuple[Comparison, ...]:
    """Compares every kernel of a kind with PyTorch; the worst of each. Arguments as `require`."""
    problem = _problem(device)
    return tuple(
        max(compared, key=lambda one: one.difference / one.allowed)
        for compared in (_bounds(kind, *problem), _tables(kind, *problem))
    )


def _bounds(
    kind: str, products: Tensor, half_norms: Tensor, log_q: Tensor, log_p: Tensor, labels: Tensor
) -> Iterator[Comparison]:
    """Every form and dtype, rows for wide accesses and others, labels of no identity."""
    for form, gamma, dtype, with_p, wide in itertools.product(
        FORMS, (0.0, 0.7), DTYPES, (False, True), (False, True)
    ):
        losses, gradients = [], []
        for compute, real in _three_ways(partial(compiled_bound, kind), plain_bound):
            rows = aligned_rows(products) if wide else products.clone()
            gradient = rows.to(real)
            stored = aligned_rows(log_q.to(dtype)) if wide else log_q.to(dtype)
            marginal = log_p.to(real) if with_p else None
            clusters = Clusters(stored, stored, marginal, half_norms.to(real))  # no centroids
            losses.append(compute(gradient, labels, clusters, Objective(_BETA, gamma, form)))
            gradients.append(gradient)
        where = f"form {form}, gamma {gamma}, {'with' if with_p else 'no'} log_p, {dtype}"
        yield _comparison("bound", f"loss, {where}", *losses)
        yield _comparison("bound", f"gradient, {where}", *gradients)


def _tables(
    kind: str, products: Tensor, half_norms: Tensor, log_q: Tensor, _: Tensor, labels: Tensor
) -> Iterator[Comparison]:
    """Sums and negentropies; the sums of two runs must have the same bits."""
    compiled: _Operation = partial(compiled_table, kind)
    sums, negentropies = [], []
    for compute, real in [*_three_ways(compiled, plain_table), (compiled, torch.float32)]:
        sums.append(torch.ones_like(log_q, dtype=real))
        made = products.to(real, copy=True), half_norms.to(real)
        negentropies.append(compute(sums[-1], *made, labels, _BETA))
    yield _comparison("table", "negentropy", *negentropies[:3])
    yield _comparison("table", "sums", *sums[:3])
    yield Comparison("table", _gap(sums[0], sums[3]), 1e-300, "sums, from run to run")


def _three_ways(compiled: _Operation, plain: _Operation) -> List[Tuple[_Operation, torch.dtype]]:
    return [(compiled, torch.float32), (plain, torch.float32), (plain, torch.float64)]


def _problem(device: torch.device) -> Tuple[Tensor, ...]:
    """33 images, 67 clusters, 5 identities; the same numbers everywhere."""
    generator = torch.Generator().manual_seed(0)
    products = torch.rand(33, 67, generator=generator, dtype=torch.float32) * 2 - 1
    half_norms = torch.rand(67, generator=generator, dtype=torch.float32)
    log_q = torch.randn(5, 67, generator=generator, dtype=torch.float32).log_softmax(1)
    log_p = torch.randn(67, generator=generator, dtype=torch.float32).log_softmax(0)
    labels = torch.arange(33) % 6  # 5: of no identity
    labels[::4], labels[7] = -1, -9
    return tuple(tensor.to(device) for tensor in (products, half_norms, log_q, log_p, labels))


def _comparison(kernel: str, where: str, ours: Tensor, plain: Tensor, exact: Tensor) -> Comparison:
    size = exact.nan_to_num(0).abs().max().item()
    allowed = ALLOWED * max(_gap(plain, exact), size * torch.finfo(torch.float32).eps)
    return Comparison(kernel, _gap(ours, plain), allowed, where)


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where just one is NaN."""
    gap = (one.double() - other.double()).abs()
    gap = gap.masked_fill(one.isnan() & other.isnan(), 0)
    return gap.nan_to_num(nan=float("inf")).max().item()


def _name(device: torch.device) -> str:
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"
    return f"{device} ({model})"
