"""FastReID on today's machines: each defect of `repairs` is mended where it is present.

The import hook (`fastreid_rib.activation`) wraps the execution of each FastReID module in
`repairing`. ``FASTREID_RIB_DISABLE`` switches repairs off: ``all`` (or ``1``), or their names with
commas between them. docs/reference/repairs.md explains each.
"""

import logging
import sys
from contextlib import ExitStack, contextmanager
from typing import Iterator, List, Set

from fastreid_rib.base.switches import disabled
from fastreid_rib.compat.repairs import REPAIRS, Repair

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
