"""The search space of each backbone that has one."""

from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from torch import nn

from fastreid_rib.search import Channels, Layer, Space
from fastreid_rib.search.space import sides_of

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Widths that FastReID's own backbones offer, as shares of what they are built with (ours)."""


STAGES: Dict[str, Tuple[int, ...]] = {
    "stage1": (28, 24, 20, 16),
    "stage2": (40, 32, 24, 16),
    "stage3": tuple(range(128, 79, -8)),
    "stage4": tuple(range(216, 119, -8)),
}
"""The stages of ``build_searched_backbone``, and the paper's widths that a search chooses from."""

BLOCKS = {"1.0x": (3, 12, 21, 12), "0.5x": (2, 6, 10, 6), "0.25x": (1, 3, 5, 3)}
"""Its blocks in each stage by MODEL.BACKBONE.DEPTH: the paper's, and shallower ones (ours)."""

EXPANSION = 6
"""Channels inside a block of the paper's backbone for each one that it reads."""


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
    if kind not in _READERS:
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}, whose widths MODEL.SEARCH cannot "
            "choose. It can those of build_searched_backbone, build_mobilenetv2_backbone and "
            "build_resnet_backbone."
        )
    layers = _READERS[kind](backbone)
    built = {
        layer.outputs.group: sides_of(backbone.get_submodule(layer.path))[1] // layer.outputs.times
        for layer in layers
        if layer.outputs.group
    }
    offered = STAGES if kind == "SearchedBackbone" else _shares(built)
    options = options_of(cfg, offered)
    for group, width in built.items():
        if options[group][0] != width:
            raise ValueError(
                f"MODEL.SEARCH.OPTIONS: the widths of '{group}' must begin with {width}, as the "
                f"backbone is built, but are {options[group]}."
            )
    try:
        return Space(options, layers)
    except ValueError as error:
        raise ValueError(f"MODEL.SEARCH.OPTIONS {cfg.MODEL.SEARCH.OPTIONS}: {error}") from error


def options_of(cfg: Any, offered: Mapping[str, Tuple[int, ...]]) -> Dict[str, Tuple[int, ...]]:
    """The widths of each group: MODEL.SEARCH.OPTIONS, or what a backbone offers if it is empty.

    Raises:
        ValueError: options for more or fewer groups than the backbone has, or none for one.
    """
    asked = cfg.MODEL.SEARCH.OPTIONS
    if not asked:
        return dict(offered)
    if len(asked) != len(offered) or not all(asked):
        raise ValueError(
            f"MODEL.SEARCH.OPTIONS needs the widths of {len(offered)} groups, "
            f"{', '.join(offered)}, but is {asked}."
        )
    return {group: tuple(widths) for group, widths in zip(offered, asked)}


def _shares(built: Mapping[str, int]) -> Dict[str, Tuple[int, ...]]:
    """Even numbers, except the width itself, without repetitions."""
    shared = {
        group: [width, *(max(2, 2 * round(width * share / 2)) for share in SHARES[1:])]
        for group, width in built.items()
    }
    return {group: tuple(dict.fromkeys(widths)) for group, widths in shared.items()}


def _searched(backbone: Any) -> List[Layer]:
    """The paper's backbone: the output width of the blocks of each stage."""
    blocks = [
        (f"{stage}.{i}", stage, EXPANSION)
        for stage in STAGES
        for i in range(len(getattr(backbone, stage)))
    ]
    return _inverted_residuals(blocks, "last")


def _mobilenet(backbone: Any) -> List[Layer]:
    """MobileNetV2: the output width of each row of its table, group1 to group7."""
    blocks: List[Tuple[str, str, int]] = []
    for row, (times, _, count, _) in enumerate(backbone.cfgs, start=1):
        for _ in range(count):
            blocks.append((f"features.{len(blocks) + 1}", f"group{row}", int(times)))
    return _inverted_residuals(blocks, "conv")


def _inverted_residuals(blocks: Sequence[Tuple[str, str, int]], last: str) -> List[Layer]:
    """Of each block its path, its group, and its expansion; and what reads the map of the last.

    A block's Sequential ``conv``: 1x1, norm, -, depthwise, norm, -, 1x1, norm. Without an expansion
    it begins with the depthwise convolution. What the stem gives stays as it is, and so does what
    is made of it.
    """
    layers: List[Layer] = []
    before = Channels()
    for path, group, times in blocks:
        after, inside = Channels(group), before
        if before.group:
            inside = Channels(before.group, times, path)
            layers += [
                Layer(f"{path}.conv.0", before, inside),
                Layer(f"{path}.conv.1", inside, inside),
                Layer(f"{path}.conv.3", inside, inside),
                Layer(f"{path}.conv.4", inside, inside, masked=True),
            ]
        end = 6 if times > 1 else 3
        layers.append(Layer(f"{path}.conv.{end}", inside, after))
        layers.append(Layer(f"{path}.conv.{end + 1}", after, after, masked=True))
        before = after
    layers.append(Layer(f"{last}.0", before, Channels()))
    return layers


def _resnet(backbone: Any) -> List[Layer]:
    """ResNet: the width inside the blocks of each stage, layer1 to layer4."""
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
            layers.append(Layer(f"{path}.conv1", Channels(), first))
            layers.append(Layer(f"{path}.bn1", first, first, masked=True))
            if hasattr(block, "conv3"):  # a bottleneck
                layers.append(Layer(f"{path}.conv2", first, second))
                layers.append(Layer(f"{path}.bn2", second, second, masked=True))
                layers.append(Layer(f"{path}.conv3", second, Channels()))
            else:
                layers.append(Layer(f"{path}.conv2", first, Channels()))
    return layers


_READERS: Dict[str, Callable[[Any], List[Layer]]] = {
    "SearchedBackbone": _searched,
    "MobileNetV2": _mobilenet,
    "ResNet": _resnet,
}
