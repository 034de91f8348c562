"""Losses and information measures in plain PyTorch: usable in any training loop."""

from fastreid_rib.losses.rib_loss import RIBLoss, rib_loss
from fastreid_rib.ops.reference import rib_loss_reference

__all__ = ["RIBLoss", "rib_loss", "rib_loss_reference"]
