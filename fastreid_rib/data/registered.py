"""All data sets of this package: importing this module registers them with FastReID.

Modules and not names: one of them may be what loaded FastReID, and is half made then.
"""

from fastreid_rib.data import benchmarks, folder, synthetic

__all__ = ["benchmarks", "folder", "synthetic"]
