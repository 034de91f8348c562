"""DCS's mask inside the blocks of a vision transformer."""

from typing import Any, List, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.attention import DCSMask
from fastreid_rib.integration import config
from fastreid_rib.integration.attention import insertion
from fastreid_rib.integration.attention.insertion import HEAD

BLOCKS = "blocks"
"""The name of this place in ``MODEL.ATTENTION.PLACEMENT``."""

_MASK_SETTINGS = ("temperature", "final_temperature", "mask_bias")


def query_key_projections(backbone: nn.Module) -> List[nn.Linear]:
    """The layers of a vision transformer that give queries, keys and values, block by block."""
    attentions = [getattr(block, "attn", None) for block in getattr(backbone, BLOCKS, ())]
    projections = [getattr(attention, "qkv", None) for attention in attentions]
    return [projection for projection in projections if isinstance(projection, nn.Linear)]


def place_in_blocks(name: str, projections: List[nn.Linear], asked: config.AskedAttention) -> None:
    """Puts DCS's mask on the queries and keys of every block.

    Args:
        name: of the backbone, for the errors.
        projections: what :func:`query_key_projections` found in it.
        asked: what the config asks for.

    Raises:
        ValueError: anything but DCS in the blocks, or settings that do not fit tokens.
    """
    _check(name, asked)
    with insertion.aside():
        for projection in projections:
            mask = insertion.build(asked, projection.in_features, BLOCKS, make=_mask)
            projection.add_module("attention", mask)
            projection.register_forward_hook(_mask_queries_and_keys)


def _mask(asked: config.AskedAttention, channels: int) -> nn.Module:
    return DCSMask(channels, **{key: asked.settings[key] for key in _MASK_SETTINGS})


def _check(name: str, asked: config.AskedAttention) -> None:
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
