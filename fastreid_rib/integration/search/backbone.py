"""The backbone of the paper's search, in FastReID's registry: stages of inverted residuals."""

import functools
from typing import Any, Callable, List

from fastreid.layers import get_norm
from fastreid.modeling.backbones.build import BACKBONE_REGISTRY
from torch import Tensor, nn

from fastreid_rib.base.safe_reads import read_safely
from fastreid_rib.integration.search.spaces import BLOCKS, EXPANSION, STAGES, options_of

STEM = 16
"""Channels of the first convolution."""


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 (MobileNetV2, with hard-swish).

    (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]
    ) -> None:
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
    """Inverted residuals in four stages, whose widths a search chooses: the widest network.

    ``MODEL.BACKBONE``: DEPTH ("1.0x" as in the paper, "0.5x", "0.25x": fewer blocks), FEAT_DIM,
    LAST_STRIDE, NORM. A last 1x1 convolution gives FEAT_DIM channels whatever the widths: head,
    RIB's statistics and attention before the pooling are the same for all networks of the space.

    Raises:
        ValueError: a depth that is not there, or options that are not one tuple a stage.
    """

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        node = cfg.MODEL.BACKBONE
        if node.DEPTH not in BLOCKS:
            raise ValueError(
                f"MODEL.BACKBONE.DEPTH of build_searched_backbone must be one of "
                f"{', '.join(BLOCKS)}, but is {node.DEPTH!r}."
            )
        norm = functools.partial(get_norm, node.NORM)
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM, 3, 2, 1, bias=False), norm(STEM), nn.Hardswish()
        )
        before = STEM
        options = options_of(cfg, STAGES)
        for (name, (width, *_)), count in zip(options.items(), BLOCKS[node.DEPTH]):
            last = name == list(options)[-1]
            stage: List[nn.Module] = []
            for place in range(count):
                stride = 1 if place else node.LAST_STRIDE if last else 2
                stage.append(InvertedResidual(before, width, stride, norm))
                before = width
            self.add_module(name, nn.Sequential(*stage))
        self.last = nn.Sequential(
            nn.Conv2d(before, node.FEAT_DIM, 1, bias=False), norm(node.FEAT_DIM), nn.Hardswish()
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, FEAT_DIM, H / 16 / LAST_STRIDE, W / 16 / LAST_STRIDE)."""
        features = self.stem(images)
        for name in STAGES:
            features = getattr(self, name)(features)
        return self.last(features)


@BACKBONE_REGISTRY.register()
def build_searched_backbone(cfg: Any) -> nn.Module:
    """The widest network of the paper's space; with PRETRAIN, its weights from PRETRAIN_PATH.

    MODEL.SEARCH.WIDTHS cuts it down afterwards, as any backbone.
    """
    backbone = SearchedBackbone(cfg)
    if cfg.MODEL.BACKBONE.PRETRAIN:
        backbone.load_state_dict(read_safely(cfg.MODEL.BACKBONE.PRETRAIN_PATH))
    return backbone
