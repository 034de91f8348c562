"""Compiled kernels prove themselves on a device before anything is computed with them there.

Small problems are computed by the kernels, and by plain PyTorch in float32 and in float64. Kernels
may differ from float32 PyTorch by :data:`ALLOWED` times as much as that differs from float64, or by
``ALLOWED * 2^-23`` of the largest number if that is more. What differs is not used.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Dict, Iterator, NamedTuple, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops import native, rows
from fastreid_rib.ops.rows import DTYPES, Clusters, Objective, aligned_rows
from fastreid_rib.settings.rib import FORMS

ALLOWED = 16.0
"""Measured: the kernels need 2.3 at most; a factor that is wrong by 0.1 % takes more than 5,000."""

_BETA = 5.0
_PROBLEMS = [
    *product([(33, 67)], FORMS, (0.0, 0.7), DTYPES, (False, True), (False, True)),
    # More shared memory than a block gets without asking, and than it can get.
    ((2, 7001), "clusters", 0.7, torch.float32, True, True),
    ((1, 60001), "embedding", 0.7, torch.float16, True, True),
]
"""(n, K), form, gamma, dtype of log Q, with log P or without, rows for wide accesses or others."""


class Comparison(NamedTuple):
    """How far the kernels are off where they are off most."""

    share: float
    """Largest difference from float32 PyTorch, over what is allowed."""
    where: str
    """Which result of which problem."""


_made: Dict[Tuple[str, torch.device], str] = {}  # what is wrong, or ""
_making = threading.Lock()


class Postponed(native.Unavailable):
    """Kernels cannot be compared just now; later they may."""


def require(kind: str, device: torch.device) -> None:
    """Loads the kernels of a kind and compares them on a device, once in a process.

    Safe to call from any thread. The first call waits for the GPU, which has its number.

    Raises:
        native.Unavailable: the kernels cannot be used, or differ. :class:`Postponed` while a CUDA
            graph is captured, or where torch sees no GPU.
    """
    if (kind, device) not in _made:
        library, name = native.load(kind), str(device)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise Postponed("torch sees no GPU here")
            if torch.cuda.is_current_stream_capturing():
                raise Postponed(
                    "the kernels have not been compared with PyTorch yet, which cannot be done "
                    "while a CUDA graph is captured: do a step before"
                )
            name += f" ({torch.cuda.get_device_name(device)})"
        with _making:
            if (kind, device) not in _made:
                _made[kind, device] = _judge(library, kind, device, name)
    if _made[kind, device]:
        raise native.Unavailable(_made[kind, device])


def _judge(library: native.Library, kind: str, device: torch.device, name: str) -> str:
    of_library = f"{library.path} ({library.description})"
    try:
        # A thread of its own is in no autocast, inference or dispatch mode.
        with ThreadPoolExecutor(1) as thread:
            share, where = thread.submit(compare, kind, device).result()
    except (native.Unavailable, torch.cuda.OutOfMemoryError):
        raise
    except RuntimeError as error:
        raise native.Unavailable(
            f"the kernels of {of_library} fail on {name}: {error}; start again with the backend "
            "'torch'"
        ) from error
    if share <= 1:
        return ""
    return (
        f"the kernels of {of_library} compute wrongly on {name}: they differ from PyTorch by "
        f"{share:.2g} times what rounding explains ({where}); `python -m fastreid_rib "
        f"build-kernels --kind {kind}` builds them anew, the backend 'torch' does without"
    )


@torch.no_grad()
def compare(kind: str, device: torch.device) -> Comparison:
    """Compares the kernels of a kind with PyTorch: the worst result. Arguments as `require`."""
    return max(_comparisons(kind, device), key=lambda one: one.share)


def _comparisons(kind: str, device: torch.device) -> Iterator[Comparison]:
    for size, form, gamma, dtype, with_p, wide in _PROBLEMS:
        products, half_norms, log_q, log_p, labels = _problem(*size, device)
        losses, gradients = [], []
        for way, real in (kind, torch.float32), ("torch", torch.float32), ("torch", torch.float64):
            # A copy, which becomes the gradient.
            gradient, stored = products.to(real, copy=True), log_q.to(dtype)
            if wide:
                gradient, stored = aligned_rows(gradient), aligned_rows(stored)
            marginal = log_p.to(real) if with_p else None
            clusters = Clusters(stored, stored, marginal, half_norms.to(real))  # no centroids
            objective = Objective(_BETA, gamma, form)
            losses.append(rows.bound_rows_(way, gradient, labels, clusters, objective))
            gradients.append(gradient)
        where = f"{size[1]} clusters, form {form}, gamma {gamma}, {dtype}"
        yield Comparison(_share_of_allowed(*losses), f"loss, {where}")
        yield Comparison(_share_of_allowed(*gradients), f"gradient, {where}")


def _problem(n: int, num_clusters: int, device: torch.device) -> Tuple[Tensor, ...]:
    """Products, half norms, log Q of 5 identities, log P, labels; the same numbers everywhere."""
    generator = torch.Generator().manual_seed(0)
    products, half_norms, log_q, log_p = (
        torch.rand(*shape, num_clusters, generator=generator, dtype=torch.float32)
        for shape in ((n,), (), (5,), ())
    )
    labels = (torch.arange(n) + 1) % 6  # 5: of no identity
    labels[3::4], labels[6::8] = -1, -9
    log_q, log_p = (8 * log_q).log_softmax(1), (4 * log_p).log_softmax(0)
    problem = 2 * products - 1, half_norms, log_q, log_p, labels
    return tuple(tensor.to(device) for tensor in problem)


def _share_of_allowed(ours: Tensor, plain: Tensor, exact: Tensor) -> float:
    size = exact.nan_to_num(0).abs().max().item()
    allowed = ALLOWED * max(_gap(plain, exact), size * torch.finfo(torch.float32).eps)
    return _gap(ours, plain) / allowed


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite where just one is NaN."""
    gap = (one.double() - other.double()).abs()
    gap = gap.masked_fill(one.isnan() & other.isnan(), 0)
    return gap.nan_to_num(nan=float("inf")).max().item()
