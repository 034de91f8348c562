"""FastReID's flat parameters under torch 2, and the pair that ``build_optimizer`` returns."""

from types import ModuleType
from typing import Any, Callable, Iterator


def zero_grad_drops_gradients() -> bool:
    """Torch 2 sets gradients to None by default; torch 1 fills them with zeros."""
    import inspect

    import torch

    return inspect.signature(torch.optim.Optimizer.zero_grad).parameters["set_to_none"].default


def keep_flat_gradients(module: ModuleType) -> None:
    """``zero_grad`` of an optimizer over ``ContiguousParams`` fills its gradients with zeros.

    The model's gradients are views of one flat buffer per parameter group, the only gradient the
    optimizer sees. Once that is None nothing ever puts it back: every step is skipped, in silence,
    while the views grow without end. An explicit ``set_to_none=True`` would do the same, so it is
    overruled as well. Optimizers over ordinary parameters keep torch's behaviour.

    Args:
        module: ``fastreid.solver.build``.
    """
    from fastreid_rib.base.patching import wrap

    def build_optimizer(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        optimizer, params = stock(*args, **kwargs)
        if isinstance(params, module.ContiguousParams):
            optimizer.__class__ = _filling_with_zeros(type(optimizer))
        return optimizer, params

    wrap(module, "build_optimizer", build_optimizer)


def _filling_with_zeros(optimizer: Any) -> Any:
    def zero_grad(self: Any, set_to_none: bool = False) -> None:
        optimizer.zero_grad(self, set_to_none=False)

    # The name stays: torch's profiler and FastReID's log show it.
    return type(optimizer.__name__, (optimizer,), {"zero_grad": zero_grad})


def keep_flat_gradients_in_swa(module: ModuleType) -> None:
    """FastReID's SWA wrapper leaves ``zero_grad`` to the optimizer that it wraps.

    It inherits torch's own, which knows nothing of the repair above.

    Args:
        module: ``fastreid.solver.optim.swa``.
    """

    def zero_grad(self: Any, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    module.SWA.zero_grad = zero_grad


def optimizer_that_unpacks(module: ModuleType) -> None:
    """``build_optimizer`` returns an optimizer that also unpacks into the pair it used to return.

    ``tools/plain_train_net.py`` uses the result as the optimizer, ``DefaultTrainer`` unpacks it
    into optimizer and parameters; this way both are right.

    Args:
        module: ``fastreid.solver.build``.
    """
    from fastreid_rib.base.patching import wrap

    def build_optimizer(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        optimizer, params = stock(*args, **kwargs)

        def pair(self: Any) -> Iterator[Any]:
            return iter((self, params))

        def item(self: Any, index: Any) -> Any:
            return (self, params)[index]

        kind = type(optimizer)
        names = {"__iter__": pair, "__getitem__": item}
        optimizer.__class__ = type(kind.__name__, (kind,), names)
        return optimizer

    wrap(module, "build_optimizer", build_optimizer)
