"""The table of repairs: every defect of FastReID, where it is and what mends it.

The list in docs/reference/repairs.md is written from it, by tools/write_lists.py.
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
    pictures,
    projects,
    readers,
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
        defect: what goes wrong without it, in a part of a sentence.
        instead: what happens with it, likewise.
        modules: FastReID modules that it acts on when they are loaded.
        present: whether this process has the defect; the default is for defects of FastReID itself.
        around: entered while the module executes, for defects of its imports.
        after: called with the module once it has executed.
        where: on which machines or with which data, in words.
        at_run_time: `present` cannot be asked while modules are being imported (it would start
            CUDA); the repair is put in place always and asks each time it is used.
    """

    name: str
    defect: str
    instead: str
    modules: Tuple[str, ...]
    present: Callable[[], bool] = _always
    around: Optional[Callable[[], ContextManager[None]]] = None
    after: Optional[Callable[[ModuleType], None]] = None
    where: str = "everywhere"
    at_run_time: bool = False


REPAIRS: Tuple[Repair, ...] = (
    Repair(
        "collections-mapping",
        "data/build.py and evaluation/testing.py import Mapping from collections, which Python "
        "3.10 took away",
        "the name is lent while those two modules load",
        ("fastreid.data.build", "fastreid.evaluation.testing"),
        imports.collections_lack_mapping,
        around=imports.mapping_in_collections,
        where="Python >= 3.10",
    ),
    Repair(
        "torch-six",
        "data/build.py imports torch._six, which torch 2 took away",
        "the module is lent while that one loads",
        ("fastreid.data.build",),
        imports.torch_lacks_six,
        around=imports.torch_six,
        where="torch >= 2, `fastreid` of PyPI",
    ),
    Repair(
        "zero-grad",
        "optimizer.zero_grad() of torch 2 drops the flat gradient buffer: training learns nothing",
        "`zero_grad` fills the flat buffer with zeros, however it is called",
        ("fastreid.solver.build",),
        optimizer.zero_grad_drops_gradients,
        after=optimizer.keep_flat_gradients,
        where="torch >= 2",
    ),
    Repair(
        "zero-grad-swa",
        "the same in FastReID's SWA wrapper, whose zero_grad is torch's own",
        "it leaves `zero_grad` to the optimizer it wraps",
        ("fastreid.solver.optim.swa",),
        optimizer.zero_grad_drops_gradients,
        after=optimizer.keep_flat_gradients_in_swa,
        where="torch >= 2",
    ),
    Repair(
        "cpu-loader",
        "DataLoaderX and its background thread need CUDA",
        "batches stay on the CPU; the background prefetch stays",
        ("fastreid.data.data_utils",),
        cpu.no_cuda,
        after=cpu.cpu_loader,
        at_run_time=True,
        where="no CUDA",
    ),
    Repair(
        "test-workers",
        "the test loader always starts 4 workers",
        "at most 4, the cores, DATALOADER.NUM_WORKERS",
        ("fastreid.data.build",),
        after=loading.test_workers,
    ),
    Repair(
        "cpu-model-loader",
        "with MODEL.DEVICE cpu on a machine with a GPU batches go to the GPU",
        "batches stay where the model is",
        ("fastreid.data.build",),
        after=cpu.cpu_model_loader,
    ),
    Repair(
        "cpu-launch",
        "the processes that launch starts insist on CUDA and NCCL",
        "the processes meet over gloo",
        ("fastreid.engine.launch",),
        cpu.no_cuda,
        after=cpu.gloo_processes,
        at_run_time=True,
        where="no CUDA",
    ),
    Repair(
        "cpu-rerank",
        "re-ranking searches on the GPU only",
        "FastReID's own search on the CPU",
        ("fastreid.utils.compute_dist",),
        after=cpu.search_on_cpu,
        where="no CUDA, or faiss without GPU",
    ),
    Repair(
        "compile-ranking",
        "evaluation ends the process when its Cython module cannot be compiled, which is tried "
        "with the wrong Python",
        "compiled by the running Python, into a cache of the user if FastReID's folder is "
        "read-only; a failure is one warning, the ranking in Python is used",
        ("fastreid.evaluation.rank_cylib",),
        after=evaluation.compile_ranking,
    ),
    Repair(
        "cuhk03-bool",
        "eval_cuhk03 uses np.bool, which NumPy 1.24 to 1.26 do not have",
        "that module alone sees a NumPy with `bool`",
        ("fastreid.evaluation.rank",),
        evaluation.numpy_lacks_bool,
        after=evaluation.cuhk03_bool,
        where="NumPy 1.24 to 1.26",
    ),
    Repair(
        "small-gallery",
        "a gallery of fewer than 50 identities ends the ranking in Python in an error, and gives "
        "the compiled one wrong numbers at high ranks",
        "filled up with pictures of nobody, farther than all others",
        ("fastreid.evaluation.rank",),
        after=evaluation.rank_small_galleries,
    ),
    Repair(
        "image-tensors",
        "images become tensors by a storage class that torch 2 deprecates (a warning in every "
        "worker) and by np.array(copy=False), which NumPy 2 refuses",
        "through NumPy, same values and dtypes",
        ("fastreid.data.transforms.functional",),
        loading.typed_storage_warns,
        after=loading.image_to_tensor,
        where="torch >= 2",
    ),
    Repair(
        "exchanged-objects",
        "objects sent between processes pass the same deprecated storage class",
        "through `torch.frombuffer`",
        ("fastreid.utils.comm",),
        loading.typed_storage_warns,
        after=loading.bytes_to_tensor,
        where="torch >= 2",
    ),
    Repair(
        "identity-batches",
        "training hangs before its first step when batch, instances, processes and identities do "
        "not fit",
        "ValueError with the keys and values that would work; whatever trains today still does",
        ("fastreid.data.samplers.triplet_sampler",),
        after=checks.identity_samplers,
    ),
    Repair(
        "empty-epoch",
        "a training set smaller than one batch ends in a division by zero",
        "ValueError that names SOLVER.IMS_PER_BATCH",
        ("fastreid.solver.build",),
        after=checks.images_for_a_batch,
    ),
    Repair(
        "one-identity",
        "cross-entropy over one identity is a division by zero",
        "ValueError that names MODEL.HEADS.NUM_CLASSES",
        ("fastreid.modeling.losses.cross_entroy_loss",),
        after=checks.one_identity,
    ),
    Repair(
        "cpu-ddp",
        "DistributedDataParallel(device_ids=...) refuses CPU models",
        "without `device_ids` for CPU models",
        ("fastreid.engine.defaults",),
        after=cpu.ddp_on_cpu,
        where="CPU models",
    ),
    Repair(
        "optimizer-pair",
        "tools/plain_train_net.py takes the pair that build_optimizer returns for the optimizer",
        "it returns an optimizer that also unpacks into the pair",
        ("fastreid.solver.build",),
        after=optimizer.optimizer_that_unpacks,
    ),
    Repair(
        "sync-bn-message",
        "syncBN on the CPU fails without saying what to write",
        "the message says MODEL.BACKBONE.NORM BN, MODEL.HEADS.NORM BN",
        ("fastreid.layers.batch_norm",),
        after=checks.sync_batch_norm,
        where="CPU",
    ),
    Repair(
        "amp-message",
        "AMP without CUDA fails at the first step, without saying what to write",
        "the trainer's constructor says SOLVER.AMP.ENABLED False",
        ("fastreid.engine.train_loop",),
        after=checks.amp_on_cpu,
        where="CPU",
    ),
    Repair(
        "dependencies",
        "packages that FastReID uses and does not declare fail without a hint",
        "the error says what to install",
        (
            "fastreid.engine",
            "fastreid.utils.visualizer",
            "fastreid.utils.compute_dist",
            "fastretri.retri_evaluator",
            "fastattr.datasets",
            "fastface.face_evaluator",
        ),
        around=imports.undeclared_dependencies,
        where="fresh environments",
    ),
    Repair(
        "random-affine",
        "INPUT.AFFINE uses argument names that torchvision 0.15 dropped",
        "today's names",
        ("fastreid.data.transforms.build",),
        loading.random_affine_renamed,
        after=loading.affine_arguments,
        where="torchvision >= 0.14",
    ),
    Repair(
        "loader-errors",
        "an error while a batch is prepared (an unreadable image) stops training for ever",
        "the error is raised in the training loop",
        ("fastreid.data.data_utils",),
        after=loading.loader_errors,
    ),
    Repair(
        "loader-exit",
        "a background thread that is preparing a batch when Python ends aborts the process",
        "the threads are ended first",
        ("fastreid.data.data_utils",),
        after=loading.loader_exit,
    ),
    Repair(
        "evaluate-rank",
        "demo/visualize_result.py imports evaluate_rank from where it is not",
        "the name is there too",
        ("fastreid.evaluation",),
        after=evaluation.evaluate_rank_by_package,
    ),
    Repair(
        "set-reweight",
        "SetReWeightSampler never fills a batch",
        "it fills batches with whole draws; SET_WEIGHT is checked",
        ("fastreid.data.samplers.triplet_sampler",),
        after=checks.set_reweight_sampler,
    ),
    Repair(
        "checkpoint-scalars",
        "checkpoints that hold NumPy numbers do not load with torch 2.6 and later",
        "NumPy's numbers and arrays are allowed in addition; code stays refused",
        ("fastreid.utils.checkpoint",),
        checkpoint.loads_weights_only,
        after=checkpoint.numpy_scalars,
        where="torch >= 2.6",
    ),
    Repair(
        "checkpoint-code",
        "loading a checkpoint runs whatever code somebody put into it",
        "only tensors, NumPy's numbers and plain values are found; a file that names more is "
        "refused",
        ("fastreid.utils.checkpoint",),
        checkpoint.loads_code,
        after=checkpoint.no_code,
        where="torch < 2.5",
    ),
    Repair(
        "checkpoint-errors",
        "a truncated, foreign or missing checkpoint ends in a traceback from deep inside torch",
        "the error names the file, what is wrong with it, and the newest whole checkpoint "
        "beside it",
        ("fastreid.utils.checkpoint",),
        after=checkpoint.told_errors,
    ),
    Repair(
        "checkpoint-write",
        "a process that dies while it writes a checkpoint leaves half a file, over a good one for "
        "model_best.pth",
        "written beside it, put on the disk, then renamed; a full disk is an error that says so "
        "(in torch 1.13 it aborted the process)",
        ("fastreid.utils.checkpoint",),
        after=checkpoint.whole_files,
    ),
    Repair(
        "regnet-configs",
        "RegNet and EfficientNet look for their settings below the current folder",
        "found beside the code",
        ("fastreid.modeling.backbones.regnet.regnet", "fastreid.modeling.backbones.regnet.effnet"),
        after=training.architecture_files,
        where="outside a checkout",
    ),
    Repair(
        "swa-hook",
        "the SWA hook assigns trainer.optimizer, which DefaultTrainer does not let it",
        "it may",
        ("fastreid.engine.defaults",),
        after=training.optimizer_setter,
    ),
    Repair(
        "failed-run",
        "a run that fails in its last epoch still evaluates: processes wait for each other",
        "after an error nothing is evaluated",
        ("fastreid.engine.hooks",),
        after=training.no_evaluation_after_failure,
    ),
    Repair(
        "colour-modes",
        "pictures with transparency, a palette, CMYK, 16 bits or 1 bit fail in the first batch, or "
        "are read as others than they are",
        "all are read as RGB of 8 bits; values of an unknown range are an error with the file",
        ("fastreid.data.data_utils",),
        after=pictures.colour_modes,
        where="own pictures",
    ),
    Repair(
        "lost-pictures",
        "a picture that is gone, empty or damaged is an error without its name or a hint",
        "the error names it and says whether the picture or its folder is gone, and what to do",
        ("fastreid.data.data_utils",),
        after=pictures.lost_pictures,
    ),
    Repair(
        "nan-term",
        "the error for a loss that is NaN shows averages over the processes, not whose it was",
        "the terms and their ranks come first, from the numbers that FastReID gathers anyway",
        ("fastreid.engine.train_loop",),
        after=training.nan_named,
    ),
    Repair(
        "market-names",
        "Market1501 reads .jpg alone, one digit of a camera and the names of folders, and asserts "
        "1501 identities and 6 cameras",
        "any ending, camera and identity, by the file's name; a name that says nothing is an "
        "error with the file. Where FastReID reads a folder rightly it still does",
        ("fastreid.data.datasets.market1501",),
        after=readers.market_names,
        where="own pictures in its layout",
    ),
    Repair(
        "duke-names",
        "the same in DukeMTMC, with 8 cameras",
        "the same",
        ("fastreid.data.datasets.dukemtmcreid",),
        after=readers.duke_names,
        where="own pictures in its layout",
    ),
    Repair(
        "msmt17-lists",
        "MSMT17 has bare errors for lists and folders that it cannot read",
        "blank lines, more spaces and underscores in folders are read; the error for another "
        "line names list and line",
        ("fastreid.data.datasets.msmt17",),
        after=readers.msmt17_lists,
        where="own pictures in its layout",
    ),
    Repair(
        "missing-folders",
        "a folder that a data set lacks is an error without a hint",
        "the error says what is needed, what is there instead, and names FASTREID_DATASETS",
        ("fastreid.data.datasets.bases",),
        after=datasets.missing_folders,
    ),
    Repair(
        "empty-data-set",
        "a training or test set without pictures ends in a bare assertion",
        "ValueError that names DATASETS.NAMES or DATASETS.TESTS",
        ("fastreid.data.common",),
        after=datasets.empty_data_set,
    ),
    Repair(
        "test-sets",
        "a test set that cannot be evaluated is found out after the training",
        "test sets are read before it; ValueError if no query has a right answer, a warning for "
        "those that have none",
        ("fastreid.engine.defaults",),
        after=datasets.test_sets,
    ),
    Repair(
        "damaged-pictures",
        "a damaged picture ends the training when it is met, a damaged test picture ends it before "
        "its last checkpoint; copies of a picture in training and test, or query and gallery, are "
        "not noticed",
        "all are read once before training: an error names those that cannot be; copies are "
        "counted",
        ("fastreid.engine.defaults",),
        after=pictures.damaged_pictures,
    ),
    Repair(
        "eval-period",
        "TEST.EVAL_PERIOD 0 trains to the end and then divides by zero; -1 finds no results",
        "0 and less evaluate after the last epoch alone",
        ("fastreid.engine.hooks",),
        after=training.evaluation_at_the_end,
    ),
    Repair(
        "cosine-warmup",
        "CosineAnnealingLR with a warm-up as long as the training divides by zero after it",
        "the last step of the schedule goes to ETA_MIN_LR",
        ("fastreid.solver.build",),
        after=training.annealing_after_warmup,
    ),
    Repair(
        "aqe-gallery",
        "TEST.AQE with QE_K of as many pictures as there are fails after the training",
        "all pictures are taken",
        ("fastreid.evaluation.query_expansion",),
        after=evaluation.neighbours_in_small_galleries,
    ),
    Repair(
        "rerank-gallery",
        "TEST.RERANK with K1 beyond the pictures that there are counts the last one instead",
        "K1 is at most the number of pictures",
        ("fastreid.utils.compute_dist",),
        after=evaluation.reranking_in_small_galleries,
    ),
    Repair(
        "short-run",
        "a run of fewer than three steps ends in a division by zero when its last one is logged",
        "it is logged without a time",
        ("fastreid.utils.events",),
        after=training.short_runs,
    ),
    Repair(
        "frozen-resume",
        "a resumed run freezes MODEL.FREEZE_LAYERS for SOLVER.FREEZE_ITERS once more, in silence",
        "the steps of the training count, not those of the process",
        ("fastreid.engine.hooks",),
        after=resuming.frozen_steps,
    ),
    Repair(
        "frozen-evaluation",
        "an evaluation within SOLVER.FREEZE_ITERS lets the batch norm of frozen layers learn",
        "frozen layers stay in evaluation mode",
        ("fastreid.engine.hooks",),
        after=resuming.frozen_after_evaluation,
    ),
    Repair(
        "finished-run",
        "--resume of a run that is finished ends in an AttributeError",
        "a line says so; the model is evaluated once more, the results are returned",
        ("fastreid.engine.defaults",),
        after=resuming.finished_run,
    ),
    Repair(
        "another-training",
        "--resume with other identities, another network or optimizer fails at the first step, "
        "deep inside the optimizer",
        "ValueError that says what differs, and to write MODEL.WEIGHTS",
        ("fastreid.utils.checkpoint",),
        after=resuming.another_training,
    ),
    Repair(
        "best-model",
        "a resumed run overwrites model_best.pth with a worse model",
        "its metric is read when the run resumes",
        ("fastreid.engine.hooks",),
        after=resuming.best_so_far,
    ),
    Repair(
        "whole-state",
        "checkpoints hold neither the scaler of SOLVER.AMP nor the teacher of KD.EMA",
        "they are saved and loaded; a checkpoint without them is a warning",
        ("fastreid.engine.defaults",),
        after=resuming.whole_state,
    ),
    Repair(
        "word-labels",
        "identities or cameras that are words fail in the evaluation ('list' object has no "
        "attribute 'to'), and words beside numbers in the training ('<' not supported)",
        "they are numbered, in the order of their names, numbers first",
        ("fastreid.data.common",),
        after=datasets.word_labels,
    ),
    Repair(
        "teacher-device",
        "a distiller's teacher is built on the device that the teacher's own config names",
        "teachers are where the student is",
        ("fastreid.modeling.meta_arch.distiller",),
        after=training.teacher_device,
    ),
    Repair(
        "visualizer-numbers",
        "demo/visualize_result.py --max-rank 4 hands text to a function that adds numbers",
        "text becomes a number",
        ("fastreid.utils.visualizer",),
        after=evaluation.numbers_of_the_command_line,
    ),
    Repair(
        "retired-keys",
        "configs of projects/NAIC20 have SOLVER.FREEZE_FC_ITERS, which FastReID took away",
        "the key warns and is ignored",
        ("fastreid.config.defaults",),
        after=projects.accept_retired_keys,
    ),
    Repair(
        "retrieval-cpu",
        "projects/FastRetri searches on the GPU only",
        "faiss searches on the CPU",
        ("fastretri.retri_evaluator",),
        after=projects.search_features_on_cpu,
        at_run_time=True,
        where="no CUDA, or faiss without GPU",
    ),
    Repair(
        "dsr-cpu",
        "projects/PartialReID computes the distances of DSR on the GPU only",
        "they are computed on the CPU",
        ("partialreid.dsr_distance",),
        cpu.no_cuda,
        after=projects.reconstruct_on_cpu,
        at_run_time=True,
        where="no CUDA",
    ),
    Repair(
        "attributes-cpu",
        "projects/FastAttr makes the weights of its loss on the GPU, wherever the logits are",
        "on the device of the logits",
        ("fastattr.modeling.bce_loss",),
        after=projects.weigh_where_logits_are,
    ),
    Repair(
        "torch-containers",
        "projects/FastFace imports container_abcs from torch._six, which torch 1.9 took away",
        "the name is lent while that module loads",
        ("fastface.utils_amp",),
        imports.torch_lacks_containers,
        around=imports.torch_containers,
        where="torch >= 1.9",
    ),
    Repair(
        "partial-fc-message",
        "the classifier of projects/FastFace needs CUDA, and fails without saying what to write",
        "the error says MODEL.HEADS.PFC.ENABLED False",
        ("fastface.modeling.partial_fc",),
        cpu.no_cuda,
        after=projects.classifier_on_gpus,
        at_run_time=True,
        where="no CUDA",
    ),
    Repair(
        "clas-data-set",
        "projects/FastClas imports a data set that is not in FastReID's repository",
        "an empty module is lent for it; the data sets that are there work",
        ("fastclas",),
        around=projects.data_set_that_was_left_out,
    ),
    Repair(
        "demo-pictures",
        "demo/demo.py --input FOLDER, or a file that is no picture, fails without saying what to "
        "write",
        "the error says --input FOLDER/*.jpg",
        ("predictor",),
        after=projects.pictures_that_cannot_be_read,
    ),
)
