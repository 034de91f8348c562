"""The search space of each backbone of FastReID that has one."""

from typing import Any, Callable, Dict, List, Sequence, Tuple

from torch import nn

from fastreid_rib.integration.search import inverted_residuals
from fastreid_rib.search import Channels, Layer, Space

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Widths that FastReID's own backbones offer, as shares of what they are built with (ours)."""


def space_of(backbone: nn.Module, cfg: Any) -> Space:
    """The groups of a backbone and the widths that its config offers.

    Args:
        backbone: as it was built, not narrowed.
        cfg: MODEL.SEARCH.OPTIONS are the widths of each group, the widest first; (): those of the
            backbone: the paper's, or :data:`SHARES`.

    Raises:
        ValueError: a backbone without a space, or options that are not nested widths, one tuple a
            group, the widest as built.
    """
    kind = type(backbone).__name__
    if isinstance(backbone, inverted_residuals.SearchedBackbone):
        return _named(
            cfg,
            inverted_residuals.space_of,
            backbone,
            inverted_residuals.options_of(cfg.MODEL.SEARCH.OPTIONS),
        )
    makers: Dict[str, Callable[..., Any]] = {"MobileNetV2": _mobilenet, "ResNet": _resnet}
    if kind not in makers:
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}, whose widths MODEL.SEARCH cannot "
            "choose. It can those of build_searched_backbone, build_mobilenetv2_backbone and "
            "build_resnet_backbone."
        )
    built, layers, blocks = makers[kind](backbone)
    options = cfg.MODEL.SEARCH.OPTIONS or [_offered(width) for width in built.values()]
    if len(options) != len(built):
        raise ValueError(
            f"MODEL.SEARCH.OPTIONS needs the widths of {len(built)} groups, {', '.join(built)}, "
            f"but has {len(options)}."
        )
    for (group, width), widths in zip(built.items(), options):
        if not widths or widths[0] != width:
            raise ValueError(
                f"MODEL.SEARCH.OPTIONS: the widths of '{group}' must begin with {width}, as the "
                f"backbone is built, but are {tuple(widths)}."
            )
    return _named(cfg, Space, dict(zip(built, options)), layers, blocks)


def _named(cfg: Any, make: Callable[..., Space], *args: Any) -> Space:
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"MODEL.SEARCH.OPTIONS {cfg.MODEL.SEARCH.OPTIONS}: {error}") from error


def _offered(width: int) -> Tuple[int, ...]:
    """Shares of a width, even numbers, without repetitions."""
    widths = [width] + [max(2, 2 * round(width * share / 2)) for share in SHARES[1:]]
    return tuple(dict.fromkeys(widths))


Built = Tuple[Dict[str, int], List[Layer], Dict[str, str]]


def _mobilenet(backbone: Any) -> Built:
    """MobileNetV2: the output width of each row of its table, group1 to group7."""
    built: Dict[str, int] = {}
    layers: List[Layer] = []
    blocks: Dict[str, str] = {}
    before, place = Channels(), 1
    for row, (times, _, count, _) in enumerate(backbone.cfgs, start=1):
        after = Channels(f"group{row}")
        for _ in range(count):
            path = f"features.{place}"
            block = backbone.features[place].conv
            built[after.group] = block[-1].num_features
            blocks[path] = after.group
            if times == 1:  # depthwise at once: no expansion, and the stem stays as it is
                layers.append(Layer(f"{path}.conv.3", before, after))
                layers.append(Layer(f"{path}.conv.4", after, after, masked=True))
            else:
                layers += inverted_residuals.inverted_residual(
                    f"{path}.conv", before, after, int(times)
                )
            before, place = after, place + 1
    layers.append(Layer("conv.0", before, Channels()))
    return built, layers, blocks


def _resnet(backbone: Any) -> Built:
    """ResNet: the width inside the blocks of each stage, layer1 to layer4."""
    built: Dict[str, int] = {}
    layers: List[Layer] = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(backbone, stage)):
            path = f"{stage}.{i}"
            first, second = (Channels(stage, map=f"{path}.bn{norm}") for norm in (1, 2))
            if not isinstance(block.bn1, nn.modules.batchnorm._BatchNorm):
                raise ValueError(
                    f"MODEL.SEARCH cannot narrow {type(block.bn1).__name__} ({path}.bn1), which "
                    "treats two halves of its channels differently. Write "
                    "MODEL.BACKBONE.WITH_IBN False."
                )
            built[stage] = block.conv1.out_channels
            layers.append(Layer(f"{path}.conv1", Channels(), first))
            bottleneck = hasattr(block, "conv3")
            layers.append(Layer(f"{path}.bn1", first, first, masked=True))
            layers.append(Layer(f"{path}.conv2", first, second if bottleneck else Channels()))
            if bottleneck:
                layers.append(Layer(f"{path}.bn2", second, second, masked=True))
                layers.append(Layer(f"{path}.conv3", second, Channels()))
    return built, layers, {}


def choice_of(cfg: Any, space: Space) -> Dict[str, int]:
    """The widths of a derived network, from MODEL.SEARCH.WIDTHS.

    Raises:
        ValueError: not one for each group, or one that is not offered.
    """
    widths: Sequence[int] = cfg.MODEL.SEARCH.WIDTHS
    try:
        return space.choice(widths)
    except ValueError as error:
        raise ValueError(f"MODEL.SEARCH.WIDTHS {tuple(widths)}: {error}") from error
