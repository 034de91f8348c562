"""fastreid-rib: reduction of information bottleneck (RIB) for person re-identification.

Importing the package arms the import hook of :mod:`fastreid_rib.activation`, so that FastReID,
whenever it is loaded, knows the RIB loss. Everything heavier is loaded on first use: this module
runs at every interpreter start where the wheel is installed.
"""

from __future__ import annotations

from fastreid_rib.activation import arm

TYPE_CHECKING = False  # typing takes longer to import than all the rest here
if TYPE_CHECKING:
    from typing import Any

    from fastreid_rib.base import __version__
    from fastreid_rib.losses.functional import rib_loss
    from fastreid_rib.losses.rib_loss import RIBLoss
    from fastreid_rib.settings.rib import RIBSettings

__all__ = ["RIBLoss", "RIBSettings", "__version__", "rib_loss"]


def __getattr__(name: str) -> Any:
    if name in ("RIBLoss", "RIBSettings", "rib_loss"):
        from fastreid_rib import losses

        return getattr(losses, name)
    if name == "__version__":
        from fastreid_rib import base

        return base.__version__
    raise AttributeError(f"module 'fastreid_rib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


arm()
