"""Tensor operations: no modules, no state, no toolkit."""

from fastreid_rib.ops.bound import bound
from fastreid_rib.ops.reference import rib_loss_reference

__all__ = ["bound", "rib_loss_reference"]
