"""The places of attention in a model: stages and blocks of a backbone, the head, MGN's branches."""

import logging
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.integration import config
from fastreid_rib.integration.attention import insertion
from fastreid_rib.integration.attention.insertion import BLOCKS, HEAD
from fastreid_rib.integration.attention.stages import find_stages

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


def build_with_attention(architecture: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
    """Builds a meta-architecture with the attention that its config asks for.

    Args:
        architecture: a class, or a function of the config. By ``build_backbone`` and
            ``build_heads`` it gets attention while it is built; MGN, which copies stages and loads
            one into another then, gets it afterwards.
        cfg: a FastReID config.

    Returns:
        ``architecture(cfg)`` with attention in it.

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


def place_in_backbone(
    backbone: nn.Module, asked: config.AskedAttention, device: torch.device
) -> None:
    """Puts attention after stages of a backbone, or into the blocks of a vision transformer.

    Args:
        backbone: what FastReID built, with pretrained weights if any.
        asked: what the config asks for; "head" in its placement is left to the head.
        device: where it is going to run, and is tried out: syncBN knows GPUs only.

    Raises:
        ValueError: a place that this backbone does not have; the message lists those it has.
    """
    projections = _query_key_projections(backbone)
    if projections:
        _place_in_blocks(type(backbone).__name__, projections, asked)
        return
    wanted = [place for place in asked.placement if place != HEAD]
    if not wanted:
        return
    stages = find_stages(backbone, device)
    insertion.check(wanted, type(backbone).__name__, [HEAD, *stages])
    with insertion.aside():
        for place in wanted:
            stage = stages[place]
            insertion.place_after(stage.block, insertion.build(asked, stage.channels, place))


def place_at_head(head: nn.Module, asked: config.AskedAttention, channels: int) -> None:
    """Puts attention before a head, on the map that it pools.

    Args:
        head: called with the map (B, channels, H, W) as its first positional argument.
        asked: what the config asks for.
        channels: of the map.
    """
    with insertion.aside():
        insertion.place_before(head, insertion.build(asked, channels, HEAD))


def _place_in_branches(model: nn.Module, asked: config.AskedAttention) -> None:
    """Puts attention into a built MGN: one a branch, where a branch has modules of its own."""
    insertion.check(asked.placement, type(model).__name__, list(_IN_MGN))
    with insertion.aside():
        for place in asked.placement:
            channels, paths = _IN_MGN[place]
            for path in paths:
                module = model.get_submodule(path)
                end = module if place == HEAD else list(module.children())[-1]
                insertion.place_after(end, insertion.build(asked, channels, place))


def _query_key_projections(backbone: nn.Module) -> List[nn.Linear]:
    """The layers of a vision transformer that give queries, keys and values, block by block."""
    attentions = [getattr(block, "attn", None) for block in getattr(backbone, BLOCKS, ())]
    projections = [getattr(attention, "qkv", None) for attention in attentions]
    return [projection for projection in projections if isinstance(projection, nn.Linear)]


def _place_in_blocks(name: str, projections: List[nn.Linear], asked: config.AskedAttention) -> None:
    """Puts DCS's mask on the queries and keys of every block of a backbone of some name."""
    _check_blocks(name, asked)
    with insertion.aside():
        for projection in projections:
            mask = insertion.build(asked, projection.in_features, BLOCKS)
            projection.add_module("attention", mask)
            projection.register_forward_hook(_mask_queries_and_keys)


def _check_blocks(name: str, asked: config.AskedAttention) -> None:
    if HEAD in asked.placement:
        raise ValueError(
            f"{name} gives the head its class token and no map, so attention at the head "
            "would have one position to attend to. Write MODEL.ATTENTION.NAME DCS and "
            f'MODEL.ATTENTION.PLACEMENT ("{BLOCKS}",), which masks the queries and keys of every '
            "block."
        )
    insertion.check(asked.placement, name, [BLOCKS])
    if asked.name != "DCS":
        raise ValueError(
            f"Inside the blocks of {name} stands its own attention, which MODEL.ATTENTION.NAME DCS "
            f"can mask; {asked.name} is for maps."
        )
    bias = asked.settings["mask_bias"]
    if bias <= 0:
        raise ValueError(
            f"MODEL.ATTENTION.MASK_BIAS is {bias:g}, and in evaluation the masks of {name} would "
            "start without a channel: it would attend to nothing. Write a positive one, such as "
            "1.0, which keeps 73 % of the channels in training and all of them in evaluation."
        )


def _mask_queries_and_keys(projection: Any, args: Tuple[Tensor], output: Tensor) -> Tensor:
    """Masks channels of queries and keys, (B, N, 3C) with the values last, by the tokens."""
    mask = projection.attention(args[0]).to(output.dtype)
    queries, keys, values = output.chunk(3, dim=-1)
    return torch.cat((queries * mask, keys * mask, values), dim=-1)
