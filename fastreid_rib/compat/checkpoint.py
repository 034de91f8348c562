"""Checkpoints, and runs that resume from them (``--resume``): what FastReID forgets or gets wrong.

Checkpoints are written whole or not at all, and read without running code.
"""

import errno
import functools
import inspect
import logging
import os
import re
import sys
from types import ModuleType
from typing import Any, Dict, List

from fastreid_rib.base.patching import overlay, own_class, wrap
from fastreid_rib.base.safe_reads import read_checkpoint, what_to_load
from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.compat.repairs import Stock, repair


@repair(
    "fastreid.utils.checkpoint",
    defect="loading a checkpoint runs whatever code somebody put into it (torch < 2.6) or refuses "
    "NumPy numbers as well; a truncated, foreign or missing one is a traceback from inside torch",
)
def checkpoint_reading(module: ModuleType) -> None:
    """Only tensors, NumPy's numbers and plain values load; a file that names more is refused.

    The error names the file, what is wrong, and the newest whole checkpoint beside it.
    """

    def load_file(stock: Stock, self: Any, f: str) -> Any:
        if os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
            return read_checkpoint(f, functools.partial(stock, self))  # torch's way to trust all
        return read_checkpoint(f)

    def load(stock: Stock, self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if path and "://" not in path and not os.path.isfile(path):
            told = f"There is no such checkpoint. {what_to_load(path)}"
            raise FileNotFoundError(errno.ENOENT, told, path)
        return stock(self, path, *args, **kwargs)

    wrap(module.Checkpointer, "_load_file", load_file)
    wrap(module.Checkpointer, "load", load)


@repair(
    "fastreid.utils.checkpoint",
    defect="a process that dies while it writes a checkpoint leaves half a file, over a good one "
    "for model_best.pth",
)
def checkpoint_write(module: ModuleType) -> None:
    """Written beside it, put on the disk, then renamed; an error says that the disk is full.

    In torch 1.13 a full disk aborted the process; later ones report it as "unexpected pos".
    """
    stock_open = module.PathManager.open

    def open_whole(path: str, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode and "://" not in path:
            return written_whole(path, mode)
        return stock_open(path, mode, *args, **kwargs)

    overlay(module, "PathManager", open=open_whole)


@repair(
    "fastreid.engine.hooks",
    defect="a resumed run freezes MODEL.FREEZE_LAYERS for SOLVER.FREEZE_ITERS once more, in "
    "silence, and an evaluation meanwhile lets the batch norm of frozen layers learn",
    essential=True,
)
def frozen_layers(module: ModuleType) -> None:
    """The steps of the training count, and frozen layers stay in evaluation mode.

    The optimizer counts the steps of the process, and an evaluation puts the whole model back into
    training mode.
    """

    def before_train(stock: Stock, self: Any) -> None:
        stock(self)
        kind = type(self.trainer.optimizer)
        if "WithFreezeLayer" in kind.__name__:  # its step counts in a closure
            step = inspect.unwrap(kind.step)
            kept = dict(zip(step.__code__.co_freevars, step.__closure__ or ()))
            kept["cnt"].cell_contents = self.trainer.start_iter

    def before_step(stock: Stock, self: Any) -> None:
        stock(self)
        if self.is_frozen:
            for name, layer in self.model.named_children():
                if name in self.freeze_layers and layer.training:
                    layer.eval()

    wrap(module.LayerFreeze, "before_train", before_train)
    wrap(module.LayerFreeze, "before_step", before_step)


@repair(
    "fastreid.engine.hooks:PeriodicCheckpointer.before_train",
    defect="a resumed run overwrites model_best.pth with a worse model",
    essential=True,
)
def best_model(stock: Stock, self: Any) -> None:
    """Its metric is read when the run resumes."""
    stock(self)
    path = os.path.join(self.checkpointer.save_dir, "model_best.pth")
    if self.trainer.start_iter > 0 and os.path.isfile(path):
        try:
            self.best_metric = self.checkpointer._load_file(path).get("metric", -1)
        except Exception as error:  # the run does not depend on it
            logging.getLogger("fastreid").warning(
                "How good %s is cannot be read; the next one takes its place. %s", path, error
            )


@repair(
    "fastreid.engine.defaults:default_argument_parser",
    defect="a path after --resume is taken for a key of the config: an AssertionError",
)
def resume_path(stock: Stock, *args: Any, **kwargs: Any) -> Any:
    """The error says OUTPUT_DIR, where --resume looks, and MODEL.WEIGHTS."""
    parser = stock(*args, **kwargs)

    def parse(stock: Stock, self: Any, args: Any = None, namespace: Any = None) -> Any:
        given: List[str] = []
        for part in sys.argv[1:] if args is None else args:
            given += part.split("=", 1) if part.startswith("--resume=") else [part]
        parsed, rest = stock(self, given, namespace)
        first = (getattr(parsed, "opts", None) or ["KEY"])[0]
        if parsed.resume and not re.fullmatch(r"[A-Z0-9_.]+", first):
            folder = first if os.path.isdir(first) else os.path.dirname(first) or "."
            parser.error(
                f"--resume takes no path, got {first}: it resumes from the last checkpoint in "
                f"OUTPUT_DIR. Write --resume OUTPUT_DIR {folder}. To start a new training from the "
                "weights of a file, leave --resume out and write MODEL.WEIGHTS FILE"
            )
        return parsed, rest

    wrap(own_class(parser), "parse_known_args", parse)
    return parser


@repair(
    "fastreid.engine.defaults:DefaultTrainer.train",
    defect="--resume of a run that is finished ends in an AttributeError",
)
def finished_run(stock: Stock, self: Any) -> Any:
    """A line says so; the model is evaluated once more, the results are returned."""
    from fastreid.utils import comm

    if self.start_epoch < self.max_epoch:
        return stock(self)
    logging.getLogger("fastreid").info(
        "This training is finished: its checkpoint is of epoch %d, counted from 0, and "
        "SOLVER.MAX_EPOCH is %d. It is evaluated once more. To train on, raise SOLVER.MAX_EPOCH; "
        "to begin anew, leave --resume out.",
        self.start_epoch - 1,
        self.max_epoch,
    )
    results = self.test(self.cfg, self.model)
    return results if comm.is_main_process() else None


@repair(
    "fastreid.engine.defaults:DefaultTrainer.__init__",
    defect="checkpoints hold neither the scaler of SOLVER.AMP nor the teacher of KD.EMA, which "
    "both begin anew in a resumed run",
    essential=True,
)
def whole_state(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> None:
    """They are saved and loaded; a checkpoint without them is a warning."""
    stock(self, *args, **kwargs)
    parts: Dict[str, Any] = {"grad_scaler": self.grad_scaler}
    if getattr(self.checkpointer.model, "ema_enabled", False):
        parts["ema_teacher"] = self.checkpointer.model.model_ts[0]
    for name, part in parts.items():
        if part is not None:
            self.checkpointer.checkpointables.setdefault(name, part)


@repair(
    "fastreid.utils.checkpoint",
    defect="--resume with other identities, another network or optimizer fails at the first step, "
    "deep inside the optimizer",
)
def another_training(module: ModuleType) -> None:
    """ValueError that says what differs, and to write MODEL.WEIGHTS."""

    def load(stock: Stock, self: Any, path: str, checkpointables: Any = None) -> Any:
        wanted = self.checkpointables if checkpointables is None else checkpointables
        if not path or "optimizer" not in wanted:
            return stock(self, path, checkpointables)
        optimizer = self.checkpointables["optimizer"]
        settings = set(optimizer.param_groups[0])
        self.resumed_from = path
        try:
            rest = stock(self, path, checkpointables)
        except ValueError as error:
            if "loaded state dict" not in str(error):  # torch's words about the optimizer
                raise
            raise _refusal(path, f"its optimizer is of other weights ({error})") from error
        finally:
            del self.resumed_from
        lost = sorted(settings - set(optimizer.param_groups[0]))
        if lost:
            other = f"another one (SOLVER.OPT): {type(optimizer).__name__} needs {lost}"
            raise _refusal(path, f"its optimizer is {other}")
        for parameter, state in optimizer.state.items():
            for value in state.values():  # torch compares none of the shapes
                if getattr(value, "ndim", 0) == parameter.ndim and value.shape != parameter.shape:
                    sizes = f"{tuple(value.shape)}, and this one {tuple(parameter.shape)}"
                    raise _refusal(path, f"its optimizer has weights of {sizes}")
        return rest

    def load_model(stock: Stock, self: Any, checkpoint: Any) -> Any:
        path = getattr(self, "resumed_from", None)
        absent = [name for name in self.checkpointables if name not in checkpoint]
        if path and absent:
            names = ", ".join(absent)
            self.logger.warning("%s does not hold %s, which therefore starts anew.", path, names)
        incompatible = stock(self, checkpoint)
        if path and incompatible is not None and incompatible.incorrect_shapes:
            name, there, here = incompatible.incorrect_shapes[0]
            raise _refusal(path, f"{name} is {there} there and {here} here")
        return incompatible

    wrap(module.Checkpointer, "load", load)
    wrap(module.Checkpointer, "_load_model", load_model)


def _refusal(path: str, difference: str) -> ValueError:
    return ValueError(
        f"--resume continues the training of {path}, but {difference}. Another number of "
        "identities (DATASETS.NAMES, MODEL.HEADS.NUM_CLASSES), another network or another "
        f"optimizer is a new training: leave --resume out, write MODEL.WEIGHTS {path} to start "
        "from its weights, and an OUTPUT_DIR of its own."
    )
