"""What every part may use: the version, what is switched off, patching, files, ranks, words.

Every interpreter start pays for this file: it imports what Python has loaded by then.

Environment:
    FASTREID_RIB_DISABLE: a comma-separated list. ``1`` (or ``all``) switches the plugin off,
        ``register`` leaves only the repairs at work, the name of a repair switches that one off.
"""

from __future__ import annotations

import os

__version__ = "0.2.0"


def disabled() -> frozenset[str]:
    """What ``FASTREID_RIB_DISABLE`` switches off: names of repairs, ``register``, ``all``."""
    names = os.environ.get("FASTREID_RIB_DISABLE", "").replace(" ", "").split(",")
    return frozenset("all" if name == "1" else name for name in names if name not in ("", "0"))
