"""An attention is built for a place and becomes part of the module that it stands at.

What calls it there is a forward hook that is a plain function of the module it hangs on: a closure
would call the original's attention from a copy.
"""

from typing import Any, Callable, Dict, Sequence, Tuple, Type

import torch
from torch import Tensor, nn

from fastreid_rib.attention import ATTENTIONS, DCSMask, build_attention
from fastreid_rib.integration import config
from fastreid_rib.integration.attention import learning_rate

HEAD = "head"
"""The name of the place before the pooling, in ``MODEL.ATTENTION.PLACEMENT``."""


def check(wanted: Sequence[str], where: str, places: Sequence[str]) -> None:
    """Refuses places that a model does not have.

    Args:
        wanted: places as the config names them.
        where: the class of the backbone or of the meta-architecture.
        places: those that it has.

    Raises:
        ValueError: the message lists the places.
    """
    for place in wanted:
        if place not in places:
            raise ValueError(
                f"MODEL.ATTENTION.PLACEMENT holds '{place}', which {where} does not have. It has "
                f"{', '.join(places)}."
            )


def _for_maps(asked: config.AskedAttention, channels: int) -> nn.Module:
    return build_attention(asked.name, channels, **asked.settings)


def build(
    asked: config.AskedAttention,
    channels: int,
    place: str,
    make: Callable[[config.AskedAttention, int], nn.Module] = _for_maps,
) -> nn.Module:
    """Builds what stands at a place and learns at its own rate.

    Args:
        asked: what the config asks for.
        channels: at the place.
        place: its name, as in ``MODEL.ATTENTION.PLACEMENT``.
        make: called with the first two; gives a module for maps (B, channels, H, W) by default.

    Raises:
        ValueError: settings that do not fit the channels (a width beyond them, say), which is
            known only here; the message names the place.
    """
    try:
        module = make(asked, channels)
    except ValueError as error:
        raise ValueError(
            f"MODEL.ATTENTION ({asked.name}) does not fit the {channels} channels of "
            f"'{place}': {error}"
        ) from error
    learning_rate.mark(module, asked.lr_factor)
    return module


def aside() -> Any:
    """Initialises what is built within it from a copy of torch's random state.

    So the other parameters of a seeded run start as they would without attention.
    """
    return torch.random.fork_rng(devices=[])


def place_after(module: nn.Module, attention: nn.Module) -> None:
    """Makes an attention the last thing that a module does.

    Args:
        module: gives a map (B, C, H, W).
        attention: of the same channels; becomes the submodule ``attention`` of ``module``.
    """
    module.add_module("attention", attention)
    if not isinstance(module, nn.Sequential):  # which calls its new last child by itself
        module.register_forward_hook(_attend_last)


def place_before(module: nn.Module, attention: nn.Module) -> None:
    """Makes an attention the first thing that a module does.

    Args:
        module: called with a map (B, C, H, W) as its first positional argument.
        attention: of the same channels; becomes the submodule ``attention`` of ``module``.
    """
    module.add_module("attention", attention)
    module.register_forward_pre_hook(_attend_first)


def attached(model: nn.Module) -> Dict[str, nn.Module]:
    """The attentions of this plugin in a model, by their paths."""
    kinds: Tuple[Type[nn.Module], ...] = (*ATTENTIONS.values(), DCSMask)
    return {
        path: module
        for path, module in model.named_modules()
        if path.rpartition(".")[2] == "attention" and isinstance(module, kinds)
    }


def _attend_last(module: Any, args: Any, output: Tensor) -> Tensor:
    return module.attention(output)


def _attend_first(module: Any, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    features, *others = args
    return (module.attention(features), *others)
