"""Names that FastReID imports and that are no longer there, or never were."""

import importlib
import importlib.util
import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Iterator

from fastreid_rib.compat.repairs import repair

_UNDECLARED = ("six", "matplotlib", "tqdm", "faiss", "tensorboard", "mat4py")


@repair(
    "fastreid.data.build",
    "fastreid.evaluation.testing",
    defect="two modules import Mapping from collections, which Python 3.10 took away",
    where="Python >= 3.10",
    present=lambda: sys.version_info >= (3, 10),  # to ask `collections` warns before that
)
def collections_mapping() -> Iterator[None]:
    """The name is lent while those two modules load.

    Left in place it would mislead libraries that test ``hasattr(collections, "Mapping")``.
    """
    import collections
    import collections.abc

    collections.Mapping = collections.abc.Mapping  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del collections.Mapping  # type: ignore[attr-defined]


def torch_lacks_six() -> bool:
    """Torch 2.0 dropped ``torch._six``."""
    return "torch._six" not in sys.modules and importlib.util.find_spec("torch._six") is None


@repair(
    "fastreid.data.build",
    defect="data/build.py imports torch._six, which torch 2 took away",
    where="torch >= 2, `fastreid` of PyPI",
    present=torch_lacks_six,
)
def torch_six() -> Iterator[None]:
    """The module is lent while that one loads."""
    with _lent_six(string_classes=str):
        yield


def torch_lacks_containers() -> bool:
    """Torch 1.9 dropped ``container_abcs`` from ``torch._six``, before all of it."""
    if torch_lacks_six():
        return True
    return not hasattr(importlib.import_module("torch._six"), "container_abcs")


@repair(
    "fastface.utils_amp",
    defect="projects/FastFace imports container_abcs from torch._six, which torch 1.9 took away",
    where="torch >= 1.9",
    present=torch_lacks_containers,
)
def torch_containers() -> Iterator[None]:
    """The name is lent while that module loads."""
    with _lent_six(container_abcs=importlib.import_module("collections.abc")):
        yield


@contextmanager
def _lent_six(**names: Any) -> Iterator[None]:
    found = sys.modules.get("torch._six")
    sys.modules["torch._six"] = stub = ModuleType("torch._six")
    vars(stub).update(names)
    try:
        yield
    finally:
        del sys.modules["torch._six"]
        if found is not None:
            sys.modules["torch._six"] = found


@repair(
    "fastreid.engine",
    "fastreid.utils.visualizer",
    "fastreid.utils.compute_dist",
    "fastretri.retri_evaluator",
    "fastattr.datasets",
    "fastface.face_evaluator",
    defect="packages that FastReID uses and does not declare fail without a hint",
    where="fresh environments",
)
def dependencies() -> Iterator[None]:
    """The error says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _UNDECLARED:
            raise
        package = "faiss-cpu" if error.name == "faiss" else error.name
        raise ModuleNotFoundError(
            f"FastReID needs {error.name}, which its own requirements leave out: "
            f"write `python -m pip install {package}`",
            name=error.name,
        ) from error


@repair(
    "fastclas",
    defect="projects/FastClas imports a data set that is not in FastReID's repository",
)
def clas_data_set() -> Iterator[None]:
    """An empty module is lent for it; the data sets that are there work."""
    name = "fastclas.distracted_driver"
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = ModuleType(name)
    yield


@repair(
    "fastreid.evaluation",
    defect="demo/visualize_result.py imports evaluate_rank from where it is not",
)
def evaluate_rank(module: ModuleType) -> None:
    """The name is there too.

    Loaded when it is asked for: its module looks for the compiled ranking when it is
    imported, and the evaluator compiles that before.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 (a module's, PEP 562)
        if name == "evaluate_rank":
            return importlib.import_module("fastreid.evaluation.rank").evaluate_rank
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    if "evaluate_rank" not in vars(module):
        vars(module).setdefault("__getattr__", __getattr__)


@repair(
    "fastreid.config.defaults",
    defect="configs of projects/NAIC20 have SOLVER.FREEZE_FC_ITERS, which FastReID took away",
)
def retired_keys(module: ModuleType) -> None:
    """The key warns and is ignored."""
    key = "SOLVER.FREEZE_FC_ITERS"
    if "FREEZE_FC_ITERS" not in module._C.SOLVER and not module._C.key_is_deprecated(key):
        module._C.register_deprecated_key(key)
