"""Soft assignment of embeddings to clusters, and its sums by identity."""

import torch
from torch import Tensor

from fastreid_rib.ops import backends
from fastreid_rib.ops.modes import full_precision
from fastreid_rib.ops.rows import empty_rows, table_rows_


def half_squared_norms(centroids: Tensor) -> Tensor:
    """``|C_a|^2 / 2``: (K, D) -> (K,), what is left of the distances without the products."""
    return centroids.square().sum(dim=1) / 2


def centroid_products(embeddings: Tensor, centroids: Tensor) -> Tensor:
    """``F_i . C_a`` in full precision, whatever autocast says. Not differentiable.

    Args:
        embeddings: (n, D), float32 or float64.
        centroids: (K, D), of the same dtype and device.

    Returns:
        (n, K), same dtype. Its rows begin at aligned addresses: at K = 751 the product takes a
        third less time than into contiguous ones.
    """
    made = empty_rows(embeddings, len(embeddings), len(centroids))
    with full_precision(embeddings.device):
        torch.mm(embeddings, centroids.t(), out=made)
    return made


def soft_assignment(embeddings: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """``phi(F_i, a) = softmax_a(-beta |F_i - C_a|^2)``.

    The logits lack their ``-beta |F_i|^2`` part, which cancels in the softmax. What remains is one
    matrix product with a bias, so no (n, K, D) tensor is made.

    Args:
        embeddings: (n, D), float32 or float64, L2-normalised by the caller.
        centroids: (K, D), dtype of ``embeddings``.
        beta: sharpness, > 0.

    Returns:
        (n, K), dtype of ``embeddings``; rows sum to one.
    """
    bias = -2 * beta * half_squared_norms(centroids)
    with full_precision(embeddings.device):
        logits = torch.addmm(bias, embeddings, centroids.t(), alpha=2 * beta)
    return logits.softmax(dim=1)


@torch.no_grad()
def add_soft_assignments_(
    table: Tensor,
    embeddings: Tensor,
    centroids: Tensor,
    labels: Tensor,
    beta: float,
    backend: str = "auto",
) -> Tensor:
    """Adds each image's soft assignment to the row of its identity, in place. Not differentiable.

    The images of an identity are added in their order, so every run gives the same bits. Equivalent
    plain PyTorch::

        log_phi = (-beta * torch.cdist(embeddings, centroids).square()).log_softmax(1)
        table.index_add_(0, labels, log_phi.exp())
        return (log_phi.exp() * log_phi).sum(1)

    Args:
        table: (C, K), float32 (float64 for float64 embeddings), rows contiguous; changed in place.
        embeddings: (n, D), floating point, L2-normalised.
        centroids: (K, D), floating point.
        labels: (n,), int64; images with a label outside 0..C-1 are left out.
        beta: sharpness of the soft assignment, > 0.
        backend: "auto", "cuda", "cpu" or "torch", see ``backends.choose``, which raises.

    Returns:
        (n,), dtype of ``table``: ``sum_a phi_ia log phi_ia`` in nats, <= 0; 0 for one left out.
    """
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    # The kernels take its word for it.
    assert table.shape[1] == len(centroids) and table.dtype == dtype and table.stride(1) == 1
    kind = backends.choose(backend, embeddings.device, dtype)
    embeddings, centroids = embeddings.to(dtype), centroids.to(dtype)
    products, half_norms = centroid_products(embeddings, centroids), half_squared_norms(centroids)
    return table_rows_(kind, table, products, half_norms, labels, beta)
