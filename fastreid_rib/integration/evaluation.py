"""Occluded and free queries, each evaluated apart.

FastReID's evaluation has one row, over all queries, and what a method does for people who are
partly hidden is lost in it. Where it is known which queries those are, two rows are added::

    SyntheticReID | ...    SyntheticReID occluded | ...    SyntheticReID free | ...

What is ranked are the distances that FastReID has computed, by its own ranking. Trainers that bring
another ``build_evaluator`` keep theirs, and have one row.

A data set says which they are by ``occluded_queries``, a property or another attribute that its
class declares: the paths of those queries, as they stand in its list of queries; None if it does
not know them. For one that does not say, TEST.OCCLUDED names a text file with the file name of one
query a line; where it names queries of a data set, it counts.
"""

import functools
import logging
import os
from collections import OrderedDict
from typing import Any, Callable, Dict, FrozenSet, Optional, Sequence

import numpy as np

from fastreid_rib.base.patching import wrap

logger = logging.getLogger(__name__)

PARTS = ("occluded", "free")
"""What the queries are parted into: "occluded/mAP" is a key of the results."""


def listed(cfg: Any) -> FrozenSet[str]:
    """The file names in the list of TEST.OCCLUDED, without their folders; none if it is empty.

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
    """Which queries, by their paths, are occluded; the log says how many, and who says so.

    A mistake in the list is a warning: an error would end a training at its evaluation.

    Returns:
        (queries,) bool; or None if nothing is known, or if all queries are alike.
    """
    names, source = listed(cfg), f"{cfg.TEST.OCCLUDED} says"
    keys = [os.path.basename(path) for path in queries]
    own = _told_by(dataset) if names.isdisjoint(keys) else None
    if own is not None:
        names, source, keys = own, "the data set itself says", list(queries)
    elif names.isdisjoint(keys):
        if names:
            logger.warning(
                f"{dataset} is not evaluated by occlusion: none of the {len(names)} names in "
                f"TEST.OCCLUDED, such as {min(names)}, is one of its queries, such as "
                f"{min(keys, default='none')}."
            )
        return None
    unknown = names.difference(keys)
    if unknown:
        logger.warning(
            f"{len(unknown)} of the {len(names)} occluded queries that {source} are none of "
            f"{dataset}, such as {min(unknown)}: misspelt, or of another data set."
        )
    occluded = np.array([key in names for key in keys])
    logger.info(
        f"{dataset}: {occluded.sum()} of {len(occluded)} queries are occluded, as {source}."
    )
    # Of some benchmarks all are, and their own row is the one of the occluded.
    return occluded if 0 < occluded.sum() < len(occluded) else None


def _told_by(dataset: str) -> Optional[FrozenSet[str]]:
    """The paths of the occluded queries, if the data set knows them."""
    from fastreid.data import build

    made = build.DATASET_REGISTRY._obj_map.get(dataset)  # not there: the trainer's own loader
    if not hasattr(made, "occluded_queries"):
        return None
    # FastReID keeps the lists of the data set it has made, and not the data set.
    own = made(root=build._root).occluded_queries
    return None if own is None else frozenset(own)


def evaluate_parts(evaluate: Callable[[], Any], occluded: np.ndarray) -> Any:
    """What an evaluator of FastReID finds, and the same of occluded and free queries apart.

    Args:
        evaluate: of a ``ReidEvaluator``, on the process that evaluates.
        occluded: (queries,) bool, in the order of the test loader.

    Returns:
        What FastReID returns, and after it "occluded/Rank-1" and the others in percent. A part of
        whose queries none has a right answer in the gallery is left out, with a warning.
    """
    from fastreid.evaluation import rank  # not at the top: the evaluator compiles it first

    stock, ranked = rank.evaluate_rank, []

    def evaluate_rank(*args: Any) -> Any:
        ranked.append(args)  # its evaluator hands out neither distances nor identities
        return stock(*args)

    rank.evaluate_rank = evaluate_rank
    try:
        results = evaluate()
    finally:
        rank.evaluate_rank = stock
    ((dist, q_pids, g_pids, q_camids, g_camids),) = ranked
    for part, mask in zip(PARTS, (occluded, ~occluded)):
        try:
            found = stock(dist[mask], q_pids[mask], g_pids, q_camids[mask], g_camids)
        except AssertionError:  # so FastReID ends where there is nothing to rank
            logger.warning("No %s query has a right answer in the gallery.", part)
            continue
        cmc, precision, penalty = found
        results.update((f"{part}/Rank-{r}", cmc[r - 1] * 100) for r in (1, 5, 10))
        results[f"{part}/mAP"] = np.mean(precision) * 100
        results[f"{part}/mINP"] = np.mean(penalty) * 100
    return results


def extend_trainer(defaults: Any) -> None:
    """Evaluates the parts where they are known, and prints a row for each."""
    from fastreid.evaluation import testing

    def build_evaluator(
        stock: Callable[..., Any], cls: Any, cfg: Any, dataset_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        loader, evaluator = stock(cls, cfg, dataset_name, *args, **kwargs)
        if not defaults.comm.is_main_process():  # the others only send what they have embedded
            return loader, evaluator
        items = getattr(loader.dataset, "img_items", [])  # a trainer's own loader may have none
        queries = [item[0] for item in items[: evaluator._num_query]]
        occluded = which_are_occluded(cfg, dataset_name, queries)
        if occluded is not None:
            evaluator.evaluate = functools.partial(evaluate_parts, evaluator.evaluate, occluded)
        return loader, evaluator

    def print_csv_format(stock: Callable[..., None], results: Any) -> None:
        rows: Dict[str, Any] = {part: OrderedDict() for part in ("", *PARTS)}
        dataset = results.pop("dataset")  # as FastReID does: it is no result
        for key, value in results.items():
            part, _, metric = key.rpartition("/")
            row, name = (part, metric) if part in PARTS else ("", key)
            rows[row][name] = value
        for part, row in rows.items():
            if row or not part:
                stock(OrderedDict(row, dataset=f"{dataset} {part}".rstrip()))

    wrap(defaults.DefaultTrainer, "build_evaluator", build_evaluator)
    wrap(testing, "print_csv_format", print_csv_format)
