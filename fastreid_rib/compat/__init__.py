"""FastReID on today's machines: each defect is mended where it is present.

The import hook (`fastreid_rib.activation`) wraps the execution of each FastReID module in
`repairing`. ``FASTREID_RIB_DISABLE`` switches repairs off: ``all`` (or ``1``), or their names with
commas between them. docs/reference/repairs.md lists all of them.
"""

import logging

from fastreid_rib.base import disabled
from fastreid_rib.compat import (  # noqa: F401  each file declares its repairs
    checkpoint,
    cpu,
    datasets,
    evaluation,
    libraries,
    pictures,
    projects,
    readers,
    training,
)
from fastreid_rib.compat.repairs import (
    REPAIRS,
    Repair,
    RepairError,
    active,
    repair_loaded,
    repairing,
)

_unknown = disabled() - {"all", "register"} - {of.name for of in REPAIRS}
if _unknown:
    logging.getLogger("fastreid").warning(
        "FASTREID_RIB_DISABLE names %s, which is no repair: see docs/reference/repairs.md.",
        ", ".join(sorted(_unknown)),
    )

__all__ = ["REPAIRS", "Repair", "RepairError", "active", "repair_loaded", "repairing"]
