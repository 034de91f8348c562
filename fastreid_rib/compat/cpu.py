"""Training and evaluation without CUDA, and on small machines.

Whether CUDA is there is asked at each use, never while a module is imported: the question starts
the driver, and a script may still set CUDA_VISIBLE_DEVICES after its imports.
"""

import importlib
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from fastreid_rib.base.patching import overlay, replace, wrap
from fastreid_rib.compat.repairs import Stock, repair


def no_cuda() -> bool:
    """Whether this process sees no GPU."""
    import torch

    return not torch.cuda.is_available()


@repair(
    "fastreid.engine.defaults:default_setup",
    "fastreid.modeling.meta_arch.build:build_model",
    defect="MODEL.DEVICE cuda, which is the default, fails deep inside torch without a GPU",
    where="no CUDA",
)
def gpu_config(stock: Stock, cfg: Any, *args: Any, **kwargs: Any) -> Any:
    """ValueError that says MODEL.DEVICE cpu."""
    refuse_missing_gpu(cfg)
    return stock(cfg, *args, **kwargs)


def refuse_missing_gpu(cfg: Any) -> None:
    """ValueError where a config is for a GPU, and there is none."""
    device = cfg.MODEL.DEVICE
    if str(device).startswith("cuda") and no_cuda():
        raise ValueError(
            f"MODEL.DEVICE is {device}, and torch finds no GPU here: write MODEL.DEVICE cpu, at "
            "the end of the command or in the config."
        )


@repair(
    "fastreid.data.data_utils",
    defect="DataLoaderX and its background thread need CUDA",
    where="no CUDA",
)
def cpu_loader(module: ModuleType) -> None:
    """Batches stay on the CPU; the background prefetch stays."""
    from torch.utils.data import DataLoader

    def init(stock: Stock, self: Any, local_rank: int, **kwargs: Any) -> None:
        if not no_cuda():
            stock(self, local_rank, **kwargs)
            return
        DataLoader.__init__(self, **dict(kwargs, pin_memory=False))
        _keep_on_cpu(self)

    def preload(stock: Stock, self: Any) -> None:
        if self.stream is None:
            self.batch = next(self.iter, None)
        else:
            stock(self)

    def following(stock: Stock, self: Any) -> Any:
        if self.stream is not None:
            return stock(self)
        if self.batch is None:
            raise StopIteration
        batch = self.batch
        self.preload()
        return batch

    wrap(module.DataLoaderX, "__init__", init)
    wrap(module.DataLoaderX, "preload", preload)
    wrap(module.DataLoaderX, "__next__", following)


def _keep_on_cpu(loader: Any) -> None:
    loader.stream = None
    # The background thread calls torch.cuda.set_device with it: documented as a no-op below zero.
    loader.local_rank = -1
    loader.pin_memory = False


@repair(
    "fastreid.data.build:build_reid_test_loader", defect="the test loader always starts 4 workers"
)
def test_workers(stock: Stock, *args: Any, **kwargs: Any) -> Any:
    """At most 4, the cores, DATALOADER.NUM_WORKERS.

    The 4 stands in a default that no config reaches.
    """
    from fastreid.data import build

    cfg: Any = args[0] if args else kwargs.get("cfg")
    if not hasattr(cfg, "DATALOADER"):
        return stock(*args, **kwargs)
    workers = min(4, os.cpu_count() or 1, cfg.DATALOADER.NUM_WORKERS)
    # FastReID's own two steps: the config's arguments, then the function itself.
    explicit = build._test_loader_from_config(*args, **kwargs)
    return stock(**{"num_workers": workers, **explicit})


@repair(  # after the one above, which hides the config from what it calls
    "fastreid.data.build:build_reid_train_loader",
    "fastreid.data.build:build_reid_test_loader",
    defect="with MODEL.DEVICE cpu on a machine with a GPU batches go to the GPU",
)
def cpu_model_loader(stock: Stock, *args: Any, **kwargs: Any) -> Any:
    """Batches stay where the model is."""
    built = stock(*args, **kwargs)
    cfg = args[0] if args else kwargs.get("cfg")
    if str(getattr(getattr(cfg, "MODEL", None), "DEVICE", "")).startswith("cpu"):
        _keep_on_cpu(built[0] if isinstance(built, tuple) else built)
    return built


@repair(
    "fastreid.engine.launch",
    defect="the processes that launch starts insist on CUDA and NCCL",
    where="no CUDA",
)
def cpu_launch(module: ModuleType) -> None:
    """The processes meet over gloo."""
    replace(module, "_distributed_worker", lambda stock: _worker)


def _worker(*args: Any) -> None:
    """One process of ``launch``; pickled by its name, which loads the repairs in that process."""
    import torch.distributed as dist
    from fastreid.utils import comm

    # The package `fastreid.engine` has a function of that name.
    launch = importlib.import_module("fastreid.engine.launch")
    stock = vars(_worker)["__stock__"]
    if not no_cuda():
        stock(*args)
        return
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: sys.maxsize, set_device=lambda rank: None
    )
    meet = dist.init_process_group
    overlay(launch, "torch", cuda=cuda)
    overlay(launch, "dist", init_process_group=lambda **how: meet(**{**how, "backend": "gloo"}))
    stock(*args)
    # The groups' threads may hold tensors of the last collective. One that lets go of them while
    # the interpreter shuts down ends the process with SIGABRT, after all its work.
    comm._LOCAL_PROCESS_GROUP = None
    if dist.is_initialized():
        dist.destroy_process_group()


@repair(
    "fastreid.engine.defaults",
    defect="DistributedDataParallel(device_ids=...) refuses CPU models",
    where="CPU models",
)
def cpu_ddp(module: ModuleType) -> None:
    """Without `device_ids` for CPU models."""

    def make(stock: Any) -> Any:
        class DistributedDataParallel(stock):
            def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
                if all(p.device.type == "cpu" for p in module.parameters()):
                    kwargs["device_ids"] = None
                super().__init__(module, *args, **kwargs)

        return DistributedDataParallel

    # Torch's class stays as it is for everybody else.
    replace(module, "DistributedDataParallel", make, everywhere=False)


@repair(
    "fastreid.layers.batch_norm:SyncBatchNorm.forward",
    defect="syncBN on the CPU fails without saying what to write",
    where="CPU",
)
def sync_bn_message(stock: Stock, self: Any, input: Any) -> Any:
    """The message says MODEL.BACKBONE.NORM BN, MODEL.HEADS.NORM BN."""
    try:
        return stock(self, input)
    except ValueError as error:
        if input.device.type != "cpu":
            raise
        raise ValueError(
            f"syncBN runs on GPUs only, and the model is on the CPU: write MODEL.BACKBONE.NORM BN "
            f"and MODEL.HEADS.NORM BN. (torch: {error})"
        ) from error
