"""Tensor operations: no modules, no state, no toolkit."""

from fastreid_rib.ops.bound import bound
from fastreid_rib.ops.reference import rib_loss_reference
from fastreid_rib.ops.rows import Clusters, Objective, aligned_rows

__all__ = [
    "Clusters",
    "Objective",
    "aligned_rows",
    "bound",
    "rib_loss_reference",
]
