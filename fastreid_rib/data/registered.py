"""All data sets of this package: importing this module registers them with FastReID."""

from fastreid_rib.data.cuhk03_np import CUHK03NP, CUHK03NPLabeled
from fastreid_rib.data.folder import FolderReID
from fastreid_rib.data.occluded import OccludedDuke, OccludedREID, PartialREID, POccludedDuke
from fastreid_rib.data.synthetic import SyntheticReID, SyntheticReIDLarge, SyntheticReIDTiny

__all__ = [
    "CUHK03NP",
    "CUHK03NPLabeled",
    "FolderReID",
    "OccludedDuke",
    "OccludedREID",
    "POccludedDuke",
    "PartialREID",
    "SyntheticReID",
    "SyntheticReIDLarge",
    "SyntheticReIDTiny",
]
