"""Which queries are occluded, by their data set or by the list of TEST.OCCLUDED.

A data set says it by ``occluded_queries``, a property or another attribute that its class declares:
the paths of those queries, as they stand in its list of queries; None if it does not know them. For
one that does not say, TEST.OCCLUDED names a text file with the file name of one query a line; where
it names queries of a data set, it counts.
"""

import logging
import os
from typing import Any, FrozenSet, Optional, Sequence

import numpy as np

logger = logging.getLogger(__name__)


def listed(cfg: Any) -> FrozenSet[str]:
    """The file names in the list of TEST.OCCLUDED, without their folders.

    Args:
        cfg: a FastReID config.

    Returns:
        At least one name; or none if the key is empty.

    Raises:
        ValueError: the file cannot be read as text, or names nothing.
    """
    path = cfg.TEST.OCCLUDED
    if not path:
        return frozenset()
    expected = "TEST.OCCLUDED must be '' or a text file with the file name of one query a line"
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{expected}, but {path!r} cannot be read: {error}.") from error
    names = frozenset(os.path.basename(line.strip()) for line in lines) - {""}
    if not names:
        raise ValueError(
            f"{expected}, but {path!r} names none; write '' if nothing is known of the queries."
        )
    return names


def which_are_occluded(cfg: Any, dataset: str, queries: Sequence[str]) -> Optional[np.ndarray]:
    """Which queries of a data set are occluded; the log says how many, and who says so.

    A mistake in the list is a warning: an error would end a training at its evaluation.

    Args:
        cfg: a FastReID config.
        dataset: a name in FastReID's registry.
        queries: their paths.

    Returns:
        (queries,) bool; or None if nothing is known, or if all queries are alike.

    Raises:
        ValueError: see `listed`.
    """
    names, source = listed(cfg), f"{cfg.TEST.OCCLUDED} says"
    keys = [os.path.basename(path) for path in queries]
    told_by_itself = names.isdisjoint(keys)
    if told_by_itself:
        own = _told_by(dataset)
        if own is None:
            if names:
                logger.warning(
                    "%s is not evaluated by occlusion: none of the %d names in TEST.OCCLUDED, such "
                    "as %s, is one of its queries, such as %s.",
                    dataset,
                    len(names),
                    min(names),
                    min(keys, default="none"),
                )
            return None
        names, source, keys = own, "the data set itself says", list(queries)
    unknown = names.difference(keys)
    if unknown:
        logger.warning(
            "%d of the %d occluded queries that %s are none of %s, such as %s: misspelt, or of "
            "another data set.",
            len(unknown),
            len(names),
            source,
            dataset,
            min(unknown),
        )
    occluded = np.array([key in names for key in keys])
    if occluded.all() or not occluded.any():
        # Of some benchmarks all are, and their own row is the one of the occluded.
        logger.log(
            logging.INFO if occluded.all() and told_by_itself else logging.WARNING,
            "%s is not evaluated by occlusion: %s of its %d queries are occluded, as %s.",
            dataset,
            "all" if occluded.all() else "none",
            len(occluded),
            source,
        )
        return None
    logger.info(
        "%s: %d of %d queries are occluded, as %s.",
        dataset,
        occluded.sum(),
        len(occluded),
        source,
    )
    return occluded


def _told_by(dataset: str) -> Optional[FrozenSet[str]]:
    """The paths of the occluded queries, if the data set knows them."""
    from fastreid.data import build

    made = build.DATASET_REGISTRY._obj_map.get(dataset)  # not there: the trainer's own loader
    if not hasattr(made, "occluded_queries"):
        return None
    # FastReID keeps the lists of the data set it has made, and not the data set.
    own = made(root=build._root).occluded_queries
    return None if own is None else frozenset(own)
