"""The table of repairs: every defect of FastReID, where it is and what mends it.

docs/guide/repairs.md explains each.
"""

from types import ModuleType
from typing import Callable, ContextManager, NamedTuple, Optional, Tuple

from fastreid_rib.compat import (
    checkpoint,
    checks,
    cpu,
    datasets,
    evaluation,
    imports,
    loading,
    optimizer,
    resuming,
    training,
)


def _always() -> bool:
    """For defects of FastReID itself, which no machine is free of."""
    return True


class Repair(NamedTuple):
    """One defect of FastReID and how it is mended.

    Attributes:
        name: what ``FASTREID_RIB_DISABLE`` calls it.
        defect: what goes wrong without it, in one sentence.
        modules: FastReID modules that it acts on when they are loaded.
        present: whether this process has the defect; the default is for defects of FastReID itself.
        around: entered while the module executes, for defects of its imports.
        after: called with the module once it has executed.
        at_run_time: `present` cannot be asked while modules are being imported (it would start
            CUDA); the repair is put in place always and asks each time it is used.
    """

    name: str
    defect: str
    modules: Tuple[str, ...]
    present: Callable[[], bool] = _always
    around: Optional[Callable[[], ContextManager[None]]] = None
    after: Optional[Callable[[ModuleType], None]] = None
    at_run_time: bool = False


REPAIRS: Tuple[Repair, ...] = (
    Repair(
        "collections-mapping",
        "data/build.py and evaluation/testing.py import Mapping from collections, which Python "
        "3.10 took away",
        ("fastreid.data.build", "fastreid.evaluation.testing"),
        imports.collections_lack_mapping,
        around=imports.mapping_in_collections,
    ),
    Repair(
        "torch-six",
        "data/build.py imports torch._six, which torch 2 took away",
        ("fastreid.data.build",),
        imports.torch_lacks_six,
        around=imports.torch_six,
    ),
    Repair(
        "zero-grad",
        "optimizer.zero_grad() of torch 2 drops the flat gradient buffer: training learns nothing",
        ("fastreid.solver.build",),
        optimizer.zero_grad_drops_gradients,
        after=optimizer.keep_flat_gradients,
    ),
    Repair(
        "zero-grad-swa",
        "the same in FastReID's SWA wrapper, whose zero_grad is torch's own",
        ("fastreid.solver.optim.swa",),
        optimizer.zero_grad_drops_gradients,
        after=optimizer.keep_flat_gradients_in_swa,
    ),
    Repair(
        "cpu-loader",
        "DataLoaderX and its background thread need CUDA",
        ("fastreid.data.data_utils",),
        cpu.no_cuda,
        after=cpu.cpu_loader,
        at_run_time=True,
    ),
    Repair(
        "test-workers",
        "the test loader always starts 4 workers",
        ("fastreid.data.build",),
        after=loading.test_workers,
    ),
    Repair(
        "cpu-model-loader",
        "with MODEL.DEVICE cpu on a machine with a GPU batches go to the GPU",
        ("fastreid.data.build",),
        after=cpu.cpu_model_loader,
    ),
    Repair(
        "cpu-launch",
        "the processes that launch starts insist on CUDA and NCCL",
        ("fastreid.engine.launch",),
        cpu.no_cuda,
        after=cpu.gloo_processes,
        at_run_time=True,
    ),
    Repair(
        "cpu-rerank",
        "re-ranking searches on the GPU only",
        ("fastreid.utils.compute_dist",),
        after=cpu.search_on_cpu,
    ),
    Repair(
        "compile-ranking",
        "evaluation ends the process when its Cython module cannot be compiled, which is tried "
        "with the wrong Python",
        ("fastreid.evaluation.rank_cylib",),
        after=evaluation.compile_ranking,
    ),
    Repair(
        "cuhk03-bool",
        "eval_cuhk03 uses np.bool, which NumPy 1.24 to 1.26 do not have",
        ("fastreid.evaluation.rank",),
        evaluation.numpy_lacks_bool,
        after=evaluation.cuhk03_bool,
    ),
    Repair(
        "small-gallery",
        "a gallery of fewer than 50 identities ends the ranking in Python in an error, and gives "
        "the compiled one wrong numbers at high ranks",
        ("fastreid.evaluation.rank",),
        after=evaluation.rank_small_galleries,
    ),
    Repair(
        "image-tensors",
        "images become tensors by a storage class that torch 2 deprecates (a warning in every "
        "worker) and by np.array(copy=False), which NumPy 2 refuses",
        ("fastreid.data.transforms.functional",),
        loading.typed_storage_warns,
        after=loading.image_to_tensor,
    ),
    Repair(
        "exchanged-objects",
        "objects sent between processes pass the same deprecated storage class",
        ("fastreid.utils.comm",),
        loading.typed_storage_warns,
        after=loading.bytes_to_tensor,
    ),
    Repair(
        "identity-batches",
        "training hangs before its first step when batch, instances, processes and identities do "
        "not fit",
        ("fastreid.data.samplers.triplet_sampler",),
        after=checks.identity_samplers,
    ),
    Repair(
        "empty-epoch",
        "a training set smaller than one batch ends in a division by zero",
        ("fastreid.solver.build",),
        after=checks.images_for_a_batch,
    ),
    Repair(
        "one-identity",
        "cross-entropy over one identity is a division by zero",
        ("fastreid.modeling.losses.cross_entroy_loss",),
        after=checks.one_identity,
    ),
    Repair(
        "cpu-ddp",
        "DistributedDataParallel(device_ids=...) refuses CPU models",
        ("fastreid.engine.defaults",),
        after=cpu.ddp_on_cpu,
    ),
    Repair(
        "optimizer-pair",
        "tools/plain_train_net.py takes the pair that build_optimizer returns for the optimizer",
        ("fastreid.solver.build",),
        after=optimizer.optimizer_that_unpacks,
    ),
    Repair(
        "sync-bn-message",
        "syncBN on the CPU fails without saying what to write",
        ("fastreid.layers.batch_norm",),
        after=checks.sync_batch_norm,
    ),
    Repair(
        "amp-message",
        "AMP without CUDA fails at the first step, without saying what to write",
        ("fastreid.engine.train_loop",),
        after=checks.amp_on_cpu,
    ),
    Repair(
        "dependencies",
        "packages that FastReID uses and does not declare fail without a hint",
        ("fastreid.engine", "fastreid.utils.visualizer", "fastreid.utils.compute_dist"),
        around=imports.undeclared_dependencies,
    ),
    Repair(
        "random-affine",
        "INPUT.AFFINE uses argument names that torchvision 0.15 dropped",
        ("fastreid.data.transforms.build",),
        loading.random_affine_renamed,
        after=loading.affine_arguments,
    ),
    Repair(
        "loader-errors",
        "an error while a batch is prepared (an unreadable image) stops training for ever",
        ("fastreid.data.data_utils",),
        after=loading.loader_errors,
    ),
    Repair(
        "loader-exit",
        "a background thread that is preparing a batch when Python ends aborts the process",
        ("fastreid.data.data_utils",),
        after=loading.loader_exit,
    ),
    Repair(
        "evaluate-rank",
        "demo/visualize_result.py imports evaluate_rank from where it is not",
        ("fastreid.evaluation",),
        after=evaluation.evaluate_rank_by_package,
    ),
    Repair(
        "set-reweight",
        "SetReWeightSampler never fills a batch",
        ("fastreid.data.samplers.triplet_sampler",),
        after=checks.set_reweight_sampler,
    ),
    Repair(
        "checkpoint-scalars",
        "checkpoints that hold NumPy numbers do not load with torch 2.6 and later",
        ("fastreid.utils.checkpoint",),
        checkpoint.loads_weights_only,
        after=checkpoint.numpy_scalars,
    ),
    Repair(
        "checkpoint-code",
        "loading a checkpoint runs whatever code somebody put into it",
        ("fastreid.utils.checkpoint",),
        checkpoint.loads_code,
        after=checkpoint.no_code,
    ),
    Repair(
        "checkpoint-errors",
        "a truncated, foreign or missing checkpoint ends in a traceback from deep inside torch",
        ("fastreid.utils.checkpoint",),
        after=checkpoint.told_errors,
    ),
    Repair(
        "checkpoint-write",
        "a process that dies while it writes a checkpoint leaves half a file, over a good one for "
        "model_best.pth",
        ("fastreid.utils.checkpoint",),
        after=checkpoint.whole_files,
    ),
    Repair(
        "regnet-configs",
        "RegNet and EfficientNet look for their settings below the current folder",
        ("fastreid.modeling.backbones.regnet.regnet", "fastreid.modeling.backbones.regnet.effnet"),
        after=training.architecture_files,
    ),
    Repair(
        "swa-hook",
        "the SWA hook assigns trainer.optimizer, which DefaultTrainer does not let it",
        ("fastreid.engine.defaults",),
        after=training.optimizer_setter,
    ),
    Repair(
        "failed-run",
        "a run that fails in its last epoch still evaluates: processes wait for each other",
        ("fastreid.engine.hooks",),
        after=training.no_evaluation_after_failure,
    ),
    Repair(
        "lost-pictures",
        "a data root that is gone is an error without a hint",
        ("fastreid.data.data_utils",),
        after=loading.lost_pictures,
    ),
    Repair(
        "nan-term",
        "the error for a loss that is NaN shows averages over the processes, not whose it was",
        ("fastreid.engine.train_loop",),
        after=training.nan_named,
    ),
    Repair(
        "market-names",
        "Market1501 reads .jpg alone, one digit of a camera and the names of folders, and asserts "
        "1501 identities and 6 cameras",
        ("fastreid.data.datasets.market1501",),
        after=datasets.market_names,
    ),
    Repair(
        "duke-names",
        "the same in DukeMTMC, with 8 cameras",
        ("fastreid.data.datasets.dukemtmcreid",),
        after=datasets.duke_names,
    ),
    Repair(
        "msmt17-lists",
        "MSMT17 has bare errors for lists and folders that it cannot read",
        ("fastreid.data.datasets.msmt17",),
        after=datasets.msmt17_lists,
    ),
    Repair(
        "missing-folders",
        "a folder that a data set lacks is an error without a hint",
        ("fastreid.data.datasets.bases",),
        after=datasets.missing_folders,
    ),
    Repair(
        "empty-data-set",
        "a training or test set without pictures ends in a bare assertion",
        ("fastreid.data.common",),
        after=datasets.empty_data_set,
    ),
    Repair(
        "test-sets",
        "a test set that cannot be evaluated is found out after the training",
        ("fastreid.engine.defaults",),
        after=datasets.test_sets,
    ),
    Repair(
        "eval-period",
        "TEST.EVAL_PERIOD 0 trains to the end and then divides by zero; -1 finds no results",
        ("fastreid.engine.hooks",),
        after=training.evaluation_at_the_end,
    ),
    Repair(
        "cosine-warmup",
        "CosineAnnealingLR with a warm-up as long as the training divides by zero after it",
        ("fastreid.solver.build",),
        after=training.annealing_after_warmup,
    ),
    Repair(
        "aqe-gallery",
        "TEST.AQE with QE_K of as many pictures as there are fails after the training",
        ("fastreid.evaluation.query_expansion",),
        after=evaluation.neighbours_in_small_galleries,
    ),
    Repair(
        "rerank-gallery",
        "TEST.RERANK with K1 beyond the pictures that there are counts the last one instead",
        ("fastreid.utils.compute_dist",),
        after=evaluation.reranking_in_small_galleries,
    ),
    Repair(
        "short-run",
        "a run of fewer than three steps ends in a division by zero when its last one is logged",
        ("fastreid.utils.events",),
        after=training.short_runs,
    ),
    Repair(
        "frozen-resume",
        "a resumed run freezes MODEL.FREEZE_LAYERS for SOLVER.FREEZE_ITERS once more, in silence",
        ("fastreid.engine.hooks",),
        after=resuming.frozen_steps,
    ),
    Repair(
        "frozen-evaluation",
        "an evaluation within SOLVER.FREEZE_ITERS lets the batch norm of frozen layers learn",
        ("fastreid.engine.hooks",),
        after=resuming.frozen_after_evaluation,
    ),
    Repair(
        "finished-run",
        "--resume of a run that is finished ends in an AttributeError",
        ("fastreid.engine.defaults",),
        after=resuming.finished_run,
    ),
    Repair(
        "another-training",
        "--resume with other identities, another network or optimizer fails at the first step, "
        "deep inside the optimizer",
        ("fastreid.utils.checkpoint",),
        after=resuming.another_training,
    ),
    Repair(
        "best-model",
        "a resumed run overwrites model_best.pth with a worse model",
        ("fastreid.engine.hooks",),
        after=resuming.best_so_far,
    ),
    Repair(
        "whole-state",
        "checkpoints hold neither the scaler of SOLVER.AMP nor the teacher of KD.EMA",
        ("fastreid.engine.defaults",),
        after=resuming.whole_state,
    ),
)
