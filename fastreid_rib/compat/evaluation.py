"""Evaluation: FastReID's compiled ranking, the CUHK03 protocol, and what it writes."""

import functools
import hashlib
import importlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

from fastreid_rib.base import cache
from fastreid_rib.base.patching import overlay, replace
from fastreid_rib.base.whole_files import renamed_to, written_whole
from fastreid_rib.compat.cpu import no_cuda
from fastreid_rib.compat.repairs import Stock, repair

_SOURCES = ("rank_cy.pyx", "roc_cy.pyx")


@repair(
    "fastreid.evaluation.rank_cylib",
    defect="evaluation ends the process when its Cython module cannot be compiled, which is tried "
    "with the wrong Python",
)
def compile_ranking(module: ModuleType) -> None:
    """Compiled by the running Python into a cache of the user; a failure is one warning.

    FastReID calls ``make`` in its own folder, which calls the ``python3`` of PATH. Without the
    compiled ranking it uses the one in Python.
    """
    source = os.path.abspath(os.path.dirname(module.__file__ or ""))
    folder = _cache_folder(source)

    def found() -> bool:
        if not folder.is_dir() or cache.why_untrusted(folder, folder.parent):
            return False
        module.__path__.append(str(folder))
        return True

    @functools.lru_cache(maxsize=None)  # one attempt a process, not one an evaluation
    def compile_helper() -> None:
        try:
            cache.make_folder(folder)
            failure = cache.why_untrusted(folder, folder.parent) or _compile(source, str(folder))
        except OSError as error:
            failure = str(error)
        if failure:
            logging.getLogger("fastreid.evaluation").warning(
                "FastReID's ranking could not be compiled, the slower one in Python is used (%s). "
                "It needs a C compiler and `python -m pip install cython setuptools`.",
                failure,
            )
        elif found():
            importlib.invalidate_caches()

    found()
    replace(module, "compile_helper", lambda stock: compile_helper)


def _compile(source: str, target: str) -> Optional[str]:
    """Compiles the two modules of folder `source` into folder `target`; returns what went wrong."""
    import numpy

    flags = f"{os.environ.get('CFLAGS', '')} -I{shlex.quote(numpy.get_include())}"
    command = [sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-q", "-j1", *_SOURCES]
    how: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name in _SOURCES:
                shutil.copy(os.path.join(source, name), scratch)
            env = dict(os.environ, CFLAGS=flags)
            run = subprocess.run(command, cwd=scratch, env=env, timeout=600, **how)
            if run.returncode:
                return (run.stdout.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            for built in Path(scratch).glob("*" + EXTENSION_SUFFIXES[0]):
                with renamed_to(os.path.join(target, built.name)) as partial:
                    shutil.copy(built, partial)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    return None


def _cache_folder(source: str) -> Path:
    """Named by what the machine code depends on: the source, Python and NumPy."""
    import numpy

    digest = hashlib.sha256(f"{sys.version} {numpy.__version__}".encode())
    for name in _SOURCES:
        digest.update(Path(source, name).read_bytes())
    name = f"rank_cylib-{digest.hexdigest()[:16]}"
    try:
        return cache.cache_folder(name)
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"fastreid-rib-{os.geteuid()}" / name


@repair(
    "fastreid.evaluation.rank:evaluate_rank",
    defect="a gallery of fewer than 50 identities ends the ranking in Python in an error, and "
    "gives the compiled one wrong numbers at high ranks",
    essential=True,
)
def small_gallery(
    stock: Stock,
    distmat: Any,
    q_pids: Any,
    g_pids: Any,
    q_camids: Any,
    g_camids: Any,
    max_rank: int = 50,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Filled up with pictures of nobody, farther than all others.

    A query leaves out its own camera's pictures, so queries see galleries of different lengths.
    Where one is shorter than ``max_rank``, the ranking in Python cannot stack the curves, and the
    compiled one reads on in what the last query left there. Right answers, mAP and mINP stay what
    they are.
    """
    import numpy

    # A query's own identity may be left out; CUHK03's protocol keeps one picture of each other.
    missing = max_rank - len(numpy.unique(g_pids)) + 1
    if missing > 0:
        far = numpy.full((len(distmat), missing), numpy.inf, distmat.dtype)
        distmat = numpy.concatenate((distmat, far), axis=1)
        nobody = min(numpy.min(q_pids), numpy.min(g_pids)) - 1 - numpy.arange(missing)
        g_pids = numpy.concatenate((g_pids, nobody.astype(g_pids.dtype)))
        g_camids = numpy.concatenate((g_camids, numpy.zeros(missing, g_camids.dtype)))
    return stock(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, *args, **kwargs)


@repair(
    "fastreid.evaluation.query_expansion:aqe",
    defect="TEST.AQE with QE_K of as many pictures as there are fails after the training",
)
def aqe_gallery(
    stock: Stock,
    query_feat: Any,
    gallery_feat: Any,
    qe_times: int = 1,
    qe_k: int = 10,
    alpha: float = 3.0,
) -> Any:
    """All pictures are taken."""
    qe_k = min(qe_k, len(query_feat) + len(gallery_feat) - 1)
    return stock(query_feat, gallery_feat, qe_times, qe_k, alpha)


@repair(
    "fastreid.engine.defaults:default_setup",
    defect="an evaluation overwrites the config.yaml of the training whose OUTPUT_DIR it has",
)
def training_config(stock: Stock, cfg: Any, args: Any) -> None:
    """A `config.yaml` that is there stays as it is; the log of the evaluation has its own.

    The training's is what resumes it and what an export reads.
    """
    from fastreid.utils.comm import get_rank

    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not getattr(args, "eval_only", False) or not os.path.isfile(path) or get_rank():
        stock(cfg, args)
        return
    with open(path, "rb") as file:
        kept = file.read()
    stock(cfg, args)
    with written_whole(path, "wb") as file:
        file.write(kept)


@repair(
    "fastreid.utils.compute_dist:compute_jaccard_distance",
    defect="TEST.RERANK with K1 beyond the pictures that there are counts the last one instead, "
    "and searches on the GPU only",
    essential=True,
)
def rerank_gallery(
    stock: Stock,
    features: Any,
    k1: int = 20,
    k2: int = 6,
    search_option: int = 0,
    fp16: bool = False,
) -> Any:
    """K1 is at most the number of pictures; without CUDA or faiss for it the CPU searches.

    The search fills up with -1, which FastReID takes for the last picture, and a large K1 asks for
    more memory than there is.
    """
    from fastreid.utils.compute_dist import faiss

    if no_cuda() or not hasattr(faiss, "StandardGpuResources"):
        search_option = 3  # FastReID's own number for it
    return stock(features, min(k1, len(features)), k2, search_option, fp16)


@repair(
    "fastreid.evaluation.reid_evaluation",
    defect="TEST.ROC takes the pairs of two people for the positive class, and the least rate of "
    "several: a perfect model has 0",
    essential=True,
)
def roc_rates(module: ModuleType) -> None:
    """TPR@FPR is in per cent, as the other results; the pairs of one person are positive.

    Of the thresholds with one false positive rate, the one with the most true positives counts.
    """
    import numpy

    stock = module.metrics.roc_curve

    def roc_curve(labels: Any, distances: Any) -> Any:  # FastReID labels pairs of two people 1
        fpr, tpr, thresholds = stock(1 - labels, -distances, drop_intermediate=False)
        best = numpy.append(numpy.diff(fpr) > 0, True)  # the rates rise together
        return fpr[best], 100 * tpr[best], -thresholds[best]

    overlay(module, "metrics", roc_curve=roc_curve)
