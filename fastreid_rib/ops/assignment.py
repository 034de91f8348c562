"""Soft assignment of embeddings to clusters."""

import torch
from torch import Tensor

from fastreid_rib.ops.layout import empty_rows
from fastreid_rib.ops.modes import full_precision


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


def assignment_logits(embeddings: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """Logits of the soft assignment, up to a constant in each row.

    ``-beta |F_i - C_a|^2`` without its ``-beta |F_i|^2`` part, which cancels in the softmax. What
    remains is one matrix product with a bias, so no (n, K, D) tensor is made.

    Args:
        embeddings: (n, D), float32 or float64, L2-normalised by the caller.
        centroids: (K, D), dtype of ``embeddings``.
        beta: sharpness, > 0.

    Returns:
        (n, K), dtype of ``embeddings``.
    """
    bias = -2 * beta * half_squared_norms(centroids)
    with full_precision(embeddings.device):
        return torch.addmm(bias, embeddings, centroids.t(), alpha=2 * beta)


def log_soft_assignment(embeddings: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """``log phi(F_i, a)``: arguments as :func:`assignment_logits`; (n, K), in nats, <= 0."""
    return assignment_logits(embeddings, centroids, beta).log_softmax(dim=1)


def soft_assignment(embeddings: Tensor, centroids: Tensor, beta: float) -> Tensor:
    """``phi(F_i, a) = softmax_a(-beta |F_i - C_a|^2)``: (n, K), rows sum to one."""
    return assignment_logits(embeddings, centroids, beta).softmax(dim=1)
