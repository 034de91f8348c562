"""The places of attention in a model: stages and blocks of a backbone, the head, MGN's branches."""

import logging
import re
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import nn

from fastreid_rib.base.kept import runs
from fastreid_rib.integration import config
from fastreid_rib.integration.attention import insertion
from fastreid_rib.integration.attention.insertion import BLOCKS, HEAD
from fastreid_rib.settings.attention import AttentionKeys

logger = logging.getLogger(__name__)


# MGN keeps the stages of a ResNet-50 or 101 in these modules, three copies of the last two. Before
# the heads of a branch is after the branch: channels, and the modules of each place.
_IN_MGN: Dict[str, Tuple[int, Tuple[str, ...]]] = {
    "layer1": (256, ("backbone.4",)),
    "layer2": (512, ("backbone.5",)),
    "layer3": (1024, ("b1.0", "b2.0", "b3.0")),
    "layer4": (2048, ("b1.1", "b2.1", "b3.1")),
    HEAD: (2048, ("b1", "b2", "b3")),
}
_STAGE_NAMES = re.compile(r"(layer|stage|conv|s)[1-9]")
# Large enough that every stage has a size of its own, and small enough to cost nothing.
_PROBE_SIZE = (64, 64)


def build_with_attention(architecture: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
    """Builds a meta-architecture with the attention that its config asks for.

    Args:
        architecture: a class, or a function of the config. By ``build_backbone`` and
            ``build_heads`` it gets attention while it is built; MGN, which copies stages and loads
            one into another then, gets it afterwards.

    Raises:
        ValueError: a place that the model does not have, or an architecture that left out an
            attention that it was given.
    """
    asked = config.asked_attention(cfg)
    if asked is None:
        return architecture(cfg)
    from fastreid.modeling.meta_arch.mgn import MGN

    if isinstance(architecture, type) and issubclass(architecture, MGN):
        if HEAD in asked.placement and config.rib_before_attention(cfg):
            raise ValueError(
                "MODEL.LOSSES.RIB.EMBEDDING is 'before', but in MGN the attention at the head is "
                "after each branch, whose map several heads cut up. Write 'after'."
            )
        model = architecture(config.without_attention(cfg))
        _place_in_branches(model, asked)
    else:
        model = architecture(cfg)
    places = list(insertion.attached(model))
    if len(places) < len(asked.placement):
        raise ValueError(
            f"MODEL.ATTENTION.PLACEMENT is {asked.placement}, but the meta-architecture "
            f"{type(model).__name__} holds attention at {places or 'no place'} only: it does not "
            "use all of the backbone and of the head that it builds, or builds them by itself "
            "instead of by `build_backbone` and `build_heads`."
        )
    logger.info("Attention %s: %s", asked.name, ", ".join(places))
    return model


def place_in_backbone(backbone: nn.Module, asked: AttentionKeys, device: torch.device) -> None:
    """Puts attention after stages of a backbone, or into the blocks of a vision transformer.

    It is tried out on the device that it is going to run on.

    Raises:
        ValueError: a place that this backbone does not have; the message lists those it has.
    """
    name = type(backbone).__name__
    # What gives queries, keys and values, block by block.
    attentions = [getattr(block, "attn", None) for block in getattr(backbone, BLOCKS, ())]
    projections = [getattr(attention, "qkv", None) for attention in attentions]
    spots = [(BLOCKS, p, p.in_features) for p in projections if isinstance(p, nn.Linear)]
    if spots:
        _check_blocks(name, asked)
        insertion.insert(asked, spots, insertion.mask_queries_and_keys)
        return
    wanted = [place for place in asked.placement if place != HEAD]
    if not wanted:
        return
    stages = find_stages(backbone, device)
    _check(wanted, name, [HEAD, *stages])
    insertion.insert(asked, [(place, *stages[place]) for place in wanted], insertion.attend_last)


def find_stages(backbone: nn.Module, device: torch.device) -> Dict[str, Tuple[nn.Module, int]]:
    """The stages of a backbone that maps images to maps, in order.

    Children that run blocks one after the other and are called layer1, s1, stage1, conv2 and so on
    are stages under these names (ResNet, ResNeXt, ResNeSt; RegNet, EfficientNet; RepVGG; OSNet).
    MobileNet and ShuffleNet have all blocks in ``features``: there the blocks that give maps of one
    size are a stage, called stage1, stage2 and so on.

    Args:
        backbone: called with images (B, 3, H, W). Evaluated once on a small black image.
        device: where.

    Returns:
        By the name of each stage its last block, and the channels of the map that this gives; none
        if there is neither.
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
    probe = torch.zeros(1, 3, *_PROBE_SIZE, device=device)
    shapes = dict(runs(backbone, probe, dict(zip(blocks, blocks))))
    sizes = [shapes[block][2:] for block in flat] + [()]
    last_of_size = [block for i, block in enumerate(flat) if sizes[i] != sizes[i + 1]]
    ends.update((f"stage{i}", block) for i, block in enumerate(last_of_size, start=1))
    return {name: (block, shapes[block][1]) for name, block in ends.items()}


def _runs_blocks(module: nn.Module) -> bool:
    """Whether every child of a module is a block, that is, has children of its own.

    Stems do not: their children are layers.
    """
    children = list(module.children())
    return bool(children) and all(any(True for _ in child.children()) for child in children)


def _place_in_branches(model: nn.Module, asked: AttentionKeys) -> None:
    """Puts attention into a built MGN: one a branch, where a branch has modules of its own."""
    _check(asked.placement, type(model).__name__, list(_IN_MGN))
    spots: List[insertion.Spot] = []
    for place in asked.placement:
        channels, paths = _IN_MGN[place]
        modules = [model.get_submodule(path) for path in paths]
        ends = modules if place == HEAD else [list(stage.children())[-1] for stage in modules]
        spots += [(place, end, channels) for end in ends]
    insertion.insert(asked, spots, insertion.attend_last)


def _check(wanted: Sequence[str], where: str, places: Sequence[str]) -> None:
    for place in wanted:
        if place not in places:
            raise ValueError(
                f"MODEL.ATTENTION.PLACEMENT holds '{place}', which {where} does not have. It has "
                f"{', '.join(places)}."
            )


def _check_blocks(name: str, asked: AttentionKeys) -> None:
    if HEAD in asked.placement:
        raise ValueError(
            f"{name} gives the head its class token and no map, so attention at the head "
            "would have one position to attend to. Write MODEL.ATTENTION.NAME DCS and "
            f'MODEL.ATTENTION.PLACEMENT ("{BLOCKS}",), which masks the queries and keys of every '
            "block."
        )
    _check(asked.placement, name, [BLOCKS])
    if asked.name != "DCS":
        raise ValueError(
            f"Inside the blocks of {name} stands its own attention, which MODEL.ATTENTION.NAME DCS "
            f"can mask; {asked.name} is for maps."
        )
    if asked.mask_bias <= 0:
        raise ValueError(
            f"MODEL.ATTENTION.MASK_BIAS is {asked.mask_bias:g}, and in evaluation the masks of "
            f"{name} would start without a channel: it would attend to nothing. Write a positive "
            "one, such as 1.0, which keeps 73 % of the channels in training and all of them in "
            "evaluation."
        )
