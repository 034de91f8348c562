"""What a search writes: numbers of each epoch, and at its end the derived network."""

import json
import logging
import os
from typing import Any, Dict, List

from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm

from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.integration.search import derived_network, picture
from fastreid_rib.search import WidthSearch

logger = logging.getLogger(__name__)

PROGRESS = "search.jsonl"
"""In OUTPUT_DIR, a line for each epoch: cost, temperature, probabilities, entropies."""

PICTURE = "search.png"
"""The same as a picture."""


def read_progress(path: str) -> List[Dict[str, Any]]:
    """The lines of :data:`PROGRESS`; none if there is no such file."""
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class SearchResults(HookBase):
    """Reports on a search once an epoch, and writes the derived network when it is over.

    Args:
        cfg: the trainer's config.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def _search(self) -> WidthSearch:
        model = self.trainer.model
        return getattr(model, "module", model).search

    def before_train(self) -> None:
        """Says what is searched; a resumed run keeps the lines of the epochs before."""
        search = self._search()
        cost = search.cost
        logger.info(
            "Search of %d groups (%s): %.3g multiply-adds an image aimed at, of %.3g (narrowest) "
            "to %.3g (widest).",
            len(cost.space.groups),
            ", ".join(f"{name} {list(widths)}" for name, widths in cost.space.groups.items()),
            search.target,
            cost.narrowest,
            cost.widest,
        )
        if comm.is_main_process():
            kept = [line for line in read_progress(self._path(PROGRESS)) if self._is_past(line)]
            with written_whole(self._path(PROGRESS), "w") as file:
                for line in kept:
                    file.write(json.dumps(line) + "\n")

    def _is_past(self, line: Dict[str, Any]) -> bool:
        return line["epoch"] < self.trainer.start_epoch

    def after_epoch(self) -> None:
        """Puts numbers into FastReID's event storage, and a line into the file."""
        search = self._search()
        numbers = search.report()
        for name, value in numbers.items():
            self.trainer.storage.put_scalar("search/" + name, value, smoothing_hint=False)
        if comm.is_main_process():
            line = {
                "epoch": self.trainer.epoch,
                **numbers,
                "probabilities": search.probabilities(),
            }
            with open(self._path(PROGRESS), "a") as file:
                file.write(json.dumps(line) + "\n")
            logger.info(
                "Search, epoch %d: cost %.3f of the widest, %s",
                self.trainer.epoch,
                numbers["cost"],
                ", ".join(
                    f"{group} {numbers[f'width/{group}']:.1f}" for group in search.cost.space.groups
                ),
            )

    def after_train(self) -> None:
        """Writes config, weights, table and picture, if the training went to its end."""
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        search = self._search()
        widths = search.derive()
        derived_network.write(self.trainer.model, search, self.cfg, widths)
        picture.draw(
            read_progress(self._path(PROGRESS)), search.cost, search.target, self._path(PICTURE)
        )
        logger.info(
            "The search is over. Train %s with train_net.py.\n%s",
            self._path(derived_network.CONFIG),
            derived_network.table(search, widths),
        )

    def _path(self, name: str) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, name)
