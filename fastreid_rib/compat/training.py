"""Training runs: what happens after an error, and files that a run needs."""

import math
import os
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List

from fastreid_rib.base.patching import overlay, wrap


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


def evaluation_at_the_end(module: ModuleType) -> None:
    """TEST.EVAL_PERIOD 0, or a negative one, evaluates after the last epoch and at no other time.

    That is what FastReID's hook means to do; it divides by zero when everything is trained, or
    finds no results.

    Args:
        module: ``fastreid.engine.hooks``.
    """

    def init(
        stock: Callable[..., None], self: Any, eval_period: int, *args: Any, **kw: Any
    ) -> None:
        stock(self, eval_period if eval_period > 0 else sys.maxsize, *args, **kw)

    wrap(module.EvalHook, "__init__", init)


def annealing_after_warmup(module: ModuleType) -> None:
    """CosineAnnealingLR with a warm-up as long as the training ends it without an error.

    The epochs that the warm-up leaves are what the cosine is spread over. Where it leaves none, the
    step after the last epoch divided by their number.

    Args:
        module: ``fastreid.solver.build``.
    """

    def build(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        schedulers = stock(*args, **kwargs)
        if getattr(schedulers["lr_sched"], "T_max", 1) < 1:
            schedulers["lr_sched"].T_max = 1
        return schedulers

    wrap(module, "build_lr_scheduler", build)


def short_runs(module: ModuleType) -> None:
    """A run of fewer than three steps is logged; its printer divided by zero after the last one.

    It writes after the last step and after the epoch, and as long as no step was timed estimates
    the time of the steps between the two.

    Args:
        module: ``fastreid.utils.events``.
    """

    def write(stock: Callable[..., None], self: Any) -> None:
        if self._last_write and self._last_write[0] == module.get_event_storage().iter:
            self._last_write = None
        stock(self)

    wrap(module.CommonMetricPrinter, "write", write)


def nan_named(module: ModuleType) -> None:
    """The error for a loss that is NaN or infinite says which term it was, and on which rank.

    FastReID gathers every term of every rank on the first one anyway, once a step; here the same
    numbers are looked at, so nothing waits for a GPU that did not wait before.

    Args:
        module: ``fastreid.engine.train_loop``.
    """
    last: List[Dict[str, float]] = []
    comm = getattr(module.comm, "__stock__", module.comm)

    def gather(data: Any, *args: Any, **kwargs: Any) -> Any:
        gathered = comm.gather(data, *args, **kwargs)
        last[:] = gathered if isinstance(gathered, list) else []
        return gathered

    def write(stock: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            stock(self, *args, **kwargs)
        except FloatingPointError as error:
            found = [
                f"{name} is {value} on rank {rank}"
                for rank, terms in enumerate(last)
                for name, value in terms.items()
                if not math.isfinite(value)
            ]
            raise FloatingPointError(
                f"{'; '.join(found)}, at iteration {self.iter}. This step was not taken; the last "
                f"checkpoint is from before it (--resume, with a lower SOLVER.BASE_LR or "
                f"SOLVER.CLIP_GRADIENTS.ENABLED True). FastReID: {error}"
            ) from error

    overlay(module, "comm", gather=gather)
    wrap(module.SimpleTrainer, "_write_metrics", write)


def optimizer_setter(module: ModuleType) -> None:
    """FastReID's SWA hook can put its optimizer into `DefaultTrainer`.

    Args:
        module: ``fastreid.engine.defaults``.
    """

    def put(self: Any, optimizer: Any) -> None:
        self._trainer.optimizer = optimizer

    module.DefaultTrainer.optimizer = module.DefaultTrainer.optimizer.setter(put)


def architecture_files(module: ModuleType) -> None:
    """The settings of RegNet and EfficientNet are found beside the code that wants them.

    FastReID names them by a path that is right only in a checkout that is the current folder.

    Args:
        module: ``fastreid.modeling.backbones.regnet.regnet`` or ``.effnet``.
    """
    name = f"{module.__name__.rsplit('.', 1)[-1]}_cfg"
    cfg = vars(module)[name]
    if not isinstance(cfg, _Settings):
        vars(module)[name] = _Settings(cfg, os.path.dirname(os.path.abspath(module.__file__ or "")))


class _Settings:
    """The settings as those two modules see them: the same node, with files found at `folder`."""

    _prefix = "fastreid/modeling/backbones/regnet/"

    def __init__(self, cfg: Any, folder: str) -> None:
        self._cfg, self._folder = cfg, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cfg, name)

    def merge_from_file(self, path: str) -> None:
        if path.startswith(self._prefix) and not os.path.exists(path):
            path = os.path.join(self._folder, path[len(self._prefix) :])
        self._cfg.merge_from_file(path)


def teacher_device(module: ModuleType) -> None:
    """A distiller's teachers are built where the student is, whatever their own config says.

    Args:
        module: ``fastreid.modeling.meta_arch.distiller``.
    """
    build: Any = vars(module)["build_model"]
    devices: List[str] = []
    if hasattr(build, "__stock__"):
        return

    def build_model(cfg: Any) -> Any:
        cfg.MODEL.DEVICE = devices[-1] if devices else cfg.MODEL.DEVICE
        return build(cfg)

    def init(stock: Callable[..., None], self: Any, cfg: Any) -> None:
        devices.append(cfg.MODEL.DEVICE)
        try:
            stock(self, cfg)
        finally:
            devices.pop()

    vars(build_model)["__stock__"] = build
    vars(module)["build_model"] = build_model  # in this module alone
    wrap(module.Distiller, "__init__", init)
