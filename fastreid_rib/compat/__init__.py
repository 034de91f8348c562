"""FastReID on today's machines: every defect in one table, each repaired where it is present.

The import hook (`fastreid_rib.activation`) wraps the execution of each FastReID module in
`repairing`. ``FASTREID_RIB_DISABLE`` switches repairs off: ``all`` (or ``1``), or their names with
commas between them. docs/compat.md explains each.
"""

import os
import sys
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Callable, ContextManager, Iterator, List, NamedTuple, Optional, Set, Tuple

from . import cpu, evaluation, imports, optimizer


class Repair(NamedTuple):
    """One defect of FastReID and how it is mended.

    Attributes:
        name: what ``FASTREID_RIB_DISABLE`` calls it.
        row: number in the list of known defects (docs/compat.md), 0 if found later.
        defect: what goes wrong without it, in one sentence.
        modules: FastReID modules that it acts on when they are loaded.
        present: whether this process has the defect.
        around: entered while the module executes, for defects of its imports.
        after: called with the module once it has executed.
        at_run_time: `present` cannot be asked while modules are being imported (it would start
            CUDA); the repair is put in place always and asks each time it is used.
    """

    name: str
    row: int
    defect: str
    modules: Tuple[str, ...]
    present: Callable[[], bool]
    around: Optional[Callable[[], ContextManager[None]]] = None
    after: Optional[Callable[[ModuleType], None]] = None
    at_run_time: bool = False


def _always() -> bool:
    """For defects of FastReID itself, which no machine is free of."""
    return True


REPAIRS: Tuple[Repair, ...] = (
    Repair(
        "collections-mapping",
        1,
        "data/build.py and evaluation/testing.py import Mapping from collections, which Python "
        "3.10 took away",
        ("fastreid.data.build", "fastreid.evaluation.testing"),
        imports.collections_lack_mapping,
        around=imports.mapping_in_collections,
    ),
    Repair(
        "torch-six",
        2,
        "data/build.py imports torch._six, which torch 2 took away",
        ("fastreid.data.build",),
        imports.torch_lacks_six,
        around=imports.torch_six,
    ),
    Repair(
        "zero-grad",
        3,
        "optimizer.zero_grad() of torch 2 drops the flat gradient buffer: training learns nothing",
        ("fastreid.solver.build",),
        optimizer.zero_grad_drops_gradients,
        after=optimizer.keep_flat_gradients,
    ),
    Repair(
        "zero-grad-swa",
        3,
        "the same in FastReID's SWA wrapper, whose zero_grad is torch's own",
        ("fastreid.solver.optim.swa",),
        optimizer.zero_grad_drops_gradients,
        after=optimizer.keep_flat_gradients_in_swa,
    ),
    Repair(
        "cpu-loader",
        4,
        "DataLoaderX and its background thread need CUDA",
        ("fastreid.data.data_utils",),
        cpu.no_cuda,
        after=cpu.cpu_loader,
        at_run_time=True,
    ),
    Repair(
        "cpu-model-loader",
        4,
        "with MODEL.DEVICE cpu on a machine with a GPU batches go to the GPU",
        ("fastreid.data.build",),
        _always,
        after=cpu.cpu_model_loader,
    ),
    Repair(
        "cpu-launch",
        4,
        "the processes that launch starts insist on CUDA and NCCL",
        ("fastreid.engine.launch",),
        cpu.no_cuda,
        after=cpu.gloo_processes,
        at_run_time=True,
    ),
    Repair(
        "cpu-rerank",
        4,
        "re-ranking searches on the GPU only",
        ("fastreid.utils.compute_dist",),
        _always,
        after=cpu.search_on_cpu,
    ),
    Repair(
        "compile-ranking",
        5,
        "evaluation ends the process when its Cython module cannot be compiled, which is tried "
        "with the wrong Python",
        ("fastreid.evaluation.rank_cylib",),
        _always,
        after=evaluation.compile_ranking,
    ),
    Repair(
        "cuhk03-bool",
        6,
        "eval_cuhk03 uses np.bool, which NumPy 1.24 to 1.26 do not have",
        ("fastreid.evaluation.rank",),
        evaluation.numpy_lacks_bool,
        after=evaluation.cuhk03_bool,
    ),
    Repair(
        "cpu-ddp",
        10,
        "DistributedDataParallel(device_ids=...) refuses CPU models",
        ("fastreid.engine.defaults",),
        _always,
        after=cpu.ddp_on_cpu,
    ),
    Repair(
        "dependencies",
        13,
        "packages that FastReID uses and does not declare fail without a hint",
        ("fastreid.engine", "fastreid.utils.visualizer", "fastreid.utils.compute_dist"),
        _always,
        around=imports.undeclared_dependencies,
    ),
)

_acted: Set[str] = set()


@contextmanager
def repairing(module_name: str) -> Iterator[None]:
    """Surrounds the execution of one FastReID module with the repairs that concern it.

    Args:
        module_name: its full name; it stands in ``sys.modules`` when the body ends.
    """
    repairs = _wanted(module_name)
    with ExitStack() as stack:
        for repair in repairs:
            if repair.around and repair.present():
                stack.enter_context(repair.around())
                _acted.add(repair.name)
        yield
    _mend(repairs, module_name)


def repair_loaded() -> None:
    """Mends the FastReID modules that were loaded before this package was."""
    for name in sorted(name for repair in REPAIRS for name in repair.modules):
        # A module that is still executing has its turn in `repairing`.
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and not getattr(spec, "_initializing", False):
            _mend(_wanted(name), name)


def active() -> List[str]:
    """Names of the repairs that acted in this process, in the order of the table."""
    return [
        repair.name
        for repair in REPAIRS
        if repair.name in _acted and (not repair.at_run_time or repair.present())
    ]


def _wanted(module_name: str) -> List[Repair]:
    off = {name.strip() for name in os.environ.get("FASTREID_RIB_DISABLE", "").split(",")}
    if off & {"1", "all"}:
        return []
    return [r for r in REPAIRS if module_name in r.modules and r.name not in off]


def _mend(repairs: List[Repair], module_name: str) -> None:
    for repair in repairs:
        if repair.after and (repair.at_run_time or repair.present()):
            repair.after(sys.modules[module_name])
            _acted.add(repair.name)
