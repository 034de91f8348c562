"""Losses and information measures in plain PyTorch: usable in any training loop."""

from fastreid_rib.losses.rib_loss import RIBLoss  # first: the module would hide the function

# isort: split
from fastreid_rib.losses.functional import rib_loss
from fastreid_rib.losses.gaussian import gaussian_bottleneck
from fastreid_rib.ops.reference import rib_loss_reference
from fastreid_rib.settings.rib import RIBSettings

__all__ = ["RIBLoss", "RIBSettings", "gaussian_bottleneck", "rib_loss", "rib_loss_reference"]
