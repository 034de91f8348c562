"""The products of embeddings with centroids, from which soft assignments are made."""

import torch
from torch import Tensor

from fastreid_rib.ops.layout import empty_rows
from fastreid_rib.ops.precision import full_precision


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
