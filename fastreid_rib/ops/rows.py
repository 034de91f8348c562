"""The bound from rows of products, by a compiled kernel and in plain PyTorch.

Legend: n images, K clusters, C identities; ``products`` (n, K) are ``F_i . C_a``, rows contiguous,
``half_norms`` (K,) are ``|C_a|^2 / 2``; what these make of each other is written in ``csrc/rib.h``.
``kind`` is "cuda", "cpu" or "torch", from ``backends.choose``; kernels that fail to launch raise
:class:`native.Unavailable` and change nothing.
"""

import contextlib
from typing import ContextManager, NamedTuple, Optional

import torch
from torch import Tensor

from fastreid_rib.ops import native
from fastreid_rib.settings.rib import FORMS

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Of log Q as the kernels read it, numbered as ``rib_dtype`` in rib.h."""

_LINE = 16  # floats in a cache line; four would do for the kernels' 16-byte accesses


class Clusters(NamedTuple):
    """What images are compared with: constants, which get no gradient."""

    centroids: Tensor
    """(K, D), floating point."""
    log_q: Tensor
    """(C, K), float32, float16 or bfloat16, read as it is stored: natural logarithms of Q(a|y).
    Rows that begin at aligned addresses are read faster: ``ops.aligned_rows`` makes such a copy."""
    log_p: Optional[Tensor] = None
    """(K,), floating point: natural logarithms of the clusters' marginal P(a); ``log Q - log P``
    must be below 80 (the form "embedding" sums its exponentials). None: P = 1."""
    half_norms: Optional[Tensor] = None
    """(K,): ``|C_a|^2 / 2``, if it is at hand (it changes once an epoch)."""


class Objective(NamedTuple):
    """Which bound, and what computes it."""

    beta: float
    """Sharpness of the soft assignment, > 0."""
    gamma: float = 0.0
    """Weight of the compression, >= 0."""
    form: str = "clusters"
    """"clusters" or "embedding": whose information about the identity is bounded."""
    backend: str = "auto"
    """"auto", "cuda", "cpu" or "torch", see ``backends.choose``."""


def empty_rows(like: Tensor, rows: int, columns: int) -> Tensor:
    """An uninitialised matrix whose rows begin at aligned addresses, whatever their length.

    K is often odd (751, 1041 identities), and the rows of a contiguous (n, 751) matrix begin at
    addresses that no wide access can start from: the kernels would go number by number, and the
    matrix product is up to a third slower. The pitch is an odd number of cache lines: at a power of
    two all rows would compete for the same few places in the cache.

    Returns:
        (rows, columns), dtype and device of ``like``.
    """
    lines = (columns + _LINE - 1) // _LINE
    return like.new_empty_strided((rows, columns), (_LINE * (lines | 1), 1))


def aligned_rows(matrix: Tensor) -> Tensor:
    """A copy of a matrix in the layout of :func:`empty_rows`."""
    return empty_rows(matrix, *matrix.shape).copy_(matrix)


def bound_rows_(
    kind: str, products: Tensor, labels: Tensor, clusters: Clusters, objective: Objective
) -> Tensor:
    """Turns products into the gradient of the bound, in place, and returns the bound.

    Args:
        kind: what computes it.
        products: (n, K), float32 or (by PyTorch) float64. In: ``F_i . C_a``. Out:
            ``d loss_i / d logits_ia`` with ``logits_ia = 2 beta (F_i . C_a - |C_a|^2 / 2)``.
        labels: (n,), int64; see ``ops.bound``.
        clusters: with ``half_norms``; these and ``log_p`` in the dtype of ``products``.
        objective: see ``ops.bound``.

    Returns:
        (n,), dtype of ``products``, nats.
    """
    if kind == "torch":
        return _plain_bound(products, labels, clusters, objective)
    _, log_q, log_p, half_norms = clusters
    assert half_norms is not None
    log_q = _with_contiguous_rows(log_q if log_q.dtype in DTYPES else log_q.float())
    labels, half_norms = labels.contiguous(), half_norms.contiguous()
    log_p = None if log_p is None else log_p.contiguous()
    loss = products.new_empty(len(products))
    arguments = native.BoundArgs(
        products=products.data_ptr(),
        half_norms=half_norms.data_ptr(),
        log_q=log_q.data_ptr(),
        log_p=None if log_p is None else log_p.data_ptr(),
        labels=labels.data_ptr(),
        loss=loss.data_ptr(),
        n=len(products),
        K=products.shape[1],
        C=len(log_q),
        products_pitch=_pitch(products),
        log_q_pitch=_pitch(log_q),
        scale=2 * objective.beta,
        gamma=objective.gamma,
        log_q_dtype=DTYPES[log_q.dtype],
        form=FORMS.index(objective.form),
        variant=-1,
    )
    with placed(arguments, products.device):
        native.load(kind).bound(arguments)
    return loss


def _plain_bound(
    products: Tensor, labels: Tensor, clusters: Clusters, objective: Objective
) -> Tensor:
    _, log_q, log_p, half_norms = clusters
    beta, gamma, form, _ = objective
    assert half_norms is not None
    of_label = log_q.index_select(0, labels.clamp(0, len(log_q) - 1)).to(products.dtype)
    log_phi = products.sub_(half_norms).mul_(2 * beta).log_softmax(dim=1)
    phi = log_phi.exp()
    # log phi and log Q over the marginal P, which is 1 where there is none.
    if log_p is not None:
        of_label = of_label - log_p
    score = torch.zeros_like(products)
    if gamma:
        score = gamma * (log_phi if log_p is None else log_phi - log_p)
    if form == "clusters":
        score = score - of_label
    loss = (phi * score).sum(dim=1)
    slope = score.sub(loss[:, None])
    if form == "embedding":
        joint = log_phi + of_label
        log_likelihood = joint.logsumexp(dim=1)
        # d / d logits of the likelihood: the posterior less the assignment, over phi here.
        slope = slope + (1 - (of_label - log_likelihood[:, None]).exp())
        loss = loss - log_likelihood
    ignored, unknown = labels < 0, labels >= len(log_q)
    torch.mul(phi, slope, out=products)
    # Filled, not multiplied by a mask: the row of an ignored image may be NaN.
    products.masked_fill_((ignored | unknown)[:, None], 0)
    return loss.masked_fill_(ignored, 0).masked_fill_(unknown, float("nan"))


def placed(arguments: native.BoundArgs, device: torch.device) -> ContextManager[None]:
    """Fills in where a library works; the context keeps torch's current device as it is."""
    if device.type == "cuda":
        # What is queued on this stream keeps the memory in use, so the tensors may go meanwhile.
        arguments.stream = torch.cuda.current_stream(device).cuda_stream
        arguments.device = device.index
        return torch.cuda.device(device)
    arguments.threads, arguments.parallel = torch.get_num_threads(), native.gomp_parallel()
    return contextlib.nullcontext()


def _pitch(matrix: Tensor) -> int:
    """Elements from a row to the next, for a matrix whose rows are contiguous."""
    # Of a matrix of one row torch may report any stride.
    return max(matrix.stride(0), matrix.shape[1])


def _with_contiguous_rows(matrix: Tensor) -> Tensor:
    """The matrix itself, or a contiguous copy if its rows are not contiguous or overlap."""
    fits = matrix.stride(1) == 1 and (len(matrix) <= 1 or matrix.stride(0) >= matrix.shape[1])
    return matrix if fits or torch.numel(matrix) == 0 else matrix.contiguous()
