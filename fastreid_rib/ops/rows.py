"""The fused row step and its two implementations: the compiled kernels, and plain PyTorch.

Legend: n images, K clusters, C identities, m listed entries in a row of a sparse table.
"""

import contextlib
from typing import Any, ContextManager, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops import backends, native
from fastreid_rib.ops.group_sum import group_sum
from fastreid_rib.ops.layout import pitch, with_contiguous_rows
from fastreid_rib.settings.rib import FORMS

ClassTable = Tuple[Tensor, Optional[Tensor], Optional[Tensor]]
"""log Q (C, K) alone, or entries (C, m), their columns (C, m) and a floor (C,): see ``bound``."""

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # enum rib_dtype of rib.h


def bound_rows_(
    products: Tensor,
    half_norms: Tensor,
    table: ClassTable,
    labels: Tensor,
    beta: float,
    gamma: float,
    form: str,
    log_p: Optional[Tensor],
    kind: str,
    may_fall_back: bool = False,
) -> Tensor:
    """Turns products into the gradient of the bound, in place, and returns the bound.

    Args:
        products: (n, K), float32 or float64, contiguous rows. In: ``F_i . C_a``. Out:
            ``d loss_i / d logits_ia`` with ``logits_ia = 2 beta (F_i . C_a - |C_a|^2 / 2)``.
        half_norms: (K,), dtype of ``products``: ``|C_a|^2 / 2``.
        table: log Q, see ``bound``.
        labels: (n,), int64; see ``bound``.
        beta: sharpness of the soft assignment, > 0.
        gamma: >= 0.
        form: one of :data:`FORMS`.
        log_p: (K,), dtype of ``products``, or None; see ``bound``.
        kind: "cuda", "cpu" or "torch", from ``backends.choose``.
        may_fall_back: compute in PyTorch, now and from now on, if the kernels fail to launch.

    Returns:
        (n,), dtype of ``products``, nats.

    Raises:
        native.Unavailable: the kernels fail to launch.
    """
    if kind != "torch":
        try:
            return _native_bound(
                products, half_norms, table, labels, beta, gamma, form, log_p, kind
            )
        except native.Unavailable as error:
            # A launch that failed has changed nothing, so they are still the products.
            if not may_fall_back:
                raise
            backends.give_up(kind, error)
    return _torch_bound(products, half_norms, table, labels, beta, gamma, form, log_p)


def table_rows_(
    sums: Tensor,
    products: Tensor,
    half_norms: Tensor,
    labels: Tensor,
    beta: float,
    kind: str,
    *,
    deterministic: bool = False,
    may_fall_back: bool = False,
) -> Tensor:
    """Adds the soft assignments of images to the rows of their identities, in place.

    Args:
        sums: (C, K), float32 or float64, contiguous rows.
        products: (n, K), dtype of ``sums``, contiguous rows: ``F_i . C_a``. PyTorch overwrites it.
        half_norms: (K,), dtype of ``sums``: ``|C_a|^2 / 2``.
        labels: (n,), int64; images with a label outside 0..C-1 are left out.
        beta: sharpness of the soft assignment, > 0.
        kind: as for :func:`bound_rows_`.
        deterministic: add in the order of the images on a GPU too.
        may_fall_back: as for :func:`bound_rows_`.

    Returns:
        (n,), dtype of ``sums``: ``sum_a phi_ia log phi_ia``, nats; 0 for one that is left out.

    Raises:
        native.Unavailable: the kernels fail to launch.
    """
    if kind != "torch":
        try:
            return _native_table(sums, products, half_norms, labels, beta, deterministic, kind)
        except native.Unavailable as error:
            if not may_fall_back:
                raise
            backends.give_up(kind, error)
    return _torch_table(sums, products, half_norms, labels, beta)


def _torch_bound(
    products: Tensor,
    half_norms: Tensor,
    table: ClassTable,
    labels: Tensor,
    beta: float,
    gamma: float,
    form: str,
    log_p: Optional[Tensor],
) -> Tensor:
    log_q, index, floor = table
    row_of_table = labels.clamp(0, len(log_q) - 1)
    of_label = log_q.index_select(0, row_of_table).to(products.dtype)
    if index is not None and floor is not None:
        listed, columns = of_label, index.index_select(0, row_of_table).long()
        of_label = (
            floor.index_select(0, row_of_table).to(products.dtype)[:, None].expand_as(products)
        )
        # An unused entry goes to a column of its own behind the others.
        unused = (columns < 0) | (columns >= products.shape[1])
        columns = columns.masked_fill(unused, products.shape[1])
        of_label = torch.cat([of_label, of_label[:, :1]], dim=1)
        of_label = of_label.scatter_(1, columns, listed)[:, :-1]
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


def _torch_table(
    sums: Tensor, products: Tensor, half_norms: Tensor, labels: Tensor, beta: float
) -> Tensor:
    log_phi = products.sub_(half_norms).mul_(2 * beta).log_softmax(dim=1)
    phi = log_phi.exp()
    left_out = ((labels < 0) | (labels >= len(sums)))[:, None]
    sums += group_sum(phi.masked_fill(left_out, 0), labels.clamp(0, len(sums) - 1), len(sums))
    return (phi * log_phi).masked_fill_(left_out, 0).sum(dim=1)


def _native_bound(
    products: Tensor,
    half_norms: Tensor,
    table: ClassTable,
    labels: Tensor,
    beta: float,
    gamma: float,
    form: str,
    log_p: Optional[Tensor],
    kind: str,
) -> Tensor:
    log_q, index, floor = table
    log_q = with_contiguous_rows(log_q if log_q.dtype in _DTYPES else log_q.float())
    labels, half_norms = labels.contiguous(), half_norms.contiguous()
    loss = products.new_empty(len(products))
    arguments = native.BoundArgs(
        products=products.data_ptr(),
        half_norms=half_norms.data_ptr(),
        log_q=log_q.data_ptr(),
        labels=labels.data_ptr(),
        loss=loss.data_ptr(),
        n=len(products),
        K=products.shape[1],
        C=len(log_q),
        products_pitch=pitch(products),
        log_q_pitch=pitch(log_q),
        scale=2 * beta,
        gamma=gamma,
        log_q_dtype=_DTYPES[log_q.dtype],
        form=FORMS.index(form),
        variant=-1,
    )
    if log_p is not None:
        log_p = log_p.contiguous()
        arguments.log_p = log_p.data_ptr()
    if index is not None and floor is not None:
        index = with_contiguous_rows(index.to(torch.int32))
        floor = floor.float().contiguous()
        arguments.index, arguments.floor = index.data_ptr(), floor.data_ptr()
        arguments.m, arguments.index_pitch = index.shape[1], pitch(index)
    with _on_device(arguments, products.device):
        native.load(kind).bound(arguments)
    return loss


def _native_table(
    sums: Tensor,
    products: Tensor,
    half_norms: Tensor,
    labels: Tensor,
    beta: float,
    deterministic: bool,
    kind: str,
) -> Tensor:
    labels, half_norms = labels.contiguous(), half_norms.contiguous()
    negentropy = products.new_empty(len(products))
    arguments = native.TableArgs(
        products=products.data_ptr(),
        half_norms=half_norms.data_ptr(),
        labels=labels.data_ptr(),
        table=sums.data_ptr(),
        negentropy=negentropy.data_ptr(),
        n=len(products),
        K=products.shape[1],
        C=len(sums),
        products_pitch=pitch(products),
        table_pitch=pitch(sums),
        scale=2 * beta,
    )
    if deterministic and kind == "cuda":  # the CPU library is so in any case
        by_label = labels.sort(stable=True)
        order = by_label.indices
        identities = torch.arange(len(sums) + 1, device=labels.device)
        starts = torch.searchsorted(by_label.values, identities)
        arguments.order, arguments.starts = order.data_ptr(), starts.data_ptr()
    with _on_device(arguments, products.device):
        native.load(kind).table(arguments)
    return negentropy


def _on_device(arguments: Any, device: torch.device) -> ContextManager[None]:
    """Fills in where a library works; the context keeps torch's current device as it is."""
    if device.type == "cuda":
        # What is queued on this stream keeps the memory in use, so the tensors may go meanwhile.
        arguments.stream = torch.cuda.current_stream(device).cuda_stream
        arguments.device = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.device(device)
    arguments.threads, arguments.parallel = torch.get_num_threads(), native.gomp_parallel()
    return contextlib.nullcontext()
