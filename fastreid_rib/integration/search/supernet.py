"""The backbone of a search, and of what it derives.

A derived network is the widest one cut down after it was built, so that its pretrained weights are
used. A supernet is a model with a :class:`WidthSearch` beside its backbone, as the submodule
``search``; what calls it are hooks that are plain functions of the model, which copies keep.
"""

from typing import Any

import torch
from torch import nn

from fastreid_rib.integration import config
from fastreid_rib.integration.attention.insertion import attached
from fastreid_rib.integration.search.cost import cost_of
from fastreid_rib.integration.search.spaces import choice_of, space_of
from fastreid_rib.search import Channels, WidthSearch, narrow, order
from fastreid_rib.settings.declaration import SettingError


def order_and_narrow(backbone: nn.Module, cfg: Any) -> None:
    """Sorts a pretrained backbone's channels for a search, and cuts it to MODEL.SEARCH.WIDTHS.

    Args:
        backbone: as FastReID built it.
        cfg: a FastReID config.
    """
    searched, pretrained = cfg.MODEL.SEARCH, cfg.MODEL.BACKBONE.PRETRAIN
    if not searched.WIDTHS and not (searched.ENABLED and pretrained):
        return
    space = space_of(backbone, cfg)
    if pretrained:
        order(backbone, space)
    if searched.WIDTHS:
        narrow(backbone, space, choice_of(cfg, space))


def search_widths(model: Any, cfg: Any) -> None:
    """Makes a model a supernet: its backbone gets masks, and it learns how wide to be.

    Args:
        model: a built meta-architecture with a ``backbone``.
        cfg: a FastReID config.

    Raises:
        ValueError: no backbone, one without a space, or a target that no network of it meets.
        ImportError: there is attention to be counted, and no fvcore.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ValueError(
            f"MODEL.SEARCH.ENABLED is True, but {type(model).__name__} has no `backbone` whose "
            "widths could be searched. Write False, or another MODEL.META_ARCHITECTURE."
        )
    space = space_of(backbone, cfg)
    home, device = next(model.parameters()).device, torch.device(cfg.MODEL.DEVICE)
    model.to(device)  # where it is going to run: syncBN knows GPUs only
    try:
        cost = cost_of(model, space, cfg, device)
    finally:
        model.to(home)
    try:
        search = WidthSearch(backbone, cost, config.asked_search(cfg), cfg.SEED)
    except SettingError as error:
        raise ValueError(error.of_keys("MODEL.SEARCH")) from error
    except ValueError as error:
        raise ValueError(f"MODEL.SEARCH.OPTIONS: {error}") from error
    for path in attached(backbone):
        block = path.rpartition(".")[0]
        if block in space.blocks:
            search.mask_after(backbone.get_submodule(block), Channels(space.blocks[block]))
    model.search = search
    model.register_forward_pre_hook(_draw)
    model.register_forward_hook(_add_cost)


def _draw(model: Any, args: Any) -> None:
    if model.training:
        model.search.draw()


def _add_cost(model: Any, args: Any, outputs: Any) -> Any:
    if not model.training:
        return outputs
    if not isinstance(outputs, dict):
        raise RuntimeError(
            f"MODEL.SEARCH.ENABLED is True, but {type(model).__name__} gives no dict of losses to "
            "which the cost could be added. Write False, or another MODEL.META_ARCHITECTURE."
        )
    return {**outputs, "loss_cost": model.search.cost_loss()}
