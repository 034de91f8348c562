"""What FastReID builds: RIB, attention and the search each add their part to it.

FastReID asks its registry of meta-architectures at every ``build_model``, and its architectures
call ``build_backbone`` and ``build_heads``; all three are extended, so architectures that other
projects register later get the same.
"""

import functools
from typing import Any, Callable

import torch
from torch import nn

from fastreid_rib.base.patching import wrap
from fastreid_rib.integration import config
from fastreid_rib.integration.attention import insertion, places
from fastreid_rib.integration.rib import embedding, meta_arch
from fastreid_rib.integration.search import supernet

Architecture = Callable[[Any], nn.Module]
"""What FastReID's registry holds: a class, or a function of the config."""


def extend_backbones(build: Any) -> None:
    """Lets ``build_backbone`` cut a backbone down and put attention into it, as the config says."""

    def build_backbone(stock: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
        backbone = stock(cfg)
        supernet.order_and_narrow(backbone, cfg)
        asked = config.asked_attention(cfg)
        if asked is not None:
            places.place_in_backbone(backbone, asked, torch.device(cfg.MODEL.DEVICE))
        return backbone

    wrap(build, "build_backbone", build_backbone)


def extend_heads(build: Any) -> None:
    """Lets ``build_heads`` put attention into a head, or pass its neck by, as the config says."""

    def build_heads(stock: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
        head = stock(cfg)
        asked = config.asked_attention(cfg)
        if asked is not None and insertion.HEAD in asked.placement:
            if config.rib_before_attention(cfg):
                embedding.keep_pooled(head)  # first: hooks run in the order of registration
            before = [(insertion.HEAD, head, cfg.MODEL.BACKBONE.FEAT_DIM)]  # on the map it pools
            insertion.insert(asked, before, insertion.attend_first)
        if cfg.TEST.NECK_FEAT == "before":
            embedding.give_before_neck(head)
        return head

    wrap(build, "build_heads", build_heads)


def name_heads(heads: Any) -> None:
    """Gives FastReID's head the names that stand for attention at the head."""
    for name in config.ATTENTION_HEADS:
        heads.REID_HEADS_REGISTRY._do_register(name, heads.EmbeddingHead)


def extend_registry(build: Any) -> None:
    """Lets FastReID's registry of meta-architectures hand out :func:`build_architecture`."""

    def get(stock: Callable[[str], Architecture], name: str) -> Architecture:
        return functools.partial(build_architecture, stock(name))

    wrap(build.META_ARCH_REGISTRY, "get", get)


def build_architecture(architecture: Architecture, cfg: Any) -> nn.Module:
    """Builds a meta-architecture with the RIB, the attention and the search of its config.

    Raises:
        KeyError: an unknown loss name.
        ValueError: a plugin key out of its range, or a place for attention that is not there.
        TypeError: RIB is named, but the architecture has no ``losses`` to add it to.
    """
    config.check(cfg)
    names = config.loss_names(cfg)
    if names != tuple(cfg.MODEL.LOSSES.NAME):
        cfg = config.changed(cfg, {"MODEL.LOSSES.NAME": names})
    if "RIBLoss" in names:
        architecture = meta_arch.with_rib(architecture)
    model = places.build_with_attention(architecture, cfg)
    searches = cfg.MODEL.SEARCH.ENABLED
    if searches or any(hasattr(module, "set_progress") for module in model.modules()):
        progressing: Any = model
        progressing.progress_epoch, progressing.progress_epochs = -1, cfg.SOLVER.MAX_EPOCH
        model.register_forward_pre_hook(_tell_progress)
    if searches:
        supernet.search_widths(model, cfg)
    return model


def _tell_progress(model: Any, args: Any) -> None:
    """Tells modules with ``set_progress`` how far the training has come, once an epoch.

    Temperatures of DCS's masks and of a search's choices follow it. A hook on the model itself
    needs none in the trainer, and works with the trainers of other projects as well.
    """
    if not model.training:
        return
    from fastreid.utils.events import get_event_storage

    epoch = getattr(get_event_storage(), "epoch", None)  # PreciseBN's storage has none
    if epoch is None or epoch == model.progress_epoch:
        return
    model.progress_epoch = epoch
    progress = min(epoch / max(1, model.progress_epochs - 1), 1.0)
    for module in model.modules():
        # DCS passes it on to its mask, which is a module of this model as well.
        if hasattr(module, "set_progress"):
            module.set_progress(progress)
