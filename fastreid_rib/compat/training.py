"""Training runs: the optimizer under torch 2, what happens at the end and after an error."""

import atexit
import contextlib
import math
import os
import queue
import sys
import time
import weakref
from types import ModuleType
from typing import Any, Dict, List

from fastreid_rib.base.patching import overlay, own_class, replace, wrap
from fastreid_rib.compat.repairs import RepairError, Stock, repair


@repair(
    "fastreid.solver.build:build_optimizer",
    defect="optimizer.zero_grad() of torch 2 drops the flat gradient buffer: training learns "
    "nothing; tools/plain_train_net.py takes the pair that comes for the optimizer",
    essential=True,
)
def zero_grad(stock: Stock, cfg: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """`zero_grad` fills the flat buffer with zeros; an optimizer comes that unpacks into the pair.

    The model's gradients are views of one flat buffer per parameter group, the only gradient the
    optimizer sees. Once that is None nothing ever puts it back: every step is skipped, in silence,
    while the views grow without end. An explicit ``set_to_none=True`` would do the same, so it is
    overruled as well. Optimizers over ordinary parameters keep torch's behaviour.
    """
    from fastreid.utils.params import ContiguousParams

    built = stock(cfg, model, *args, **kwargs)
    try:
        optimizer, params = built
        flat = {ContiguousParams: True, list: False}[type(params)]
    except (TypeError, ValueError, KeyError):
        expected = "build_optimizer to return an optimizer and ContiguousParams"
        raise RepairError("zero-grad", expected, repr(built)) from None
    kind = own_class(optimizer)
    if flat:
        wrap(kind, "zero_grad", _fill_with_zeros)
    kind.__iter__ = lambda self: iter((self, params))
    kind.__getitem__ = lambda self, index: (self, params)[index]
    return optimizer


def _fill_with_zeros(stock: Stock, self: Any, set_to_none: bool = False) -> None:
    stock(self, set_to_none=False)


@repair(
    "fastreid.solver.optim.swa:SWA.zero_grad",
    defect="zero_grad() of FastReID's SWA wrapper, which is torch's own, drops it too",
    where="torch >= 2",
    essential=True,
)
def zero_grad_swa(stock: Stock, self: Any, set_to_none: bool = True) -> None:
    """It leaves `zero_grad` to the optimizer it wraps."""
    self.optimizer.zero_grad(set_to_none=set_to_none)


@repair(
    "fastreid.engine.defaults",
    defect="the SWA hook assigns trainer.optimizer, which DefaultTrainer does not let it",
)
def swa_hook(module: ModuleType) -> None:
    """It may."""

    trainer = module.DefaultTrainer
    trainer.optimizer = trainer.optimizer.setter(
        lambda self, optimizer: setattr(self._trainer, "optimizer", optimizer)
    )


@repair(
    "fastreid.solver.build:build_lr_scheduler",
    defect="a training set smaller than one batch ends in a division by zero, as does "
    "CosineAnnealingLR after a warm-up as long as the training",
)
def empty_schedule(stock: Stock, cfg: Any, optimizer: Any, iters_per_epoch: int) -> Any:
    """ValueError that names SOLVER.IMS_PER_BATCH; the last step goes to ETA_MIN_LR."""
    if iters_per_epoch < 1:
        raise ValueError(
            f"An epoch has no iteration: the training set holds fewer images than one batch. "
            f"Expected SOLVER.IMS_PER_BATCH to be at most the number of training images, got "
            f"{cfg.SOLVER.IMS_PER_BATCH}. Write a smaller SOLVER.IMS_PER_BATCH, or check "
            f"DATASETS.NAMES {cfg.DATASETS.NAMES}."
        )
    schedulers = stock(cfg, optimizer, iters_per_epoch)
    if getattr(schedulers["lr_sched"], "T_max", 1) < 1:  # the epochs that the warm-up leaves
        schedulers["lr_sched"].T_max = 1
    return schedulers


@repair(
    "fastreid.engine.hooks:EvalHook.after_train",
    defect="a run that fails in its last epoch still evaluates: processes wait for each other",
)
def failed_run(stock: Stock, self: Any) -> None:
    """After an error nothing is evaluated.

    The trainer calls ``after_train`` on the way out of an error as well.
    """
    if sys.exc_info()[0] is None:
        stock(self)


@repair(
    "fastreid.engine.hooks:EvalHook.__init__",
    defect="TEST.EVAL_PERIOD 0 trains to the end and then divides by zero; -1 finds no results",
)
def eval_period(stock: Stock, self: Any, eval_period: int, eval_function: Any) -> None:
    """Zero and less evaluate after the last epoch alone, which is what FastReID means to do."""
    stock(self, eval_period if eval_period > 0 else sys.maxsize, eval_function)


@repair(
    "fastreid.utils.events:CommonMetricPrinter.write",
    defect="a run of fewer than three steps ends in a division by zero when its last one is logged",
)
def short_run(stock: Stock, self: Any) -> None:
    """It is logged without a time.

    FastReID writes after the last step and after the epoch, and as long as no step was timed
    estimates the time of the steps between the two.
    """
    from fastreid.utils.events import get_event_storage

    if self._last_write and self._last_write[0] == get_event_storage().iter:
        self._last_write = None
    stock(self)


@repair(
    "fastreid.engine.train_loop",
    defect="the error for a loss that is NaN shows averages over the processes, not whose it was",
)
def nan_term(module: ModuleType) -> None:
    """The terms and their ranks come first, from the numbers that FastReID gathers anyway.

    It gathers every term of every rank on the first one, once a step, so nothing waits for a GPU
    that did not wait before.
    """
    last: List[Dict[str, float]] = []  # of the step that is being written
    comm = getattr(module.comm, "__stock__", module.comm)

    def gather(data: Any, *args: Any, **kwargs: Any) -> Any:
        gathered = comm.gather(data, *args, **kwargs)
        last[:] = gathered if isinstance(gathered, list) else []
        return gathered

    def write(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> None:
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
        finally:
            last.clear()

    overlay(module, "comm", gather=gather)
    wrap(module.SimpleTrainer, "_write_metrics", write)


@repair(
    "fastreid.data.data_utils",
    defect="an error while a batch is prepared (an unreadable image) stops training for ever",
)
def loader_errors(module: ModuleType) -> None:
    """The error is raised in the training loop.

    It ended the background thread only; the training waited for a batch that never came.
    """

    def run(stock: Stock, self: Any) -> None:
        try:
            stock(self)
        except Exception as error:  # whatever it is, the main thread is to raise it
            self.error = error
            self.queue.put(None)

    def following(stock: Stock, self: Any) -> Any:
        try:
            return stock(self)
        except StopIteration as end:
            raise getattr(self, "error", end) from None

    wrap(module.BackgroundGenerator, "run", run)
    wrap(module.BackgroundGenerator, "next", following)


_started: Any = weakref.WeakSet()


@repair(
    "fastreid.data.data_utils:BackgroundGenerator.start",
    defect="a background thread that is preparing a batch when Python ends aborts the process",
)
def loader_exit(stock: Stock, self: Any) -> None:
    """The threads are ended first.

    Training never ends them, and `launch` takes a process that was aborted for a failed one.
    """
    if not _started:
        atexit.register(_stop)
    _started.add(self)
    stock(self)


def _stop() -> None:
    patience = time.monotonic() + 5.0  # a worker process may be stuck for good
    for thread in list(_started):
        thread.exit_event.set()
        while thread.is_alive() and time.monotonic() < patience:
            with contextlib.suppress(queue.Empty):
                thread.queue.get_nowait()  # it may be waiting for room in there
            thread.join(0.02)


@repair(
    "fastreid.modeling.backbones.regnet.regnet",
    "fastreid.modeling.backbones.regnet.effnet",
    defect="RegNet and EfficientNet look for their settings below the current folder",
    where="outside a checkout",
)
def regnet_configs(module: ModuleType) -> None:
    """Found beside the code."""

    name = f"{module.__name__.rpartition('.')[2]}_cfg"
    cfg = vars(module)[name]
    stated = "fastreid/modeling/backbones/regnet/"  # right where a checkout is the folder

    def merge_from_file(path: str) -> None:
        if path.startswith(stated) and not os.path.exists(path):
            path = os.path.join(os.path.dirname(module.__file__ or ""), path[len(stated) :])
        cfg.merge_from_file(path)

    overlay(module, name, merge_from_file=merge_from_file)


@repair(
    "fastreid.modeling.heads.embedding_head:EmbeddingHead.__init__",
    defect="a name in MODEL.HEADS that FastReID does not have is an assertion without its key",
)
def head_layers(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> None:
    """ValueError that names MODEL.HEADS.POOL_LAYER or MODEL.HEADS.CLS_LAYER, and its choices."""
    try:
        stock(self, *args, **kwargs)
    except AssertionError as error:
        key = "POOL_LAYER" if "pool types" in str(error) else "CLS_LAYER"
        raise ValueError(f"MODEL.HEADS.{key} is not right. {error}") from error


@repair(
    "fastreid.modeling.meta_arch.distiller",
    defect="a distiller's teacher whose weights do not fit is random where they do not, one of "
    "other identities is a shape error at the first step, and one of another device does not work",
    essential=True,
)
def teachers(module: ModuleType) -> None:
    """Teachers are where the student is; what does not fit is a ValueError that names the file.

    The config.yaml of a run has MODEL.HEADS.NUM_CLASSES 0 unless it was written.
    """
    building: List[Any] = []  # the config of the distiller that is being built

    def init(stock: Stock, self: Any, cfg: Any) -> None:
        files, weights = list(cfg.KD.MODEL_CONFIG), list(cfg.KD.MODEL_WEIGHTS)
        for key, names in (("MODEL_CONFIG", files), ("MODEL_WEIGHTS", weights)):
            gone = [name for name in names if "://" not in name and not os.path.isfile(name)]
            if gone:
                raise FileNotFoundError(
                    f"KD.{key} {gone[0]} is not found. Write the path of a teacher's file, from "
                    f"this folder ({os.getcwd()}) or absolute."
                )
        building.append(cfg)
        try:
            stock(self, cfg)
        finally:
            building.pop()
        own = len(self.heads.weight)
        teachers = self.model_ts[len(self.model_ts) - len(files) :]
        for file, path, teacher in zip(files, weights, teachers):
            _refuse_other_weights(file, path, module.Checkpointer(teacher))
            if len(teacher.heads.weight) != own:
                raise ValueError(
                    f"The teacher of KD.MODEL_CONFIG {file} has MODEL.HEADS.NUM_CLASSES "
                    f"{len(teacher.heads.weight)}, and the student {own}: they must be trained on "
                    "the same identities. Train a teacher on those of DATASETS.NAMES."
                )

    def build_model(stock: Stock) -> Stock:
        def build(cfg: Any) -> Any:
            cfg.MODEL.DEVICE = building[-1].MODEL.DEVICE if building else cfg.MODEL.DEVICE
            return stock(cfg)

        return build

    wrap(module.Distiller, "__init__", init)
    replace(module, "build_model", build_model, everywhere=False)


def _refuse_other_weights(file: str, weights: str, teacher: Any) -> None:
    """Loads them once more: FastReID hands out nothing of what did not fit."""
    held = teacher._load_file(teacher.path_manager.get_local_path(weights))
    incompatible = teacher._load_model(held)
    shapes = {name: (there, here) for name, there, here in incompatible.incorrect_shapes}
    parameters = {name for name, _ in teacher.model.named_parameters()}
    absent = [name for name in incompatible.missing_keys if name in parameters - set(shapes)]
    if not shapes and not absent:
        return
    remedy = "Write the config that these weights were trained with (config.yaml beside them)"
    classes = shapes.get("heads.weight")
    if classes and classes[0][1:] == classes[1][1:]:
        remedy = f"Write MODEL.HEADS.NUM_CLASSES {classes[0][0]} in {file}"
    told = [f"{name} is {there} there and {here} here" for name, (there, here) in shapes.items()]
    told += [f"{name} is not there" for name in absent]
    raise ValueError(
        f"KD.MODEL_WEIGHTS {weights} does not fit KD.MODEL_CONFIG {file}: {told[0]}"
        f"{f' (and {len(told) - 1} others)' if len(told) > 1 else ''}. A teacher would be random "
        f"where it does not. {remedy}."
    )
