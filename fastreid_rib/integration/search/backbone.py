"""The backbone of the paper's search, in FastReID's registry: stages of inverted residuals."""

import functools
from typing import Any, Callable, List, Sequence

from fastreid.layers import get_norm
from fastreid.modeling.backbones.build import BACKBONE_REGISTRY
from torch import Tensor, nn

from fastreid_rib.base.safe_reads import read_safely
from fastreid_rib.integration.search.spaces import BLOCKS, EXPANSION, STAGES, options_of

Norm = Callable[[int], nn.Module]
"""Makes a norm over some channels."""

STEM = 16
"""Channels of the first convolution."""


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 (MobileNetV2, with hard-swish).

    (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        inside = EXPANSION * inputs
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inside, 1, bias=False),
            norm(inside),
            nn.Hardswish(),
            nn.Conv2d(inside, inside, 3, stride, 1, groups=inside, bias=False),
            norm(inside),
            nn.Hardswish(),
            nn.Conv2d(inside, outputs, 1, bias=False),
            norm(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        result = self.conv(features)
        return features + result if self.residual else result


class SearchedBackbone(nn.Module):
    """Inverted residuals in four stages, whose widths a search chooses.

    A last 1x1 convolution gives FEAT_DIM channels whatever the widths: head, RIB's statistics and
    attention before the pooling are the same for all networks of the space.

    Args:
        widths: of the stages, in order.
        blocks: in each.
        channels: of the map that it gives, (B, channels, H / 16 / last_stride, ...).
        last_stride: of the last stage, 1 or 2.
        norm: makes the norm after each convolution.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        channels: int,
        last_stride: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM, 3, 2, 1, bias=False), norm(STEM), nn.Hardswish()
        )
        before = STEM
        for i, (name, width, count) in enumerate(zip(STAGES, widths, blocks)):
            stride = last_stride if i == len(STAGES) - 1 else 2
            stage: List[nn.Module] = []
            for place in range(count):
                stage.append(InvertedResidual(before, width, stride if place == 0 else 1, norm))
                before = width
            self.add_module(name, nn.Sequential(*stage))
        self.last = nn.Sequential(
            nn.Conv2d(before, channels, 1, bias=False), norm(channels), nn.Hardswish()
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, channels, h, w)."""
        features = self.stem(images)
        for name in STAGES:
            features = getattr(self, name)(features)
        return self.last(features)


@BACKBONE_REGISTRY.register()
def build_searched_backbone(cfg: Any) -> nn.Module:
    """The widest network of the paper's space.

    ``MODEL.BACKBONE``: DEPTH ("1.0x" as in the paper, "0.5x", "0.25x": fewer blocks), FEAT_DIM,
    LAST_STRIDE, NORM; with PRETRAIN, weights of the widest network from PRETRAIN_PATH.
    MODEL.SEARCH.WIDTHS cuts it down afterwards, as any backbone.

    Raises:
        ValueError: a depth that is not there, or options that are not one tuple a stage.
    """
    node = cfg.MODEL.BACKBONE
    if node.DEPTH not in BLOCKS:
        raise ValueError(
            f"MODEL.BACKBONE.DEPTH of build_searched_backbone must be one of {', '.join(BLOCKS)}, "
            f"but is {node.DEPTH!r}."
        )
    backbone = SearchedBackbone(
        [widths[0] for widths in options_of(cfg, STAGES).values()],
        BLOCKS[node.DEPTH],
        node.FEAT_DIM,
        node.LAST_STRIDE,
        functools.partial(get_norm, node.NORM),
    )
    if node.PRETRAIN:
        backbone.load_state_dict(read_safely(node.PRETRAIN_PATH))
    return backbone
