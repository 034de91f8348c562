"""The network of the paper's search: groups of inverted residuals, and its space."""

from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

from torch import Tensor, nn

from fastreid_rib.search import Channels, Layer, Space

Norm = Callable[[int], nn.Module]
"""Makes a norm over some channels."""

EXPANSION = 6
"""Channels inside a block for each one in front of it."""

STEM = 16
"""Channels of the first convolution."""


class Stage(NamedTuple):
    """A group of blocks of one width.

    Attributes:
        blocks: how many, by MODEL.BACKBONE.DEPTH.
        widths: what a search chooses from.
    """

    blocks: Dict[str, int]
    widths: Tuple[int, ...]


STAGES: Dict[str, Stage] = {
    "stage1": Stage({"1.0x": 3, "0.5x": 2, "0.25x": 1}, (28, 24, 20, 16)),
    "stage2": Stage({"1.0x": 12, "0.5x": 6, "0.25x": 3}, (40, 32, 24, 16)),
    "stage3": Stage({"1.0x": 21, "0.5x": 10, "0.25x": 5}, tuple(range(128, 79, -8))),
    "stage4": Stage({"1.0x": 12, "0.5x": 6, "0.25x": 3}, tuple(range(216, 119, -8))),
}
"""The paper's space at DEPTH 1.0x; the shallower ones are ours."""


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
    attention in front of the pooling are the same for all networks of the space.

    Args:
        widths: of the stages, in order.
        blocks: in each.
        channels: of the map that it gives, (B, channels, H / 16 / last_stride, ...).
        last_stride: of the last stage, 1 or 2.
        norm: makes the norm behind each convolution.
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


def space_of(backbone: SearchedBackbone, options: Sequence[Sequence[int]]) -> Space:
    """The space of a backbone that was built with the widest of ``options``."""
    layers: List[Layer] = []
    blocks: Dict[str, str] = {}
    before = Channels()
    for stage in STAGES:
        after = Channels(stage)
        for i, _ in enumerate(getattr(backbone, stage)):
            path = f"{stage}.{i}"
            blocks[path] = stage
            layers += inverted_residual(f"{path}.conv", before, after, EXPANSION)
            before = after
    layers.append(Layer("last.0", before, Channels()))
    return Space(dict(zip(STAGES, options)), layers, blocks)


def inverted_residual(path: str, before: Channels, after: Channels, times: int) -> List[Layer]:
    """The layers of a block's Sequential: 1x1, norm, -, depthwise, norm, -, 1x1, norm."""
    inside = Channels(before.group, times, path) if before.group else Channels()
    layers = [
        Layer(f"{path}.0", before, inside),
        Layer(f"{path}.1", inside, inside),
        Layer(f"{path}.3", inside, inside),
        Layer(f"{path}.4", inside, inside, masked=True),
        Layer(f"{path}.6", inside, after),
        Layer(f"{path}.7", after, after, masked=True),
    ]
    return [
        layer._replace(masked=layer.masked and bool(layer.outputs.group))
        for layer in layers
        if layer.inputs.group or layer.outputs.group
    ]


def options_of(asked: Sequence[Sequence[int]]) -> Tuple[Tuple[int, ...], ...]:
    """The widths of each stage: MODEL.SEARCH.OPTIONS, or the paper's if it is empty."""
    options = asked or tuple(stage.widths for stage in STAGES.values())
    if len(options) != len(STAGES):
        raise ValueError(
            f"MODEL.SEARCH.OPTIONS needs the widths of {len(STAGES)} groups, "
            f"{', '.join(STAGES)}, but has {len(options)}."
        )
    return tuple(tuple(widths) for widths in options)
