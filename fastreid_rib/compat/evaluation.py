"""Evaluation: FastReID's compiled ranking, and the CUHK03 protocol."""

import functools
import hashlib
import importlib
import inspect
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

from fastreid_rib.base import cache
from fastreid_rib.base.patching import overlay, replace
from fastreid_rib.base.whole_files import renamed_to
from fastreid_rib.compat.repairs import Stock, repair

_BUILD = """
import sys
from setuptools import Extension, setup  # first: it brings distutils where Python has none
import numpy
from Cython.Build import cythonize
source, target, scratch = sys.argv[1:]
modules = [
    Extension(name, [f"{source}/{name}.pyx"], include_dirs=[numpy.get_include()])
    for name in ("rank_cy", "roc_cy")
]
setup(
    name="rank_cylib",
    ext_modules=cythonize(modules, build_dir=scratch, quiet=True),
    script_args=["-q", "build_ext", "--build-lib", target, "--build-temp", scratch],
)
"""


@repair(
    "fastreid.evaluation.rank_cylib",
    defect="evaluation ends the process when its Cython module cannot be compiled, which is tried "
    "with the wrong Python",
)
def compile_ranking(module: ModuleType) -> None:
    """Compiled by the running Python; a failure is one warning, the ranking in Python is used.

    FastReID calls ``make``, which calls the ``python3`` of PATH. Where FastReID's folder is
    read-only, what is compiled goes into a cache of the user.
    """
    source = os.path.abspath(os.path.dirname(module.__file__ or ""))
    folder = _cache_folder(source)
    if folder and folder.is_dir() and not cache.why_untrusted(folder, folder.parent):
        module.__path__.append(str(folder))

    @functools.lru_cache(maxsize=None)  # one attempt a process, not one an evaluation
    def compile_helper() -> None:
        target = source
        if not os.access(source, os.W_OK):
            if folder is None:
                return
            cache.make_folder(folder)
            if cache.why_untrusted(folder, folder.parent):
                return
            target = str(folder)
        failure = _compile(source, target)
        if failure:
            logging.getLogger("fastreid.evaluation").warning(
                "FastReID's ranking could not be compiled, the slower one in Python is used (%s). "
                "It needs a C compiler and `python -m pip install cython setuptools`.",
                failure,
            )
            return
        if target not in module.__path__:
            module.__path__.append(target)
        importlib.invalidate_caches()

    replace(module, "compile_helper", lambda stock: compile_helper)


def _compile(source: str, target: str) -> Optional[str]:
    """Compiles the two modules of folder `source` into folder `target`; returns what went wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        built = os.path.join(scratch, "built")
        try:
            run = subprocess.run(
                [sys.executable, "-c", _BUILD, source, built, scratch],
                cwd=scratch,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=600,
            )
            if run.returncode:
                lines = run.stdout.strip().splitlines()
                return lines[-1] if lines else f"exit status {run.returncode}"
            for name in os.listdir(built):
                with renamed_to(os.path.join(target, name)) as partial:
                    shutil.copy(os.path.join(built, name), partial)
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    return None


def _cache_folder(source: str) -> Optional[Path]:
    """Where the compiled ranking goes when FastReID's folder is read-only (None: nowhere).

    The name holds whatever the machine code depends on: the source, Python and NumPy.
    """
    import numpy

    digest = hashlib.sha256(f"{sys.version} {numpy.__version__}".encode())
    for name in ("rank_cy.pyx", "roc_cy.pyx"):
        digest.update(Path(source, name).read_bytes())
    try:
        return cache.cache_folder(f"rank_cylib-{digest.hexdigest()[:16]}")
    except RuntimeError:  # a user without a home
        return None


def numpy_lacks_bool() -> bool:
    """NumPy 1.24 removed ``np.bool``; 2.0 brought it back with another meaning."""
    import numpy

    return numpy.__version__.startswith(("1.24.", "1.25.", "1.26."))  # to ask for it may warn


@repair(
    "fastreid.evaluation.rank",
    defect="eval_cuhk03 uses np.bool, which NumPy 1.24 to 1.26 do not have",
    where="NumPy 1.24 to 1.26",
    present=numpy_lacks_bool,
)
def cuhk03_bool(module: ModuleType) -> None:
    """That module alone sees a NumPy with `bool`."""
    overlay(module, "np", bool=bool)


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
    *args: Any,
    **kwargs: Any,
) -> Any:
    """All pictures are taken."""
    qe_k = min(qe_k, len(query_feat) + len(gallery_feat) - 1)
    return stock(query_feat, gallery_feat, qe_times, qe_k, *args, **kwargs)


@repair(
    "fastreid.utils.compute_dist:compute_jaccard_distance",
    defect="TEST.RERANK with K1 beyond the pictures that there are counts the last one instead",
    essential=True,
)
def rerank_gallery(stock: Stock, features: Any, k1: int = 20, *args: Any, **kwargs: Any) -> Any:
    """K1 is at most the number of pictures.

    The search fills up with -1, which FastReID takes for the last picture, and a large K1 asks for
    more memory than there is.
    """
    return stock(features, min(k1, len(features)), *args, **kwargs)


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


@repair(
    "fastreid.utils.visualizer:Visualizer.vis_rank_list",
    defect="demo/visualize_result.py --max-rank 4 hands text to a function that adds numbers",
)
def visualizer_numbers(stock: Stock, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Text becomes a number."""
    call = inspect.signature(stock).bind(self, *args, **kwargs)
    for name in {"num_vis", "max_rank"}.intersection(call.arguments):
        call.arguments[name] = int(call.arguments[name])
    return stock(*call.args, **call.kwargs)
