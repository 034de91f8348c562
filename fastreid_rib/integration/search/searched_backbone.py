"""The backbone of the paper's search in FastReID's registry."""

import functools
from typing import Any

from fastreid.layers import get_norm
from fastreid.modeling.backbones.build import BACKBONE_REGISTRY
from torch import nn

from fastreid_rib.base.safe_reads import read_safely
from fastreid_rib.integration.search import inverted_residuals


@BACKBONE_REGISTRY.register()
def build_searched_backbone(cfg: Any) -> nn.Module:
    """The widest network of the paper's space.

    ``MODEL.BACKBONE``: DEPTH ("1.0x" as in the paper, "0.5x", "0.25x": fewer blocks), FEAT_DIM,
    LAST_STRIDE, NORM; with PRETRAIN, weights of the widest network from PRETRAIN_PATH.
    MODEL.SEARCH.WIDTHS cuts it down afterwards, as any backbone.

    Raises:
        ValueError: a depth that is not there.
    """
    node = cfg.MODEL.BACKBONE
    depths = inverted_residuals.STAGES["stage1"].blocks
    if node.DEPTH not in depths:
        raise ValueError(
            f"MODEL.BACKBONE.DEPTH of build_searched_backbone must be one of {', '.join(depths)}, "
            f"but is {node.DEPTH!r}."
        )
    backbone = inverted_residuals.SearchedBackbone(
        [widths[0] for widths in inverted_residuals.options_of(cfg.MODEL.SEARCH.OPTIONS)],
        [stage.blocks[node.DEPTH] for stage in inverted_residuals.STAGES.values()],
        node.FEAT_DIM,
        node.LAST_STRIDE,
        functools.partial(get_norm, node.NORM),
    )
    if node.PRETRAIN:
        backbone.load_state_dict(read_safely(node.PRETRAIN_PATH))
    return backbone
