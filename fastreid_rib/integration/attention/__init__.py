"""Attention in FastReID's models: where it is put, without changing a key of stock checkpoints.

An attention is a submodule, called ``attention``, of what it stands behind (the last block of a
stage), in front of (a head) or inside (a transformer block's projection to queries and keys). So
it is a parameter of the model before the optimizer is made, is copied with its block, and whoever
takes a backbone apart takes it along.

A file for each kind of place (``stages``, ``head``, ``branches`` of MGN, ``blocks`` of a vision
transformer), one that makes an attention a part of a module (``insertion``), one for the
temperature that follows the epochs (``annealing``), and what FastReID builds with (``building``).
"""

from fastreid_rib.integration.attention.annealing import follow_epochs
from fastreid_rib.integration.attention.building import (
    build_with_attention,
    extend_backbones,
    extend_heads,
)
from fastreid_rib.integration.attention.head import place_at_head

__all__ = [
    "build_with_attention",
    "extend_backbones",
    "extend_heads",
    "follow_epochs",
    "place_at_head",
]
