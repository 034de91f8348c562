"""What FastReID builds its models with puts attention at the places that a config names."""

import logging
from typing import Any, Callable

import torch
from torch import nn

from fastreid_rib.attention import ATTENTIONS, DCSMask
from fastreid_rib.base.patching import wrap
from fastreid_rib.integration import config
from fastreid_rib.integration.attention import blocks, branches, stages
from fastreid_rib.integration.attention.annealing import follow_epochs
from fastreid_rib.integration.attention.head import place_at_head

logger = logging.getLogger(__name__)


def extend_backbones(build: Any) -> None:
    """Lets ``build_backbone`` put attention behind the stages that the config names.

    Args:
        build: the module ``fastreid.modeling.backbones.build``.
    """

    def build_backbone(stock: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
        backbone = stock(cfg)
        asked = config.asked_attention(cfg)
        if asked is not None:
            place_in_backbone(backbone, asked, torch.device(cfg.MODEL.DEVICE))
        return backbone

    wrap(build, "build_backbone", build_backbone)


def extend_heads(build: Any) -> None:
    """Lets ``build_heads`` put attention in front of the pooling if the config says so.

    Args:
        build: the module ``fastreid.modeling.heads.build``.
    """

    def build_heads(stock: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
        head = stock(cfg)
        # DCSHead and ChannelAttentionHead have theirs already.
        if cfg.MODEL.HEADS.NAME not in config.ATTENTION_HEADS:
            place_at_head(head, cfg)
        return head

    wrap(build, "build_heads", build_heads)


def build_with_attention(architecture: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
    """Builds a meta-architecture with the attention that its config asks for.

    Args:
        architecture: a class, or a function of the config.
        cfg: a FastReID config.

    Returns:
        ``architecture(cfg)`` with attention in it, whose temperature follows the epochs.

    Raises:
        ValueError: a place that the backbone does not have, or an architecture that left out an
            attention that it was given.
    """
    asked = config.asked_attention(cfg)
    if asked is None:
        return architecture(cfg)
    from fastreid.modeling.meta_arch.mgn import MGN

    if isinstance(architecture, type) and issubclass(architecture, MGN):
        model = branches.build_mgn(architecture, asked, cfg)
    else:
        model = architecture(cfg)
    places = [
        name
        for name, module in model.named_modules()
        if name.split(".")[-1] == "attention"
        and isinstance(module, (ATTENTIONS[asked.name], DCSMask))
    ]
    if len(places) < len(asked.placement):
        raise ValueError(
            f"MODEL.ATTENTION.PLACEMENT is {asked.placement}, but the meta-architecture "
            f"{type(model).__name__} holds attention at {places or 'no place'} only: it does not "
            "use all of the backbone and of the head that it builds, or builds them by itself "
            "instead of by `build_backbone` and `build_heads`."
        )
    logger.info("Attention %s: %s", asked.name, ", ".join(places))
    follow_epochs(model, cfg.SOLVER.MAX_EPOCH)
    return model


def place_in_backbone(
    backbone: nn.Module, asked: config.AskedAttention, device: torch.device
) -> None:
    """Puts attention behind stages of a backbone, or into the blocks of a vision transformer.

    Args:
        backbone: what FastReID built, with pretrained weights if any.
        asked: what the config asks for; "head" in its placement is left to the head.
        device: where it is going to run, and is tried out: syncBN knows GPUs only.

    Raises:
        ValueError: a place that this backbone does not have; the message lists those it has.
    """
    projections = blocks.query_key_projections(backbone)
    if projections:
        blocks.place_in_blocks(type(backbone).__name__, projections, asked)
    else:
        stages.place_at_stages(backbone, asked, device)
