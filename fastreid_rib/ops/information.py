"""What a table of weights tells: its mutual information, in nats."""

import torch
from torch import Tensor

from fastreid_rib.ops.sums import chunks


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information of a joint table of weights, in nats.

    Args:
        joint: (A, B), floating point, >= 0; need not sum to one.

    Returns:
        Scalar, float64.
    """
    of_cells = joint.new_zeros((), dtype=torch.float64)
    for part in chunks(len(joint), joint.shape[1]):
        of_cells += negentropy(joint[part])
    columns, rows = (joint.sum(dim=dim, dtype=torch.float64) for dim in (0, 1))
    total = columns.sum()
    return (of_cells - (negentropy(rows) + negentropy(columns) - negentropy(total))) / total


def negentropy(weights: Tensor) -> Tensor:
    """sum w log w of weights >= 0, which need not sum to one: float64."""
    weights = weights.double()
    # The least normal number: 0 log 0 counts as 0. (torch.xlogy is several times slower.)
    return (weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum()
