"""Training runs: what happens after an error, and files that a run needs."""

import os
import sys
from types import ModuleType
from typing import Any, Callable

from .patching import wrap


def no_evaluation_after_failure(module: ModuleType) -> None:
    """Nothing is evaluated once training has raised.

    The trainer calls ``after_train`` on the way out of an error as well. In the last epoch that
    began an evaluation, in which one process waited for the others, and they for it.

    Args:
        module: ``fastreid.engine.hooks``.
    """

    def after_train(stock: Callable[..., None], self: Any) -> None:
        if sys.exc_info()[0] is None:
            stock(self)

    wrap(module.EvalHook, "after_train", after_train)


def architecture_files(module: ModuleType) -> None:
    """The settings of RegNet and EfficientNet are found beside the code that wants them.

    FastReID names them by a path that is right only in a checkout that is the current folder.

    Args:
        module: ``fastreid.modeling.backbones.regnet.config``.
    """
    from yacs.config import CfgNode

    here = "fastreid/modeling/backbones/regnet/"
    folder = os.path.dirname(os.path.abspath(module.__file__ or ""))

    class ArchitectureNode(CfgNode):
        def merge_from_file(self, path: str) -> None:
            if path.startswith(here) and not os.path.exists(path):
                path = os.path.join(folder, path[len(here) :])
            super().merge_from_file(path)

    # CfgNode takes every assignment for a key.
    object.__setattr__(module.cfg, "__class__", ArchitectureNode)
