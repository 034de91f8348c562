"""Rows as they are clustered: of embeddings and of inputs, centred and L2-normalised.

Legend: n rows, D dimensions, P input values an image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.base import ranks
from fastreid_rib.losses.clustering import chunks


def center_rows(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows as they are clustered: their mean taken off, L2-normalised, in their own dtype.

    Embeddings that were pooled behind a ReLU lie in a narrow cone. Its width changes with backbone,
    stride, learning rate and epoch, and with it what one beta means; centred they spread over the
    sphere, whatever the cone.

    Args:
        rows: (n, D), floating point, L2-normalised.
        mean: (D,), float32.
    """
    centred = torch.empty_like(rows)
    for chunk in chunks(len(rows), rows.shape[1]):
        centred[chunk] = F.normalize(rows[chunk].float() - mean, dim=1).to(rows.dtype)
    return centred


def mean_of_rows(rows: Tensor) -> Tensor:
    """The mean of rows that every rank holds: (N, D) -> (D,) float32, the same on every rank."""
    # Without a copy of the rows in float32.
    total = rows[ranks.own_slice(len(rows))].sum(dim=0, dtype=torch.float32)
    ranks.sum_over_ranks(total)
    return ranks.copy_from_first(total / len(rows))


def center_inputs(inputs: Tensor) -> Tensor:
    """Input features as they are clustered: each image's mean taken off, then L2-normalised.

    Squared distances then lie in 0..4 as those of the embeddings do, so one beta serves both. (The
    mean is that of the image, not of the data: without it brightness alone would set the clusters.)

    Args:
        inputs: (n, P), any floating dtype.

    Returns:
        (n, P) float32.
    """
    inputs = inputs.float()
    return F.normalize(inputs - inputs.mean(dim=1, keepdim=True), dim=1)
