"""Attention in the branches of FastReID's MGN."""

from typing import Any, Callable, Dict, Tuple

from torch import nn

from fastreid_rib.integration import config
from fastreid_rib.integration.attention import insertion
from fastreid_rib.integration.attention.head import HEAD

# MGN keeps the stages of a ResNet-50 or 101 in these modules, three copies of the last two. In
# front of the heads of a branch is behind the branch: channels, and the modules of each place.
_PLACES: Dict[str, Tuple[int, Tuple[str, ...]]] = {
    "layer1": (256, ("backbone.4",)),
    "layer2": (512, ("backbone.5",)),
    "layer3": (1024, ("b1.0", "b2.0", "b3.0")),
    "layer4": (2048, ("b1.1", "b2.1", "b3.1")),
    HEAD: (2048, ("b1", "b2", "b3")),
}


def build_mgn(
    architecture: Callable[[Any], nn.Module], asked: config.AskedAttention, cfg: Any
) -> nn.Module:
    """Builds an MGN, and then puts attention into it.

    While it is built it copies stages and loads one into another, which attention is not to be
    part of.

    Args:
        architecture: FastReID's MGN, or a class made from it.
        asked: what the config asks for.
        cfg: a FastReID config.

    Raises:
        ValueError: a place that MGN does not have; the message lists those it has.
    """
    if HEAD in asked.placement and config.rib_before_attention(cfg):
        raise ValueError(
            "MODEL.LOSSES.RIB.EMBEDDING is 'before', but in MGN the attention at the head is "
            "behind each branch, whose map several heads cut up. Write 'after'."
        )
    model = architecture(config.without_attention(cfg))
    _place_in_branches(model, asked)
    return model


def _place_in_branches(model: nn.Module, asked: config.AskedAttention) -> None:
    """Puts attention into a built MGN: one a branch, where a branch has modules of its own."""
    for place in asked.placement:
        if place not in _PLACES:
            raise ValueError(insertion.no_such_place(place, type(model).__name__, list(_PLACES)))
    with insertion.aside():
        for place in asked.placement:
            channels, paths = _PLACES[place]
            for path in paths:
                module = model.get_submodule(path)
                end = module if place == HEAD else list(module.children())[-1]
                insertion.place_behind(end, insertion.build(asked, channels, place))
