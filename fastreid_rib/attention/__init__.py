"""Attention modules in plain PyTorch, usable in any network, and what builds them by name."""

import inspect
from typing import Any, Dict, Type

from torch import nn

from fastreid_rib.attention.dcs import DCSAttention, DCSMask
from fastreid_rib.attention.gates import ECA, SE, CBAMChannel
from fastreid_rib.attention.parts import PartAttention
from fastreid_rib.attention.self_attention import Explanation, SelfAttention
from fastreid_rib.settings.attention import GONE_ATTENTIONS, AttentionSettings
from fastreid_rib.settings.declaration import check_settings, did_you_mean

__all__ = [
    "ATTENTIONS",
    "ECA",
    "SE",
    "CBAMChannel",
    "DCSAttention",
    "DCSMask",
    "Explanation",
    "PartAttention",
    "SelfAttention",
    "attention_settings",
    "build_attention",
]

ATTENTIONS: Dict[str, Type[nn.Module]] = {
    "DCS": DCSAttention,
    "SelfAttention": SelfAttention,
    "SE": SE,
    "ECA": ECA,
    "CBAM": CBAMChannel,
}
"""Each takes the channels and its settings, and maps (B, C, H, W) to the same shape and dtype; DCS
and SelfAttention take (B, N, C) tokens too. A class put in here can be built by its name."""


def build_attention(name: str, channels: int, **settings: Any) -> nn.Module:
    """Builds an attention module.

    Args:
        name: a key of :data:`ATTENTIONS`.
        channels: C of the maps that it will get.
        settings: as in the module's class; those left out keep their defaults.

    Raises:
        KeyError: not a name.
        TypeError: not a setting of that module.
        ValueError: a setting is out of its range.
    """
    known, gone = attention_settings(name), AttentionSettings.gone
    check_settings(f"attention '{name}'", settings, known, gone)
    return ATTENTIONS[name](channels, **settings)


def attention_settings(name: str) -> Dict[str, Any]:
    """The settings that a module takes, without the channels, with their defaults.

    Args:
        name: a key of :data:`ATTENTIONS`.

    Raises:
        KeyError: not a name.
    """
    if name not in ATTENTIONS:
        hint = GONE_ATTENTIONS.get(name) or did_you_mean(name, ATTENTIONS)
        raise KeyError(f"no attention is called '{name}'.{hint} There are {', '.join(ATTENTIONS)}.")
    parameters = inspect.signature(ATTENTIONS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
