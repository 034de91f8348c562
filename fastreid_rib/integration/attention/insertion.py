"""An attention is built for a place and becomes part of the module that it stands at.

What calls it there is a forward hook that is a plain function of the module it hangs on: a closure
would call the original's attention from a copy.

It learns at MODEL.ATTENTION.LR_FACTOR times the rate of its surroundings. FastReID knows one factor
for biases and one for heads. Attention is small and starts at the identity beside layers that are
trained already, so its best rate need not be theirs. Which it is differs between modules:
docs/notebook/attention.md has what ten times did to each.
"""

from typing import Any, Callable, Dict, List, Sequence, Tuple, Type

import torch
from torch import Tensor, nn

from fastreid_rib.attention import ATTENTIONS, DCSMask, build_attention
from fastreid_rib.base.patching import wrap
from fastreid_rib.integration import config

HEAD = "head"
"""The name of the place before the pooling, in ``MODEL.ATTENTION.PLACEMENT``."""

BLOCKS = "blocks"
"""The name of the place in a vision transformer, inside its blocks."""

_MASK_SETTINGS = ("temperature", "final_temperature", "mask_bias")
_FACTOR = "attention_lr_factor"


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


def build(asked: config.AskedAttention, channels: int, place: str) -> nn.Module:
    """Builds what stands at a place and learns at its own rate.

    Args:
        asked: what the config asks for.
        channels: at the place.
        place: its name, as in ``MODEL.ATTENTION.PLACEMENT``.

    Returns:
        A module for maps (B, channels, H, W); in blocks DCS's mask for tokens (B, N, channels).

    Raises:
        ValueError: settings that do not fit the channels (a width beyond them, say), which is
            known only here; the message names the place.
    """
    settings = asked.settings
    module: nn.Module
    try:
        if place == BLOCKS:
            module = DCSMask(channels, **{key: settings[key] for key in _MASK_SETTINGS})
        else:
            module = build_attention(asked.name, channels, **settings)
    except ValueError as error:
        raise ValueError(
            f"MODEL.ATTENTION ({asked.name}) does not fit the {channels} channels of "
            f"'{place}': {error}"
        ) from error
    setattr(module, _FACTOR, float(asked.lr_factor))  # on it, so that a deep copy has it too
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


def extend_optimizer(build: Any) -> None:
    """Lets FastReID's groups of parameters learn at the rates that :func:`build` has set.

    They come on top of SOLVER.HEADS_LR_FACTOR and SOLVER.BIAS_LR_FACTOR, where they hold.
    """

    def get_default_optimizer_params(
        stock: Callable[..., List[Dict[str, Any]]], model: nn.Module, *args: Any, **kwargs: Any
    ) -> List[Dict[str, Any]]:
        groups = stock(model, *args, **kwargs)
        factors = {
            parameter: getattr(module, _FACTOR)
            for module in model.modules()
            if hasattr(module, _FACTOR)
            for parameter in module.parameters()
        }
        for group in groups:  # a group for each parameter
            (parameter,) = group["params"]
            group["lr"] *= factors.get(parameter, 1.0)
        return groups

    wrap(build, "get_default_optimizer_params", get_default_optimizer_params)


def _attend_last(module: Any, args: Any, output: Tensor) -> Tensor:
    return module.attention(output)


def _attend_first(module: Any, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    features, *others = args
    return (module.attention(features), *others)
