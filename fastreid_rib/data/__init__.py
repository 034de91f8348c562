"""Data sets of this package in FastReID's dataset registry."""

import logging
from typing import Any, Callable

from fastreid_rib.base.patching import wrap

logger = logging.getLogger(__name__)


def register(dataset: Any) -> Any:
    """Registers a data set, unless there is one of its name; a decorator.

    A FastReID that was extended may have its own, and so may projects that register theirs later
    (FastReID's PartialReID does): theirs is taken, and the log says so.
    """
    # Not at the top: loading it may be what loads the data sets.
    from fastreid.data.datasets import DATASET_REGISTRY

    entries = DATASET_REGISTRY._obj_map

    def giving_way(stock: Callable[..., None], name: str, dataset: Any) -> None:
        if getattr(entries.get(name), "__module__", "").startswith("fastreid_rib."):
            logger.info("%s of %s is taken in place of fastreid-rib's.", name, dataset.__module__)
            del entries[name]
        stock(name, dataset)

    # The registry refuses a second entry: this package's module may have been loaded again.
    if dataset.__name__ not in entries:
        DATASET_REGISTRY.register(dataset)
    wrap(DATASET_REGISTRY, "_do_register", giving_way)
    return dataset
