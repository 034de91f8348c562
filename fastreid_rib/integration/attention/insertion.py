"""An attention is built for a place and becomes part of the module that it stands at.

What calls it there is a forward hook that is a plain function of the module it hangs on: a closure
would call the original's attention from a copy.

It learns at MODEL.ATTENTION.LR_FACTOR times the rate of its surroundings. FastReID knows one factor
for biases and one for heads. Attention is small and starts at the identity beside layers that are
trained already, so its best rate need not be theirs. Which it is differs between modules:
docs/notebook/attention.md has what ten times did to each.
"""

from typing import Any, Callable, Dict, Iterable, List, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.attention import ATTENTIONS, DCSMask, attention_settings, build_attention
from fastreid_rib.base.patching import wrap
from fastreid_rib.settings.attention import AttentionKeys

HEAD = "head"
"""The name of the place before the pooling, in ``MODEL.ATTENTION.PLACEMENT``."""

BLOCKS = "blocks"
"""The name of the place in a vision transformer, inside its blocks."""

_FACTOR = "attention_lr_factor"

Spot = Tuple[str, nn.Module, int]
"""A place by its name in ``MODEL.ATTENTION.PLACEMENT``, a module there, and the channels."""


def insert(asked: AttentionKeys, spots: Iterable[Spot], call: Callable[..., Any]) -> None:
    """Builds an attention for each of some places, and puts it there.

    They are initialised from a copy of torch's random state: so the other parameters of a seeded
    run start as they would without attention.

    Args:
        asked: what the config asks for.
        spots: where; for maps (B, channels, H, W), in blocks for tokens (B, N, channels).
        call: the hook that calls it there: one of those below.

    Raises:
        ValueError: settings that do not fit the channels (a width beyond them, say), which is
            known only here; the message names the place.
    """
    known = attention_settings(asked.name)
    settings = {name: getattr(asked, name) for name in known if hasattr(asked, name)}
    with torch.random.fork_rng(devices=[]):
        for place, module, channels in spots:
            attention: nn.Module
            try:
                if place == BLOCKS:
                    attention = DCSMask(
                        channels,
                        temperature=asked.temperature,
                        final_temperature=asked.final_temperature,
                        mask_bias=asked.mask_bias,
                    )
                else:
                    attention = build_attention(asked.name, channels, **settings)
            except ValueError as error:
                raise ValueError(
                    f"MODEL.ATTENTION ({asked.name}) does not fit the {channels} channels of "
                    f"'{place}': {error}"
                ) from error
            # On it, so that a deep copy has it too.
            setattr(attention, _FACTOR, float(asked.lr_factor))
            module.add_module("attention", attention)
            if call is attend_first:
                module.register_forward_pre_hook(call)
            elif not isinstance(module, nn.Sequential):  # which calls its new last child by itself
                module.register_forward_hook(call)


def attend_last(module: Any, args: Any, output: Tensor) -> Tensor:
    """Makes it the last thing that a module does, which gives a map (B, C, H, W)."""
    return module.attention(output)


def attend_first(module: Any, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Makes it the first thing that a module does, which is called with a map (B, C, H, W)."""
    features, *others = args
    return (module.attention(features), *others)


def mask_queries_and_keys(projection: Any, args: Tuple[Tensor], output: Tensor) -> Tensor:
    """Puts DCS's mask on what maps tokens (B, N, C) to queries, keys and values, (B, N, 3C)."""
    mask = projection.attention(args[0]).to(output.dtype)
    queries, keys, values = output.chunk(3, dim=-1)
    return torch.cat((queries * mask, keys * mask, values), dim=-1)


def attached(model: nn.Module) -> Dict[str, nn.Module]:
    """The attentions of this plugin in a model, by their paths."""
    kinds: Tuple[Any, ...] = (*ATTENTIONS.values(), DCSMask)
    return {
        path: module
        for path, module in model.named_modules()
        if path.rpartition(".")[2] == "attention" and isinstance(module, kinds)
    }


def extend_optimizer(build: Any) -> None:
    """Lets FastReID's groups of parameters learn at the rates that :func:`insert` has set.

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
