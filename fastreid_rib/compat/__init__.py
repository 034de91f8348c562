"""FastReID on today's machines: every defect in one table, each repaired where it is present.

The import hook (`fastreid_rib.activation`) wraps the execution of each FastReID module in
`repairing`. ``FASTREID_RIB_DISABLE`` switches repairs off: ``all`` (or ``1``), or their names with
commas between them. docs/compat.md explains each.
"""

import logging
import sys
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Callable, ContextManager, Iterator, List, NamedTuple, Optional, Set, Tuple

from fastreid_rib.activation import disabled

from . import checkpoint, checks, cpu, evaluation, imports, loading, optimizer, training


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
        "test-workers",
        8,
        "the test loader always starts 4 workers",
        ("fastreid.data.build",),
        _always,
        after=loading.test_workers,
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
        "small-gallery",
        0,
        "a gallery of fewer than 50 identities ends the ranking in Python in an error, and gives "
        "the compiled one wrong numbers at high ranks",
        ("fastreid.evaluation.rank",),
        _always,
        after=evaluation.rank_small_galleries,
    ),
    Repair(
        "image-tensors",
        7,
        "images become tensors by a storage class that torch 2 deprecates (a warning in every "
        "worker) and by np.array(copy=False), which NumPy 2 refuses",
        ("fastreid.data.transforms.functional",),
        loading.typed_storage_warns,
        after=loading.image_to_tensor,
    ),
    Repair(
        "exchanged-objects",
        7,
        "objects sent between processes pass the same deprecated storage class",
        ("fastreid.utils.comm",),
        loading.typed_storage_warns,
        after=loading.bytes_to_tensor,
    ),
    Repair(
        "identity-batches",
        9,
        "training hangs before its first step when batch, instances, processes and identities do "
        "not fit",
        ("fastreid.data.samplers.triplet_sampler",),
        _always,
        after=checks.identity_samplers,
    ),
    Repair(
        "empty-epoch",
        9,
        "a training set smaller than one batch ends in a division by zero",
        ("fastreid.solver.build",),
        _always,
        after=checks.images_for_a_batch,
    ),
    Repair(
        "one-identity",
        0,
        "cross-entropy over one identity is a division by zero",
        ("fastreid.modeling.losses.cross_entroy_loss",),
        _always,
        after=checks.one_identity,
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
        "optimizer-pair",
        11,
        "tools/plain_train_net.py takes the pair that build_optimizer returns for the optimizer",
        ("fastreid.solver.build",),
        _always,
        after=optimizer.optimizer_that_unpacks,
    ),
    Repair(
        "sync-bn-message",
        12,
        "syncBN on the CPU fails without saying what to write",
        ("fastreid.layers.batch_norm",),
        _always,
        after=checks.sync_batch_norm,
    ),
    Repair(
        "amp-message",
        12,
        "AMP without CUDA fails at the first step, without saying what to write",
        ("fastreid.engine.train_loop",),
        _always,
        after=checks.amp_on_cpu,
    ),
    Repair(
        "dependencies",
        13,
        "packages that FastReID uses and does not declare fail without a hint",
        ("fastreid.engine", "fastreid.utils.visualizer", "fastreid.utils.compute_dist"),
        _always,
        around=imports.undeclared_dependencies,
    ),
    Repair(
        "random-affine",
        0,
        "INPUT.AFFINE uses argument names that torchvision 0.15 dropped",
        ("fastreid.data.transforms.build",),
        loading.random_affine_renamed,
        after=loading.affine_arguments,
    ),
    Repair(
        "loader-errors",
        0,
        "an error while a batch is prepared (an unreadable image) stops training for ever",
        ("fastreid.data.data_utils",),
        _always,
        after=loading.loader_errors,
    ),
    Repair(
        "loader-exit",
        0,
        "a background thread that is preparing a batch when Python ends aborts the process",
        ("fastreid.data.data_utils",),
        _always,
        after=loading.loader_exit,
    ),
    Repair(
        "evaluate-rank",
        0,
        "demo/visualize_result.py imports evaluate_rank from where it is not",
        ("fastreid.evaluation",),
        _always,
        after=evaluation.evaluate_rank_by_package,
    ),
    Repair(
        "set-reweight",
        0,
        "SetReWeightSampler never fills a batch",
        ("fastreid.data.samplers.triplet_sampler",),
        _always,
        after=checks.set_reweight_sampler,
    ),
    Repair(
        "checkpoint-scalars",
        0,
        "checkpoints that hold NumPy numbers do not load with torch 2.6 and later",
        ("fastreid.utils.checkpoint",),
        checkpoint.loads_weights_only,
        after=checkpoint.numpy_scalars,
    ),
    Repair(
        "checkpoint-code",
        0,
        "loading a checkpoint runs whatever code somebody put into it",
        ("fastreid.utils.checkpoint",),
        checkpoint.loads_code,
        after=checkpoint.no_code,
    ),
    Repair(
        "checkpoint-errors",
        0,
        "a truncated, foreign or missing checkpoint ends in a traceback from deep inside torch",
        ("fastreid.utils.checkpoint",),
        _always,
        after=checkpoint.told_errors,
    ),
    Repair(
        "checkpoint-write",
        0,
        "a process that dies while it writes a checkpoint leaves half a file, over a good one for "
        "model_best.pth",
        ("fastreid.utils.checkpoint",),
        _always,
        after=checkpoint.whole_files,
    ),
    Repair(
        "regnet-configs",
        0,
        "RegNet and EfficientNet look for their settings below the current folder",
        ("fastreid.modeling.backbones.regnet.regnet", "fastreid.modeling.backbones.regnet.effnet"),
        _always,
        after=training.architecture_files,
    ),
    Repair(
        "swa-hook",
        0,
        "the SWA hook assigns trainer.optimizer, which DefaultTrainer does not let it",
        ("fastreid.engine.defaults",),
        _always,
        after=training.optimizer_setter,
    ),
    Repair(
        "failed-run",
        0,
        "a run that fails in its last epoch still evaluates: processes wait for each other",
        ("fastreid.engine.hooks",),
        _always,
        after=training.no_evaluation_after_failure,
    ),
    Repair(
        "lost-pictures",
        0,
        "a data root that is gone is an error without a hint",
        ("fastreid.data.data_utils",),
        _always,
        after=loading.lost_pictures,
    ),
    Repair(
        "nan-term",
        0,
        "the error for a loss that is NaN shows averages over the processes, not whose it was",
        ("fastreid.engine.train_loop",),
        _always,
        after=training.nan_named,
    ),
)

_acted: Set[str] = set()
_failed: Set[str] = set()


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
    off = disabled()
    if "all" in off:
        return []
    return [r for r in REPAIRS if module_name in r.modules and r.name not in off]


def _mend(repairs: List[Repair], module_name: str) -> None:
    for repair in repairs:
        if repair.after is None or repair.name in _failed:
            continue
        try:
            if repair.at_run_time or repair.present():
                repair.after(sys.modules[module_name])
                _acted.add(repair.name)
        except Exception as error:
            # A FastReID that was changed at this place must still be usable.
            _failed.add(repair.name)
            logging.getLogger("fastreid").warning(
                "fastreid-rib: repair %s does not fit this FastReID (%r); left as it is.",
                repair.name,
                error,
            )
