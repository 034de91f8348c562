"""The backbone of a search, and of what it derives.

A derived network is the widest one cut down after it was built, so that its pretrained weights are
used. A supernet is a model with a :class:`WidthSearch` beside its backbone, as the submodule
``search``; what calls it are hooks that are plain functions of the model, which copies keep.
"""

import contextlib
from typing import Any, Dict, Iterator, List, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.attention import ATTENTIONS, build_attention
from fastreid_rib.base.evaluating import evaluated
from fastreid_rib.integration import config
from fastreid_rib.integration.search.multiply_adds import counted
from fastreid_rib.integration.search.spaces import choice_of, space_of
from fastreid_rib.search import Channels, Cost, Space, WidthSearch, narrow, order
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
        ImportError: there is attention in the backbone to be counted, and no fvcore.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ValueError(
            f"MODEL.SEARCH.ENABLED is True, but {type(model).__name__} has no `backbone` whose "
            "widths could be searched. Write False, or another MODEL.META_ARCHITECTURE."
        )
    space = space_of(backbone, cfg)
    with on_device(model, cfg.MODEL.DEVICE) as device:
        cost = cost_of(model, space, cfg, device)
    try:
        search = WidthSearch(backbone, cost, config.asked_search(cfg), cfg.SEED)
    except SettingError as error:
        raise ValueError(error.of_keys("MODEL.SEARCH")) from error
    except ValueError as error:
        raise ValueError(f"MODEL.SEARCH.OPTIONS: {error}") from error
    for path in _attended(backbone):
        if path in space.blocks:
            search.mask_behind(backbone.get_submodule(path), Channels(space.blocks[path]))
    model.search = search
    model.register_forward_pre_hook(_draw)
    model.register_forward_hook(_add_cost)


def cost_of(model: Any, space: Space, cfg: Any, device: torch.device) -> Cost:
    """What networks of a space cost: the backbone, with attention there and at the head.

    Args:
        model: a meta-architecture with the widest backbone, on ``device``.
        space: the backbone's groups.
        cfg: a FastReID config; INPUT.SIZE_TEST is the size that counts.
        device: where to try it out.
    """
    attention = config.asked_attention(cfg)
    extra: Dict[str, List[float]] = {}
    constant, apart = 0.0, []
    backbone, images = model.backbone, torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST, device=device)
    for path, (module, shape) in _attention_inputs(backbone, images).items():
        apart.append(f"{path}.attention")
        group = space.blocks.get(path)
        if group is None:
            constant += counted(module, torch.zeros(shape, device=device))
            continue
        assert attention is not None
        costs = []
        for width in space.groups[group]:
            try:
                one = build_attention(attention.name, width, **attention.settings).to(device)
            except ValueError as error:
                raise ValueError(
                    f"MODEL.ATTENTION ({attention.name}) does not fit {width} channels, a width "
                    f"that MODEL.SEARCH offers for '{group}': {error}"
                ) from error
            costs.append(counted(one, torch.zeros(1, width, *shape[2:], device=device)))
        before = extra.get(group, [0.0] * len(costs))
        extra[group] = [old + new for old, new in zip(before, costs)]
    at_head = getattr(getattr(model, "heads", None), "attention", None)
    if at_head is not None:
        with evaluated(backbone):
            constant += counted(at_head, backbone(images))
    return Cost(backbone, space, images, extra, constant, apart)


@contextlib.contextmanager
def on_device(module: nn.Module, name: str) -> Iterator[torch.device]:
    """Puts a module where it is going to run, and back: syncBN knows GPUs only."""
    home = next(module.parameters()).device
    device = torch.device(name)
    module.to(device)
    try:
        yield device
    finally:
        module.to(home)


def _attended(backbone: nn.Module) -> List[str]:
    """The paths of the modules with attention behind them."""
    kinds = tuple(ATTENTIONS.values())
    return [
        path
        for path, module in backbone.named_modules()
        if isinstance(getattr(module, "attention", None), kinds)
    ]


def _attention_inputs(
    backbone: nn.Module, images: Tensor
) -> Dict[str, Tuple[nn.Module, Tuple[int, ...]]]:
    """The attention behind each path, and the shape of the map that it reads."""
    found: Dict[str, Tuple[nn.Module, Tuple[int, ...]]] = {}
    paths = _attended(backbone)
    if not paths:
        return found
    hooks = []
    for path in paths:
        module: Any = backbone.get_submodule(path).attention

        def note(module: nn.Module, args: Any, path: str = path) -> None:
            found[path] = (module, tuple(args[0].shape))

        hooks.append(module.register_forward_pre_hook(note))
    with evaluated(backbone):
        backbone(images)
    for hook in hooks:
        hook.remove()
    return found


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
