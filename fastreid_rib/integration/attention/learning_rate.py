"""The key MODEL.ATTENTION.LR_FACTOR: attention learns at a rate of its own.

FastReID knows one factor for biases and one for heads. Attention is small and starts at the
identity beside layers that are trained already, so its best rate need not be theirs. Which it is
differs between modules: docs/notebook/attention.md has what ten times did to each.
"""

from typing import Any, Callable, Dict, List

from torch import nn

from fastreid_rib.base.patching import wrap

_FACTOR = "attention_lr_factor"


def mark(attention: nn.Module, factor: float) -> None:
    """Lets the parameters of a module learn at ``factor`` times what they would.

    Args:
        attention: where it is placed in the model.
        factor: > 0.
    """
    setattr(attention, _FACTOR, float(factor))  # on the module, so that a deep copy has it too


def extend_optimizer(build: Any) -> None:
    """Lets FastReID's groups of parameters follow what :func:`mark` has set.

    The factor comes on top of SOLVER.HEADS_LR_FACTOR and SOLVER.BIAS_LR_FACTOR, where they hold.
    """

    def get_default_optimizer_params(
        stock: Callable[..., List[Dict[str, Any]]], model: nn.Module, *args: Any, **kwargs: Any
    ) -> List[Dict[str, Any]]:
        groups = stock(model, *args, **kwargs)
        factors = {
            parameter: getattr(module, _FACTOR)
            for module in model.modules()
            if hasattr(module, _FACTOR)
            for parameter in module.parameters()
        }
        for group in groups:  # a group for each parameter
            (parameter,) = group["params"]
            group["lr"] *= factors.get(parameter, 1.0)
        return groups

    wrap(build, "get_default_optimizer_params", get_default_optimizer_params)
