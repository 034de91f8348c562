"""Training and evaluation without CUDA: loaders, processes, DDP, re-ranking.

Whether CUDA is there is asked at each use, never while a module is imported: the question starts
the driver, and a script may still set CUDA_VISIBLE_DEVICES after its imports.
"""

import importlib
from types import ModuleType
from typing import Any, Callable, Dict, Tuple

from fastreid_rib.base.patching import replace, wrap


def no_cuda() -> bool:
    """Whether this process sees no GPU."""
    import torch

    return not torch.cuda.is_available()


def cpu_loader(module: ModuleType) -> None:
    """``DataLoaderX`` leaves batches on the CPU; the background prefetch stays.

    Args:
        module: ``fastreid.data.data_utils``.
    """
    from torch.utils.data import DataLoader

    def init(stock: Callable[..., None], self: Any, local_rank: int, **kwargs: Any) -> None:
        if not no_cuda():
            stock(self, local_rank, **kwargs)
            return
        DataLoader.__init__(self, **dict(kwargs, pin_memory=False))
        keep_on_cpu(self)

    def preload(stock: Callable[..., None], self: Any) -> None:
        if self.stream is None:
            self.batch = next(self.iter, None)
        else:
            stock(self)

    def following(stock: Callable[..., Any], self: Any) -> Any:
        if self.stream is not None:
            return stock(self)
        batch = self.batch
        if batch is None:
            raise StopIteration
        self.preload()
        return batch

    wrap(module.DataLoaderX, "__init__", init)
    wrap(module.DataLoaderX, "preload", preload)
    wrap(module.DataLoaderX, "__next__", following)


def keep_on_cpu(loader: Any) -> None:
    """Makes a ``DataLoaderX`` hand out its batches on the CPU."""
    loader.stream = None
    # The background thread calls torch.cuda.set_device with it: documented as a no-op below zero.
    loader.local_rank = -1
    loader.pin_memory = False


def cpu_model_loader(module: ModuleType) -> None:
    """A config that says ``MODEL.DEVICE cpu`` gets CPU batches on a machine with a GPU as well.

    Args:
        module: ``fastreid.data.build``.
    """

    def build(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        built = stock(*args, **kwargs)
        cfg = args[0] if args else kwargs.get("cfg")
        if str(getattr(getattr(cfg, "MODEL", None), "DEVICE", "")).startswith("cpu"):
            keep_on_cpu(built[0] if isinstance(built, tuple) else built)
        return built

    wrap(module, "build_reid_train_loader", build)
    wrap(module, "build_reid_test_loader", build)


def gloo_processes(module: ModuleType) -> None:
    """``launch`` starts its processes over gloo where there is no GPU.

    Args:
        module: ``fastreid.engine.launch``.
    """
    replace(module, "_distributed_worker", _WorkerChoice)


class _WorkerChoice:
    """What ``launch`` hands to ``mp.spawn``: pickled by the name of the function it stands for."""

    def __init__(self, stock: Callable[..., None]) -> None:
        self.stock = stock

    def __call__(self, *args: Any) -> None:
        (gloo_worker if no_cuda() else self.stock)(*args)

    def __reduce__(self) -> Tuple[Any, ...]:
        return _worker_choice, ()


def _worker_choice() -> Any:
    # Runs in the spawned process, which may have come here without the import hook.
    launch = importlib.import_module("fastreid.engine.launch")
    gloo_processes(launch)
    return launch._distributed_worker


def gloo_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    processes_per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: Tuple[Any, ...],
) -> None:
    """One CPU process of ``launch``: joins a gloo group, then calls ``main_func(*args)``.

    Args:
        local_rank: number of the process on this machine.
        main_func: what to run.
        world_size: processes on all machines together.
        processes_per_machine: FastReID's ``--num-gpus``.
        machine_rank: number of this machine.
        dist_url: where the processes meet.
        args: arguments of `main_func`.
    """
    import torch.distributed as dist
    from fastreid.utils import comm

    dist.init_process_group(
        backend="gloo",
        init_method=dist_url,
        world_size=world_size,
        rank=machine_rank * processes_per_machine + local_rank,
    )
    for machine in range(world_size // processes_per_machine):
        first = machine * processes_per_machine
        group = dist.new_group(list(range(first, first + processes_per_machine)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    del group
    comm.synchronize()
    main_func(*args)
    # The groups' threads may hold tensors of the last collective. One that lets go of them while
    # the interpreter shuts down ends the process with SIGABRT, after all its work.
    comm._LOCAL_PROCESS_GROUP = None
    if dist.is_initialized():
        dist.destroy_process_group()


def ddp_on_cpu(module: ModuleType) -> None:
    """``DistributedDataParallel`` as FastReID calls it takes CPU models.

    Args:
        module: ``fastreid.engine.defaults``.
    """

    def make(stock: Any) -> Any:
        class DistributedDataParallel(stock):
            def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
                if all(p.device.type == "cpu" for p in module.parameters()):
                    kwargs["device_ids"] = None
                super().__init__(module, *args, **kwargs)

        return DistributedDataParallel

    # Not `replace`: torch's class stays as it is for everybody else.
    stock = module.DistributedDataParallel
    if not hasattr(stock, "__stock__"):
        repaired = make(stock)
        repaired.__stock__ = stock
        vars(module)["DistributedDataParallel"] = repaired


def search_on_cpu(module: ModuleType) -> None:
    """Re-ranking searches on the CPU where there is no GPU, or where faiss was built without one.

    Args:
        module: ``fastreid.utils.compute_dist``.
    """
    faiss_for_cpu = not hasattr(module.faiss, "StandardGpuResources")

    def distance(stock: Callable[..., Any], features: Any, *args: Any, **kwargs: Any) -> Any:
        names = ("k1", "k2", "search_option", "fp16")
        given: Dict[str, Any] = dict(zip(names, args), **kwargs)
        if no_cuda() or faiss_for_cpu:
            given["search_option"] = 3  # FastReID's own number for it
        return stock(features, **given)

    wrap(module, "compute_jaccard_distance", distance)
