"""A search in FastReID's trainer: turns of weights and architecture, checkpoints, what it writes.

FastReID has one optimizer, over flat parameters, and steps it after every backward pass. The logits
of the choices get an Adam of their own, which is a part of checkpoints, and each step goes to whose
turn it is; the gradients of the other are dropped.
"""

from typing import Any, Callable, Dict, List, Optional

import torch
from torch import nn

from fastreid_rib.base.patching import own_class, wrap
from fastreid_rib.search import WidthSearch


def extend_optimizer(build: Any) -> None:
    """Lets the weights' optimizer leave the logits alone, and steps to them that are theirs."""

    def get_default_optimizer_params(
        stock: Callable[..., List[Dict[str, Any]]], model: nn.Module, *args: Any, **kwargs: Any
    ) -> List[Dict[str, Any]]:
        groups = stock(model, *args, **kwargs)
        search = _search(model)
        logits = set() if search is None else set(search.parameters())
        return [group for group in groups if logits.isdisjoint(group["params"])]

    def build_optimizer(
        stock: Callable[..., Any], cfg: Any, model: Any, *args: Any, **kw: Any
    ) -> Any:
        built = stock(cfg, model, *args, **kw)
        search = _search(model)
        if search is not None:
            optimizer = built[0]
            optimizer.logits = torch.optim.Adam(search.parameters(), lr=search.settings.lr)
            optimizer.search = search
            wrap(own_class(optimizer), "step", _step_in_turn)
            wrap(own_class(optimizer), "zero_grad", _zero_both)
        return built

    wrap(build, "get_default_optimizer_params", get_default_optimizer_params)
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

            hooks.insert(0, SearchResults(self.cfg))  # before those who write to the storage
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
            scale_turns(self.grad_scaler)

    wrap(train_loop.AMPTrainer, "__init__", init)


def scale_turns(scaler: Any) -> None:
    """Makes ``scaler.step(optimizer)`` of a search's optimizer the step of whose turn it is."""
    wrap(own_class(scaler), "step", _scaled_step_in_turn)


def _search(model: Any) -> Optional[WidthSearch]:
    found = getattr(getattr(model, "module", model), "search", None)
    return found if isinstance(found, WidthSearch) else None


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
