"""Occluded and free queries, each evaluated apart.

FastReID's evaluation has one row, over all queries, and what a method does for people who are
partly hidden is lost in it. Where it is known which queries those are, two rows come besides::

    SyntheticReID | ...    SyntheticReID occluded | ...    SyntheticReID free | ...

What is ranked are the distances that FastReID has computed, by its own ranking. Trainers that bring
another ``build_evaluator`` keep theirs, and have one row.
"""

import contextlib
import logging
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
from fastreid.evaluation.evaluator import DatasetEvaluator

from fastreid_rib.base.patching import wrap
from fastreid_rib.base.pictures import unanswered
from fastreid_rib.integration.evaluation.occluded import which_are_occluded

logger = logging.getLogger(__name__)

PARTS = ("occluded", "free")
"""What the queries are parted into: "occluded/mAP" is a key of the results."""


class PartsEvaluator(DatasetEvaluator):
    """An evaluator of FastReID, which ranks the occluded and the free queries apart besides."""

    def __init__(self, evaluator: DatasetEvaluator, occluded: np.ndarray) -> None:
        """Stands before another evaluator.

        Args:
            evaluator: a ``ReidEvaluator``, on the process that evaluates.
            occluded: (queries,) bool, in the order of the test loader.
        """
        self._evaluator = evaluator
        self._masks = dict(zip(PARTS, (occluded, ~occluded)))

    def reset(self) -> None:
        """As FastReID's."""
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """As FastReID's."""
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Dict[str, float]:
        """As FastReID's.

        Returns:
            What FastReID returns, and behind it "occluded/Rank-1" and the others in percent. A part
            of whose queries none has a right answer in the gallery is left out, with a warning.
        """
        with _ranked() as rankings:
            results = self._evaluator.evaluate()
        (ranking,) = rankings
        dist, q_pids, g_pids, q_camids, g_camids = ranking
        answered = _answered(*ranking[1:])
        for part, mask in self._masks.items():
            if not answered[mask].any():
                logger.warning("No %s query has a right answer in the gallery.", part)
                continue
            # FastReID's ranking drops the queries that have no answer itself
            rows = dist[mask], q_pids[mask], g_pids, q_camids[mask], g_camids
            for metric, value in _accuracy(*rows).items():
                results[f"{part}/{metric}"] = value
        return results


@contextlib.contextmanager
def _ranked() -> Iterator[List[Tuple[np.ndarray, ...]]]:
    """Lists what FastReID ranks: its evaluator hands out neither distances nor identities."""
    from fastreid.evaluation import rank  # not at the top: the evaluator compiles it first

    stock, rankings = rank.evaluate_rank, []

    def evaluate_rank(*args: Any) -> Any:
        rankings.append(args)
        return stock(*args)

    rank.evaluate_rank = evaluate_rank
    try:
        yield rankings
    finally:
        rank.evaluate_rank = stock


def _answered(
    q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray
) -> np.ndarray:
    """Which queries have their identity in the gallery, by another camera: (queries,) bool."""
    queries = [("", *item) for item in zip(q_pids.tolist(), q_camids.tolist())]
    gallery = [("", *item) for item in zip(g_pids.tolist(), g_camids.tolist())]
    return ~np.array(unanswered(queries, gallery), dtype=bool)


def _accuracy(*ranking: np.ndarray) -> Dict[str, float]:
    from fastreid.evaluation import rank

    cmc, precision, penalty = rank.evaluate_rank(*ranking)
    accuracy = {f"Rank-{r}": cmc[r - 1] * 100 for r in (1, 5, 10)}
    return dict(accuracy, mAP=np.mean(precision) * 100, mINP=np.mean(penalty) * 100)


def extend_trainer(defaults: Any) -> None:
    """Evaluates the parts where they are known, and prints a row for each.

    Args:
        defaults: the module ``fastreid.engine.defaults``.
    """
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
        return loader, evaluator if occluded is None else PartsEvaluator(evaluator, occluded)

    def print_csv_format(stock: Callable[..., None], results: Any) -> None:
        rows: Dict[str, Any] = {part: OrderedDict() for part in ("", *PARTS)}
        for key, value in results.items():
            part, _, metric = key.rpartition("/")
            if part in PARTS:
                rows[part][metric] = value
            else:
                rows[""][key] = value
        whole = rows.pop("")
        if len(whole) == len(results):
            return stock(results)
        stock(whole)
        dataset = results.pop("dataset")  # as FastReID does: it is no result
        for part, row in rows.items():
            if row:
                stock(OrderedDict(row, dataset=f"{dataset} {part}"))

    wrap(defaults.DefaultTrainer, "build_evaluator", build_evaluator)
    wrap(testing, "print_csv_format", print_csv_format)
