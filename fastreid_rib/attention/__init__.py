"""Attention modules in plain PyTorch: usable in any network."""

from fastreid_rib.attention.cam import CAM
from fastreid_rib.attention.dcs import DCSAttention, DCSMask
from fastreid_rib.attention.gates import ECA, SE, CBAMChannel
from fastreid_rib.attention.registry import ATTENTIONS, attention_settings, build_attention
from fastreid_rib.attention.self_attention import Explanation, SelfAttention

__all__ = [
    "ATTENTIONS",
    "CAM",
    "ECA",
    "SE",
    "CBAMChannel",
    "DCSAttention",
    "DCSMask",
    "Explanation",
    "SelfAttention",
    "attention_settings",
    "build_attention",
]
