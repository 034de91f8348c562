"""The stages of a backbone that maps images to maps."""

import re
from typing import Dict, List, NamedTuple

import torch
from torch import nn

from fastreid_rib.base.kept import runs

_STAGE_NAMES = re.compile(r"(layer|stage|conv|s)[1-9]")
# Large enough that every stage has a size of its own, and small enough to cost nothing.
_PROBE_SIZE = (64, 64)


class Stage(NamedTuple):
    """Where a stage of a backbone ends.

    Attributes:
        block: its last block.
        channels: of the map that the block gives.
    """

    block: nn.Module
    channels: int


def find_stages(backbone: nn.Module, device: torch.device) -> Dict[str, Stage]:
    """The stages of a backbone that maps images to maps, in order.

    Children that run blocks one after the other and are called layer1, s1, stage1, conv2 and so on
    are stages under these names (ResNet, ResNeXt, ResNeSt; RegNet, EfficientNet; RepVGG; OSNet).
    MobileNet and ShuffleNet have all blocks in ``features``: there the blocks that give maps of one
    size are a stage, called stage1, stage2 and so on.

    Args:
        backbone: called with images (B, 3, H, W). Evaluated once on a small black image.
        device: where; the backbone is brought back afterwards.

    Returns:
        Names and ends of the stages; none if there is neither.
    """
    ends = {
        name: list(child.children())[-1]
        for name, child in backbone.named_children()
        if _STAGE_NAMES.fullmatch(name) and _runs_blocks(child)
    }
    flat: List[nn.Module] = []
    features = getattr(backbone, "features", None)
    if not ends and isinstance(features, nn.Sequential) and _runs_blocks(features):
        flat = list(features)
    if not ends and not flat:
        return {}
    blocks = [*ends.values(), *flat]
    home = next(backbone.parameters()).device
    probe = torch.zeros(1, 3, *_PROBE_SIZE, device=device)
    try:
        ran = runs(backbone.to(device), probe, dict(zip(blocks, blocks)))
    finally:
        backbone.to(home)
    shapes = {run.name: run.written for run in ran}
    sizes = [shapes[block][2:] for block in flat] + [()]
    last_of_size = [block for i, block in enumerate(flat) if sizes[i] != sizes[i + 1]]
    ends.update((f"stage{i}", block) for i, block in enumerate(last_of_size, start=1))
    return {name: Stage(block, shapes[block][1]) for name, block in ends.items()}


def _runs_blocks(module: nn.Module) -> bool:
    """Whether every child of a module is a block, that is, has children of its own.

    Stems do not: their children are layers.
    """
    children = list(module.children())
    return bool(children) and all(any(True for _ in child.children()) for child in children)
