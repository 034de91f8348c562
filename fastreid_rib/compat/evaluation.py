"""Evaluation: FastReID's compiled ranking, and the CUHK03 protocol."""

import functools
import hashlib
import inspect
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Optional

from fastreid_rib.base import cache
from fastreid_rib.base.patching import overlay, replace, wrap
from fastreid_rib.base.whole_files import renamed_to

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


def compile_ranking(module: ModuleType) -> None:
    """The ranking is compiled with the running interpreter, and evaluation survives a failure.

    FastReID calls ``make``, which calls the ``python3`` of PATH, and ends the process when that
    fails, although it has the same ranking in Python. Here a failure is one warning.

    Args:
        module: ``fastreid.evaluation.rank_cylib``.
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
        import importlib

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
    if not hasattr(os, "getuid"):
        return None
    import numpy

    digest = hashlib.sha256(f"{sys.version} {numpy.__version__}".encode())
    for name in ("rank_cy.pyx", "roc_cy.pyx"):
        try:
            with open(os.path.join(source, name), "rb") as file:
                digest.update(file.read())
        except OSError:
            return None
    try:
        return cache.cache_folder(f"rank_cylib-{digest.hexdigest()[:16]}")
    except RuntimeError:  # a user without a home
        return None


def evaluate_rank_by_package(module: ModuleType) -> None:
    """``from fastreid.evaluation import evaluate_rank``, as demo/visualize_result.py has it.

    Loaded when it is asked for: its module looks for the compiled ranking when it is
    imported, and the evaluator compiles that before.

    Args:
        module: ``fastreid.evaluation``.
    """
    import importlib

    def __getattr__(name: str) -> Any:  # noqa: N807 (a module's, PEP 562)
        if name == "evaluate_rank":
            return importlib.import_module("fastreid.evaluation.rank").evaluate_rank
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    if "evaluate_rank" not in vars(module):
        vars(module).setdefault("__getattr__", __getattr__)


def numpy_lacks_bool() -> bool:
    """NumPy 1.24 removed ``np.bool``; 2.0 brought it back with another meaning."""
    import warnings

    import numpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 1.20 to 1.23 have it and warn
        return not hasattr(numpy, "bool")


def cuhk03_bool(module: ModuleType) -> None:
    """``eval_cuhk03`` sees a NumPy that has ``np.bool``.

    Args:
        module: ``fastreid.evaluation.rank``.
    """
    overlay(module, "np", bool=bool)


def rank_small_galleries(module: ModuleType) -> None:
    """Ranks in a gallery of fewer than ``max_rank`` identities as in a larger one.

    A query leaves out its own camera's pictures, so queries see galleries of different lengths.
    Where one is shorter than ``max_rank``, the ranking in Python cannot stack the curves, and the
    compiled one reads on in what the last query left there. Here pictures of nobody, farther than
    all others, fill the gallery up; right answers, mAP and mINP stay what they are.

    Args:
        module: ``fastreid.evaluation.rank``.
    """

    def evaluate_rank(
        stock: Callable[..., Any],
        distmat: Any,
        q_pids: Any,
        g_pids: Any,
        q_camids: Any,
        g_camids: Any,
        max_rank: int = 50,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
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

    wrap(module, "evaluate_rank", evaluate_rank)


def neighbours_in_small_galleries(module: ModuleType) -> None:
    """TEST.AQE.QE_K is at most the pictures that there are to expand a query with.

    Args:
        module: ``fastreid.evaluation.query_expansion``.
    """

    def aqe(
        stock: Callable[..., Any],
        query_feat: Any,
        gallery_feat: Any,
        qe_times: int = 1,
        qe_k: int = 10,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        pictures = len(query_feat) + len(gallery_feat)
        return stock(query_feat, gallery_feat, qe_times, min(qe_k, pictures - 1), *args, **kwargs)

    wrap(module, "aqe", aqe)


def reranking_in_small_galleries(module: ModuleType) -> None:
    """TEST.RERANK.K1 is at most the pictures that there are.

    The search fills up with -1, which FastReID takes for the last picture, and a large K1 asks for
    more memory than there is.

    Args:
        module: ``fastreid.utils.compute_dist``.
    """

    def distance(
        stock: Callable[..., Any], features: Any, k1: int = 20, *args: Any, **kwargs: Any
    ) -> Any:
        return stock(features, min(k1, len(features)), *args, **kwargs)

    wrap(module, "compute_jaccard_distance", distance)


_COUNTS = ("num_vis", "max_rank")


def numbers_of_the_command_line(module: ModuleType) -> None:
    """``vis_rank_list`` takes numbers as text, as demo/visualize_result.py hands them on.

    Args:
        module: ``fastreid.utils.visualizer``.
    """

    def vis_rank_list(stock: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(stock).bind(self, *args, **kwargs)
        call.arguments.update(
            {name: int(call.arguments[name]) for name in _COUNTS if name in call.arguments}
        )
        return stock(*call.args, **call.kwargs)

    wrap(module.Visualizer, "vis_rank_list", vis_rank_list)
