"""Sums of soft assignments by identity, from which Q(a|y) is made."""

from typing import Optional

import torch
from torch import Tensor

from fastreid_rib.ops import backends
from fastreid_rib.ops.assignment import half_squared_norms
from fastreid_rib.ops.products import centroid_products
from fastreid_rib.ops.rows import table_rows_


@torch.no_grad()
def add_soft_assignments_(
    table: Tensor,
    embeddings: Tensor,
    centroids: Tensor,
    labels: Tensor,
    beta: float,
    *,
    half_norms: Optional[Tensor] = None,
    deterministic: Optional[bool] = None,
    backend: str = "auto",
) -> Tensor:
    """Adds each image's soft assignment to the row of its identity, in place. Not differentiable.

    Equivalent plain PyTorch::

        log_phi = (-beta * torch.cdist(embeddings, centroids).square()).log_softmax(1)
        table.index_add_(0, labels, log_phi.exp())
        return (log_phi.exp() * log_phi).sum(1)

    Args:
        table: (C, K), float32 (float64 for float64 embeddings); changed in place.
        embeddings: (n, D), floating point, L2-normalised.
        centroids: (K, D), floating point.
        labels: (n,), int64; images with a label outside 0..C-1 are left out.
        beta: sharpness of the soft assignment, > 0.
        half_norms: (K,), float32: ``|C_a|^2 / 2``, if it is at hand.
        deterministic: add in the order of the images, so that every run gives the same bits. None:
            as ``torch.use_deterministic_algorithms`` says. On the CPU it is so in any case.
        backend: "auto", "cuda", "cpu" or "torch", see ``backends.choose``.

    Returns:
        (n,), dtype of ``table``: ``sum_a phi_ia log phi_ia`` in nats, <= 0; 0 for one left out.

    Raises:
        ValueError: the table does not fit, or a backend cannot take these tensors.
        native.Unavailable: a backend that was asked for by name cannot be used.
    """
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    if table.dim() != 2 or table.shape[1] != len(centroids) or table.dtype != dtype:
        raise ValueError(
            f"table must be (C, {len(centroids)}) {dtype}, a column for each centroid, got "
            f"{tuple(table.shape)} {table.dtype}"
        )
    if table.stride(1) != 1:
        raise ValueError("the rows of table must be contiguous; write table.contiguous()")
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    embeddings, centroids = embeddings.to(dtype), centroids.to(dtype)
    if half_norms is None:
        half_norms = half_squared_norms(centroids)
    kind = backends.choose(backend, embeddings.device, dtype)
    return table_rows_(
        table,
        centroid_products(embeddings, centroids),
        half_norms,
        labels,
        beta,
        kind,
        deterministic=deterministic,
        may_fall_back=backend == "auto",
    )
