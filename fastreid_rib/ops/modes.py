"""What mode torch is in: autocast, which the products of the loss leave, tracing, backward."""

import contextlib
import functools
from typing import Any, Callable, ContextManager, List, TypeVar, cast

import torch

_F = TypeVar("_F", bound=Callable[..., Any])
_CAN_COMPILE = hasattr(getattr(torch, "compiler", None), "is_compiling")  # torch >= 2.3


def uncompiled(function: _F) -> _F:
    """Decorator: ``torch.compile`` calls the function as it is, between what it compiles."""
    disabled: List[_F] = []  # made while something compiles, since making it loads the compiler

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (_CAN_COMPILE and torch.compiler.is_compiling()):
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return cast(_F, run)


class Repeats:
    """Tells the first run of a step from those that activation checkpointing repeats.

    It repeats them in the backward pass. One kind repeats a step that had gradients; the other
    (reentrant) one that had none, so that the repetition is the first that has.
    """

    def __init__(self) -> None:
        self._without_gradients = 0

    def is_first_run(self) -> bool:
        """Whether this is a step's first run with gradients. Ask once in each run."""
        if not torch.is_grad_enabled():
            self._without_gradients += 1
            return False
        if not _in_backward():
            self._without_gradients = 0
            return True
        first = self._without_gradients > 0
        self._without_gradients -= first
        return first


def _in_backward() -> bool:
    if hasattr(torch._C, "_current_graph_task_id"):  # torch >= 2.1; the other way takes longer
        return torch._C._current_graph_task_id() != -1
    try:
        torch.autograd.Variable._execution_engine.queue_callback(lambda: None)
    except RuntimeError:  # "can only be installed during backward pass"
        return False
    return True


def full_precision(device: torch.device) -> ContextManager[None]:
    """Context in which matrix products keep the dtype of their operands under autocast.

    At beta = 30 the logits differ by up to 120; bfloat16 would round them by whole nats.

    Args:
        device: device of the operands.
    """
    # Asked first: entering the context costs more than the row kernel of a small batch.
    if device.type in ("cpu", "cuda") and _autocast_is_on(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _autocast_is_on(kind: str) -> bool:
    if hasattr(torch, "get_autocast_dtype"):  # torch >= 2.4
        return torch.is_autocast_enabled(kind)
    return torch.is_autocast_enabled() if kind == "cuda" else torch.is_autocast_cpu_enabled()
