"""Attention in front of a head, on the map that it pools."""

from typing import Any

from torch import nn

from fastreid_rib.integration import config
from fastreid_rib.integration.attention import insertion
from fastreid_rib.integration.rib import embedding

HEAD = "head"
"""The name of this place in ``MODEL.ATTENTION.PLACEMENT``."""


def place_at_head(head: nn.Module, cfg: Any) -> None:
    """Puts attention in front of a head, on the map that it pools, if the config says so.

    Args:
        head: called with the map (B, C, H, W) as its first positional argument.
        cfg: a FastReID config.

    Raises:
        ValueError: RIB is to take its embedding in front of the attention, and cannot.
    """
    asked = config.asked_attention(cfg)
    if asked is None or HEAD not in asked.placement:
        return
    with insertion.aside():
        module = insertion.build(asked, cfg.MODEL.BACKBONE.FEAT_DIM, HEAD)
    if config.rib_before_attention(cfg):
        embedding.keep_pooled(head)
    insertion.place_in_front(head, module)
