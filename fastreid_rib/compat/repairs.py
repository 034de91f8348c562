"""How a repair of FastReID is declared, put in place, and refused where it does not fit.

A repair is one function under :func:`repair`, in the file of its theme. The decorator says where it
acts, what is wrong there and on which machines; the first paragraph of the docstring says what
happens instead. The function's own name is what ``FASTREID_RIB_DISABLE`` calls it, with hyphens.
"""

import functools
import inspect
import logging
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, FrozenSet, Iterator, List, Tuple, TypeVar

from fastreid_rib.base import disabled
from fastreid_rib.base.patching import wrap

Stock = Callable[..., Any]
"""What FastReID has at the place of a repair: its function, or one that is mended already."""

_Mend = TypeVar("_Mend", bound=Callable[..., Any])


@dataclass
class Repair:
    """One defect of FastReID and how it is mended; :func:`repair` has the other attributes."""

    name: str  # what ``FASTREID_RIB_DISABLE`` calls it
    mend: Callable[..., Any]  # the function that was declared
    targets: Tuple[str, ...]
    defect: str
    where: str
    essential: bool
    acted: bool = False  # in this process
    failed: bool = False  # it did not fit this FastReID, which was said

    @property
    def modules(self) -> FrozenSet[str]:
        """The modules of FastReID that it acts on when they are loaded."""
        return frozenset(target.partition(":")[0] for target in self.targets)

    @property
    def instead(self) -> str:
        """What happens with it: the first paragraph of the function's docstring."""
        return (inspect.getdoc(self.mend) or "").partition("\n\n")[0].replace("\n", " ")

    @property
    def surrounds(self) -> bool:
        """Whether it acts while a module executes, and not after it."""
        return inspect.isgeneratorfunction(self.mend)


class RepairError(RuntimeError):
    """An essential repair does not fit: it expected something else than what was found."""

    def __init__(self, name: str, expected: str, found: str) -> None:
        (of,) = (of for of in REPAIRS if of.name == name)
        off = ",".join(sorted({*disabled(), name}))
        super().__init__(
            f"fastreid-rib: the repair {name} does not fit this FastReID, and without it "
            f"{of.defect}. Expected {expected}, found {found}. If this FastReID is free of that "
            f"defect, switch the repair off: write FASTREID_RIB_DISABLE={off} before the command."
        )


class _MisfitError(Exception):
    """A place of FastReID is not what a repair was written for: (expected, found)."""


REPAIRS: List[Repair] = []


def repair(
    *targets: str, defect: str, where: str = "everywhere", essential: bool = False
) -> Callable[[_Mend], _Mend]:
    """Declares a function to be a repair of FastReID.

    A function that yields surrounds the execution of the modules, for defects of their imports. Any
    other acts once they have executed: on a module, as ``mend(module)``; on a function or a method,
    whose calls become ``mend(stock, *args, **kwargs)``. What of its parameters it names must be
    what FastReID names them.

    Args:
        targets: ``"module"``, ``"module:function"`` or ``"module:Class.method"``.
        defect: what goes wrong without it, in a part of a sentence.
        where: on which machines, or with which data, in words. Elsewhere it changes nothing.
        essential: whether FastReID continues in silence without it, with a training that learns
            nothing or is another one, or with wrong numbers. Such a one that does not fit is an
            error, others are a warning.
    """

    def declare(mend: _Mend) -> _Mend:
        name = mend.__name__.replace("_", "-")
        REPAIRS.append(Repair(name, mend, targets, defect, where, essential))
        return mend

    return declare


@contextmanager
def repairing(module_name: str) -> Iterator[None]:
    """Surrounds the execution of one FastReID module with the repairs that concern it.

    Args:
        module_name: its full name; it stands in ``sys.modules`` when the body ends.

    Raises:
        RepairError: an essential repair does not fit it.
    """
    with ExitStack() as stack:
        for of in _wanted(module_name):
            if of.surrounds:
                stack.enter_context(contextmanager(of.mend)())
                of.acted = True
        yield
    _mend(module_name)


def repair_loaded() -> None:
    """Mends the FastReID modules that were loaded before this package was.

    Raises:
        RepairError: an essential repair does not fit one of them.
    """
    for name in sorted(name for of in REPAIRS for name in of.modules):
        # A module that is still executing has its turn in `repairing`.
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and not getattr(spec, "_initializing", False):
            _mend(name)


def active() -> List[str]:
    """Names of the repairs that acted in this process."""
    return [of.name for of in REPAIRS if of.acted]


def _wanted(module_name: str) -> List[Repair]:
    off = disabled()
    if "all" in off:
        return []
    return [of for of in REPAIRS if module_name in of.modules and of.name not in off]


def _mend(module_name: str) -> None:
    for of in _wanted(module_name):
        if of.surrounds or of.failed:
            continue
        try:
            _apply(of, sys.modules[module_name])
            of.acted = True
        except Exception as error:
            told = isinstance(error, _MisfitError)
            expected, found = error.args if told else (f"{module_name} of 1.3", repr(error))
            if of.essential:
                raise RepairError(of.name, expected, found) from error
            # A FastReID that was changed at this place must still be usable.
            of.failed = True
            logging.getLogger("fastreid").warning(
                "fastreid-rib: the repair %s does not fit this FastReID, which is left as it is: "
                "expected %s, found %s.",
                of.name,
                expected,
                found,
            )


def _apply(of: Repair, module: ModuleType) -> None:
    for target in of.targets:
        home, _, path = target.partition(":")
        if home != module.__name__:
            continue
        if not path:
            of.mend(module)
            continue
        *outer, attribute = path.split(".")
        try:
            owner: Any = functools.reduce(getattr, outer, module)
            stock = getattr(owner, attribute)
        except AttributeError as error:
            raise _MisfitError(target, repr(error)) from error
        _check_parameters(target, stock, of.mend)
        wrap(owner, attribute, of.mend)


def _check_parameters(target: str, stock: Stock, mend: Callable[..., Any]) -> None:
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    ours = list(inspect.signature(mend).parameters.values())[1:]
    there = inspect.signature(stock).parameters.values()
    expected = [p.name for p in ours if p.kind is named]
    found = [p.name for p in there if p.kind is named][: len(expected)]
    if found != expected and not any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in there):
        raise _MisfitError(f"{target}({', '.join(expected)}, ...)", f"({', '.join(found)}, ...)")
