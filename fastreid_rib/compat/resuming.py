"""Runs that resume from a checkpoint (``--resume``): what FastReID forgets or gets wrong."""

import importlib
import logging
import os
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional

from fastreid_rib.base.patching import replace, wrap


def frozen_steps(module: ModuleType) -> None:
    """SOLVER.FREEZE_ITERS counts the steps of the training, not those of the process.

    The optimizer counted in a closure that began at zero again: a resumed run froze
    MODEL.FREEZE_LAYERS once more, in silence.

    Args:
        module: ``fastreid.engine.hooks``.
    """
    build = importlib.import_module("fastreid.solver.build")

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def generate(optimizer: Any, *, freeze_iters: int = 0) -> Any:
            name = stock(optimizer, freeze_iters=freeze_iters).__name__
            return type(name, (optimizer,), {"step": _step(optimizer, freeze_iters), "taken": 0})

        return generate

    def before_train(stock: Callable[..., None], self: Any) -> None:
        stock(self)
        optimizer: Any = getattr(self.trainer, "optimizer", None)
        if hasattr(optimizer, "taken"):
            optimizer.taken = self.trainer.start_iter

    replace(build, "_generate_optimizer_class_with_freeze_layer", make, key="frozen_steps")
    wrap(module.LayerFreeze, "before_train", before_train)


def _step(optimizer: Any, freeze_iters: int) -> Callable[..., Any]:
    def step(self: Any, closure: Any = None) -> Any:
        if self.taken >= freeze_iters:
            return optimizer.step(self, closure)
        self.taken += 1
        frozen = [group for group in self.param_groups if group["freeze_status"] == "freeze"]
        hidden = [(p, p.grad) for group in frozen for p in group["params"]]
        for parameter, _ in hidden:
            parameter.grad = None  # optimizers ignore these
        try:
            return optimizer.step(self, closure)
        finally:
            for parameter, gradient in hidden:
                parameter.grad = gradient

    return step


def frozen_after_evaluation(module: ModuleType) -> None:
    """Frozen layers stay in evaluation mode when the model has been evaluated in between.

    An evaluation puts the whole model back into training mode. The batch norm of frozen layers then
    learnt further; in a run that was resumed after it they did not.

    Args:
        module: ``fastreid.engine.hooks``.
    """

    def before_step(stock: Callable[..., None], self: Any) -> None:
        stock(self)
        if self.is_frozen:
            for name, layer in self.model.named_children():
                if name in self.freeze_layers and layer.training:
                    layer.eval()

    wrap(module.LayerFreeze, "before_step", before_step)


def best_so_far(module: ModuleType) -> None:
    """A resumed run overwrites model_best.pth with a better model only.

    Args:
        module: ``fastreid.engine.hooks``.
    """

    def before_train(stock: Callable[..., None], self: Any) -> None:
        stock(self)
        path = os.path.join(self.checkpointer.save_dir, "model_best.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            try:
                self.best_metric = self.checkpointer._load_file(path).get("metric", -1)
            except Exception as error:  # the run does not depend on it
                logging.getLogger("fastreid").warning(
                    "How good %s is cannot be read; the next one takes its place. %s", path, error
                )

    wrap(module.PeriodicCheckpointer, "before_train", before_train)


def finished_run(module: ModuleType) -> None:
    """``--resume`` of a run that is finished says so, evaluates, and ends.

    Args:
        module: ``fastreid.engine.defaults``.
    """

    def train(stock: Callable[..., Any], self: Any) -> Any:
        if self.start_epoch < self.max_epoch:
            return stock(self)
        logging.getLogger("fastreid").info(
            "This training is finished: its checkpoint is of epoch %d, counted from 0, and "
            "SOLVER.MAX_EPOCH is %d. It is evaluated once more. To train on, raise "
            "SOLVER.MAX_EPOCH; to begin anew, leave --resume out.",
            self.start_epoch - 1,
            self.max_epoch,
        )
        results = self.test(self.cfg, self.model)
        return results if module.comm.is_main_process() else None

    wrap(module.DefaultTrainer, "train", train)


def whole_state(module: ModuleType) -> None:
    """Checkpoints hold the scaler of SOLVER.AMP and the teacher of KD.EMA as well.

    A resumed run began with the first scale again, whose steps overflow and are skipped, and with a
    teacher that had learned nothing.

    Args:
        module: ``fastreid.engine.defaults``.
    """

    def init(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        parts: Dict[str, Any] = {"grad_scaler": self.grad_scaler}
        if getattr(self.checkpointer.model, "ema_enabled", False):
            parts["ema_teacher"] = self.checkpointer.model.model_ts[0]
        for name, part in parts.items():
            if part is not None:
                self.checkpointer.checkpointables.setdefault(name, part)

    wrap(module.DefaultTrainer, "__init__", init)


def another_training(module: ModuleType) -> None:
    """``--resume`` refuses the checkpoint of another network, or of another optimizer.

    FastReID drops weights of other shapes with a warning, and fails at the first step, deep inside
    the optimizer.

    Args:
        module: ``fastreid.utils.checkpoint``.
    """
    resumed: List[str] = []  # the checkpoint that is being resumed from, if any

    def load(
        stock: Callable[..., Any],
        self: Any,
        path: str,
        checkpointables: Optional[List[str]] = None,
    ) -> Any:
        wanted = self.checkpointables if checkpointables is None else checkpointables
        if not path or "optimizer" not in wanted:
            return stock(self, path, checkpointables)
        optimizer = self.checkpointables["optimizer"]
        settings = set(optimizer.param_groups[0])
        resumed.append(path)
        try:
            rest = stock(self, path, checkpointables)
        except ValueError as error:
            if "loaded state dict" not in str(error):  # torch's words about the optimizer
                raise
            raise ValueError(
                _refusal(path, f"its optimizer is of other weights ({error})")
            ) from error
        finally:
            resumed.pop()
        lost = sorted(settings - set(optimizer.param_groups[0]))
        if lost:
            kind = type(optimizer).__name__
            raise ValueError(
                _refusal(path, f"its optimizer is another one (SOLVER.OPT): {kind} needs {lost}")
            )
        for parameter, state in optimizer.state.items():
            for value in state.values():  # torch compares none of the shapes
                if getattr(value, "ndim", 0) == parameter.ndim and value.shape != parameter.shape:
                    there, here = tuple(value.shape), tuple(parameter.shape)
                    raise ValueError(
                        _refusal(path, f"its optimizer has weights of {there}, and this one {here}")
                    )
        return rest

    def load_model(stock: Callable[..., Any], self: Any, checkpoint: Any) -> Any:
        if resumed:
            absent = [name for name in self.checkpointables if name not in checkpoint]
            if absent:
                self.logger.warning(
                    "%s does not hold %s, which therefore starts anew.",
                    resumed[-1],
                    ", ".join(absent),
                )
        incompatible = stock(self, checkpoint)
        if resumed and incompatible is not None and incompatible.incorrect_shapes:
            name, there, here = incompatible.incorrect_shapes[0]
            raise ValueError(_refusal(resumed[-1], f"{name} is {there} there and {here} here"))
        return incompatible

    wrap(module.Checkpointer, "load", load)
    wrap(module.Checkpointer, "_load_model", load_model)


def _refusal(path: str, difference: str) -> str:
    return (
        f"--resume continues the training of {path}, but {difference}. Another number of "
        "identities (DATASETS.NAMES, MODEL.HEADS.NUM_CLASSES), another network or another "
        f"optimizer is a new training: leave --resume out, write MODEL.WEIGHTS {path} to start "
        "from its weights, and an OUTPUT_DIR of its own."
    )
