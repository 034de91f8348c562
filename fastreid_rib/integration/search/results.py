"""What a search writes: numbers of each epoch, and at its end the derived network.

The derived network is a config that FastReID trains, the supernet's weights cut down to it, and a
table in the log.
"""

import copy
import json
import logging
import os
from typing import Any, Dict, List

import torch
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from tabulate import tabulate
from torch import nn

from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.integration.search.cost import search_table
from fastreid_rib.search import Space, WidthSearch, narrow

logger = logging.getLogger(__name__)

PROGRESS = "search.jsonl"
"""In OUTPUT_DIR, a line for each epoch: cost, temperature, probabilities, entropies."""

PICTURE = "search.png"
"""The same as a picture."""

CONFIG = "searched.yml"
"""The config of the derived network, in the search's OUTPUT_DIR."""

WEIGHTS = "searched.pth"
"""The supernet's weights cut down to it, which the config's MODEL.WEIGHTS names."""


class SearchResults(HookBase):
    """Reports on a search once an epoch, and writes the derived network when it is over.

    Args:
        cfg: the trainer's config.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._progress = self._path(PROGRESS)

    def _path(self, name: str) -> str:
        return os.path.join(self.cfg.OUTPUT_DIR, name)

    def _model(self) -> Any:
        return getattr(self.trainer.model, "module", self.trainer.model)

    def before_train(self) -> None:
        """Says what is searched; a resumed run keeps the lines of the epochs before."""
        search = self._model().search
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
            kept = [e for e in self._written() if e["epoch"] < self.trainer.start_epoch]
            with written_whole(self._progress, "w") as file:
                file.write("".join(json.dumps(epoch) + "\n" for epoch in kept))

    def after_epoch(self) -> None:
        """Puts numbers into FastReID's event storage, and a line into the file."""
        search = self._model().search
        numbers = search.report()
        for name, value in numbers.items():
            self.trainer.storage.put_scalar("search/" + name, value, smoothing_hint=False)
        if comm.is_main_process():
            number, probabilities = self.trainer.epoch, search.probabilities()
            epoch = {"epoch": number, **numbers, "probabilities": probabilities}
            with open(self._progress, "a") as file:
                file.write(json.dumps(epoch) + "\n")
            widths = ", ".join(f"{g} {numbers[f'width/{g}']:.1f}" for g in probabilities)
            logger.info(
                "Search, epoch %d: cost %.3f of the widest, %s", number, numbers["cost"], widths
            )

    def after_train(self) -> None:
        """Writes config, weights, table and picture, if the training went to its end."""
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        model = self._model()
        search = model.search
        widths = search.derive()
        with written_whole(self._path(CONFIG), "w") as file:
            file.write(config_of(self.cfg, widths).dump())
        with written_whole(self._path(WEIGHTS)) as file:
            torch.save({"model": weights_of(model, search.cost.space, widths)}, file)
        draw(self._written(), search, self._path(PICTURE))
        logger.info(
            "The search is over. Train %s with train_net.py.\n%s\n\n%s",
            self._path(CONFIG),
            table(search, widths),
            search_table(search, widths),
        )

    def _written(self) -> List[Dict[str, Any]]:
        if not os.path.isfile(self._progress):
            return []
        with open(self._progress, encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def config_of(cfg: Any, widths: Dict[str, int]) -> Any:
    """The config that trains a network of some widths, from that of its search.

    It starts from the supernet's weights; with MODEL.WEIGHTS "" as the search did, from pretrained
    ones if MODEL.BACKBONE.PRETRAIN says so, else from scratch. The number of identities is left to
    FastReID.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SEARCH.ENABLED = False
    cfg.MODEL.SEARCH.WIDTHS = tuple(widths.values())
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, WEIGHTS)
    cfg.MODEL.HEADS.NUM_CLASSES = 0
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "searched")
    cfg.freeze()
    return cfg


def weights_of(model: Any, space: Space, widths: Dict[str, int]) -> Dict[str, torch.Tensor]:
    """The supernet's state_dict, cut down to some widths; without RIB's statistics."""
    backbone: nn.Module = copy.deepcopy(model.backbone)
    narrow(backbone, space, widths)
    state = {**model.state_dict(), **backbone.state_dict(prefix="backbone.")}
    return {name: value for name, value in state.items() if not name.startswith("search.")}


def table(search: WidthSearch, widths: Dict[str, int]) -> str:
    """Each group's choice, in Markdown."""
    numbers = search.report()
    rows = []
    for group, probabilities in search.probabilities().items():
        options = search.cost.space.groups[group]
        chosen = probabilities[options.index(widths[group])]
        offered = ", ".join(map(str, options))
        rows.append((group, offered, widths[group], chosen, numbers[f"entropy/{group}"]))
    headers = ("group", "widths", "chosen", "probability", "entropy, nats")
    return tabulate(rows, headers, "pipe", floatfmt=".2f")


def draw(progress: List[Dict[str, Any]], search: WidthSearch, path: str) -> None:
    """Draws how the cost of a search fell, and what became of each choice.

    Args:
        progress: for each epoch "epoch", "cost" (of the widest) and "probabilities" of each group.
        search: that made it.
        path: of the picture; matplotlib knows its format by the ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = search.cost.space.groups
    figure = Figure(figsize=(7, 2 + 1.1 * len(groups)), constrained_layout=True)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups) + 1, 1, sharex=True)
    epochs = [line["epoch"] for line in progress]
    axes[0].plot(epochs, [line["cost"] for line in progress], marker="o", markersize=3)
    axes[0].axhline(search.target / search.cost.widest, linestyle="--", color="gray")
    axes[0].set_ylabel("cost of\nthe widest")
    axes[0].set_ylim(0, 1.05)
    for axis, (group, widths) in zip(axes[1:], groups.items()):
        rows = [[line["probabilities"][group][i] for line in progress] for i in range(len(widths))]
        extent = (min(epochs) - 0.5, max(epochs) + 0.5, len(widths) - 0.5, -0.5)
        axis.imshow(rows, aspect="auto", vmin=0, vmax=1, cmap="Blues", extent=extent)
        axis.set_yticks(range(len(widths)))
        axis.set_yticklabels([str(width) for width in widths], fontsize=6)
        axis.set_ylabel(group)
    axes[-1].set_xlabel("epoch")
    figure.suptitle("Probability of each width")
    figure.savefig(path, dpi=100)
