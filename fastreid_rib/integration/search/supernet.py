"""The backbone of a search, and of what it derives; and how FastReID trains it.

A derived network is the widest one cut down after it was built, so that its pretrained weights are
used. A supernet is a model with a :class:`WidthSearch` beside its backbone, as the submodule
``search``; what calls it are hooks that are plain functions of the model, which copies keep.

FastReID has one optimizer, over flat parameters, and steps it after every backward pass. The logits
of the choices get an Adam of their own, which is a part of checkpoints, and each step goes to whose
turn it is; the gradients of the other are dropped.
"""

from typing import Any, Callable, List

import torch
from torch import nn

from fastreid_rib.base.patching import own_class, wrap
from fastreid_rib.integration import config
from fastreid_rib.integration.attention.insertion import attached
from fastreid_rib.integration.search.cost import cost_of
from fastreid_rib.integration.search.spaces import space_of
from fastreid_rib.search import Channels, WidthSearch, narrow, order
from fastreid_rib.settings.declaration import SettingError


def order_and_narrow(backbone: nn.Module, cfg: Any) -> None:
    """Sorts a pretrained backbone's channels for a search, and cuts it to MODEL.SEARCH.WIDTHS."""
    searched, pretrained = cfg.MODEL.SEARCH, cfg.MODEL.BACKBONE.PRETRAIN
    if not searched.WIDTHS and not (searched.ENABLED and pretrained):
        return
    space = space_of(backbone, cfg)
    if pretrained:
        order(backbone, space)
    if searched.WIDTHS:
        try:
            widths = space.choice(searched.WIDTHS)
        except ValueError as error:
            raise ValueError(f"MODEL.SEARCH.WIDTHS {tuple(searched.WIDTHS)}: {error}") from error
        narrow(backbone, space, widths)


def search_widths(model: Any, cfg: Any) -> None:
    """Makes a meta-architecture a supernet: its backbone gets masks, and it learns how wide to be.

    Raises:
        ValueError: no backbone, one without a space, attention after a block of a searched width,
            or a target that no network of it meets.
        ImportError: there is attention to be counted, and no fvcore.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ValueError(
            f"MODEL.SEARCH.ENABLED is True, but {type(model).__name__} has no `backbone` whose "
            "widths could be searched. Write False, or another MODEL.META_ARCHITECTURE."
        )
    space = space_of(backbone, cfg)
    maps = [Channels(group) for group in space.groups]
    searched = [layer.path for layer in space.layers if layer.outputs in maps]
    for path in attached(backbone):
        block = path.rpartition(".")[0]
        if any(layer.startswith(f"{block}.") for layer in searched):
            raise ValueError(
                f"MODEL.ATTENTION.PLACEMENT {cfg.MODEL.ATTENTION.PLACEMENT} puts attention after "
                f"{block}, whose width MODEL.SEARCH chooses. Write ('head',), or search without "
                "attention and write it into the config that the search gives."
            )
    images = torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST, device=cfg.MODEL.DEVICE)
    cost = cost_of(model, space, images)
    try:
        search = WidthSearch(backbone, cost, config.asked_search(cfg), cfg.SEED)
    except SettingError as error:
        raise ValueError(error.of_keys("MODEL.SEARCH")) from error
    except ValueError as error:
        raise ValueError(f"MODEL.SEARCH.OPTIONS: {error}") from error
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


def extend_optimizer(build: Any) -> None:
    """Lets the weights' optimizer leave the logits alone, and steps to them that are theirs."""

    def build_optimizer(
        stock: Callable[..., Any], cfg: Any, model: Any, *args: Any, **kw: Any
    ) -> Any:
        search = getattr(getattr(model, "module", model), "search", None)
        if not isinstance(search, WidthSearch):
            return stock(cfg, model, *args, **kw)
        search.requires_grad_(False)  # FastReID takes what learns
        built = stock(cfg, model, *args, **kw)
        search.requires_grad_(True)
        optimizer = built[0]
        optimizer.logits = torch.optim.Adam(search.parameters(), lr=search.settings.lr)
        optimizer.search = search
        wrap(own_class(optimizer), "step", _step_in_turn)
        wrap(own_class(optimizer), "zero_grad", _zero_both)
        return built

    wrap(build, "build_optimizer", build_optimizer)


def extend_trainer(defaults: Any) -> None:
    """Saves the logits' optimizer in checkpoints, and writes what a search has found."""

    def init(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        adam = getattr(self.optimizer, "logits", None)
        if adam is not None:
            self.checkpointer.checkpointables["search"] = adam

    def build_hooks(stock: Callable[..., List[Any]], self: Any) -> List[Any]:
        hooks = stock(self)
        if self.cfg.MODEL.SEARCH.ENABLED:
            # Not at the top: it derives from FastReID's hooks, which are being loaded.
            from fastreid_rib.integration.search.results import SearchResults

            hooks.insert(0, SearchResults())  # before those who write to the storage
        return hooks

    wrap(defaults.DefaultTrainer, "__init__", init)
    wrap(defaults.DefaultTrainer, "build_hooks", build_hooks)


def extend_amp(train_loop: Any) -> None:
    """Lets mixed precision unscale, and look for infinities in, the gradients of whose turn it is.

    The scaler knows the weights' optimizer alone. The logits would be stepped with gradients 65,536
    times too large, and ruined by one that is not finite.
    """

    def init(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        if hasattr(self.optimizer, "logits"):
            wrap(own_class(self.grad_scaler), "step", _scaled_step_in_turn)

    wrap(train_loop.AMPTrainer, "__init__", init)


def _step_in_turn(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """A step of the weights or of the logits, whose turn it is."""
    if self.search.step_is_for_weights():
        return stock(self, *args, **kwargs)
    self.logits.step()
    return None


def _zero_both(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    stock(self, *args, **kwargs)
    self.logits.zero_grad()


def _scaled_step_in_turn(
    stock: Callable[..., Any], self: Any, optimizer: Any, *args: Any, **kwargs: Any
) -> Any:
    theirs = optimizer.search.step_is_for_weights()
    return stock(self, optimizer if theirs else optimizer.logits, *args, **kwargs)
