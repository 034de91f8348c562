"""A search for the widths of a network in plain PyTorch: usable on any module."""

from fastreid_rib.search.cost import Cost, derive
from fastreid_rib.search.narrow import narrow, order
from fastreid_rib.search.space import Channels, Layer, Space
from fastreid_rib.search.width_search import WidthChoice, WidthSearch

__all__ = [
    "Channels",
    "Cost",
    "Layer",
    "Space",
    "WidthChoice",
    "WidthSearch",
    "derive",
    "narrow",
    "order",
]
