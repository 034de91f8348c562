"""Names that FastReID imports and today's Python and torch no longer have."""

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ContextManager, Iterator

_UNDECLARED = ("six", "matplotlib", "tqdm", "faiss", "tensorboard", "mat4py")


def collections_lack_mapping() -> bool:
    """Python 3.10 moved the last abstract classes out of ``collections``."""
    return sys.version_info >= (3, 10)  # asking `collections` itself would warn before that


@contextmanager
def mapping_in_collections() -> Iterator[None]:
    """Lends ``collections.Mapping`` while a module executes; afterwards it is gone again.

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
    import importlib.util

    return "torch._six" not in sys.modules and importlib.util.find_spec("torch._six") is None


def torch_six() -> ContextManager[None]:
    """Lends a ``torch._six`` that holds ``string_classes`` while a module executes."""
    return _lent_six(string_classes=str)


def torch_lacks_containers() -> bool:
    """Torch 1.9 dropped ``container_abcs`` from ``torch._six``, before all of it."""
    if torch_lacks_six():
        return True
    import torch._six

    return not hasattr(torch._six, "container_abcs")


def torch_containers() -> ContextManager[None]:
    """Lends a ``torch._six`` that holds ``container_abcs`` while a module executes."""
    import collections.abc

    return _lent_six(container_abcs=collections.abc)


@contextmanager
def _lent_six(**names: Any) -> Iterator[None]:
    found = sys.modules.get("torch._six")
    stub = ModuleType("torch._six")
    vars(stub).update(names)
    sys.modules["torch._six"] = stub
    try:
        yield
    finally:
        del sys.modules["torch._six"]
        if found is not None:
            sys.modules["torch._six"] = found


@contextmanager
def undeclared_dependencies() -> Iterator[None]:
    """Says what to install when a package is missing that FastReID uses and does not declare.

    Raises:
        ModuleNotFoundError: as Python raises it, with the command that cures it.
    """
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
