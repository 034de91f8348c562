"""What a search writes: numbers of each epoch, and at its end the derived network.

That is a config that FastReID trains, and the supernet's weights cut down to it.
"""

import copy
import logging
import os
from typing import Any, Dict

import torch
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn

from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.integration import config
from fastreid_rib.integration.search.cost import search_table
from fastreid_rib.search import Space, narrow

logger = logging.getLogger(__name__)

CONFIG = "searched.yml"
"""The config of the derived network, in the search's OUTPUT_DIR."""

WEIGHTS = "searched.pth"
"""The supernet's weights cut down to it, which the config's MODEL.WEIGHTS names."""


class SearchResults(HookBase):
    """Reports on a search once an epoch, and writes the derived network when it is over."""

    def _model(self) -> Any:
        return getattr(self.trainer.model, "module", self.trainer.model)

    def before_train(self) -> None:
        """Says what is searched."""
        search = self._model().search
        groups = search.cost.space.groups.items()
        widths = ", ".join(f"{group} {list(widths)}" for group, widths in groups)
        logger.info("Search of the widths of %s\n\n%s", widths, search_table(search))

    def after_step(self) -> None:
        """Puts an epoch's numbers into FastReID's event storage, whose writers write them to files.

        At its last step: those of ``after_epoch`` would come after the last line.
        """
        if (self.trainer.iter + 1) % self.trainer.iters_per_epoch:
            return
        search = self._model().search
        numbers = search.report()
        for name, value in numbers.items():
            self.trainer.storage.put_scalar("search/" + name, value, smoothing_hint=False)
        widths = ", ".join(f"{g} {numbers[f'width/{g}']:.1f}" for g in search.choices)
        logger.info(
            "Search, epoch %d: cost %.3f of the widest, %s",
            self.trainer.epoch,
            numbers["cost"],
            widths,
        )

    def after_train(self) -> None:
        """Writes config and weights, if the training went to its end."""
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        model = self._model()
        search = model.search
        widths = search.derive()
        cfg = config_of(self.trainer.cfg, widths)
        path = os.path.join(self.trainer.cfg.OUTPUT_DIR, CONFIG)
        with written_whole(path, "w") as file:
            file.write(cfg.dump())
        with written_whole(cfg.MODEL.WEIGHTS) as file:
            torch.save({"model": weights_of(model, search.cost.space, widths)}, file)
        logger.info(
            "The search is over: %s. Train %s with train_net.py.\n\n%s",
            ", ".join(f"{group} {width}" for group, width in widths.items()),
            path,
            search_table(search, widths),
        )


def config_of(cfg: Any, widths: Dict[str, int]) -> Any:
    """The config that trains a network of some widths, from that of its search.

    It starts from the supernet's weights; with MODEL.WEIGHTS "" as the search did, from pretrained
    ones if MODEL.BACKBONE.PRETRAIN says so, else from scratch. The number of identities is left to
    FastReID.
    """
    changes = {
        "MODEL.SEARCH.ENABLED": False,
        "MODEL.SEARCH.WIDTHS": tuple(widths.values()),
        "MODEL.WEIGHTS": os.path.join(cfg.OUTPUT_DIR, WEIGHTS),
        "MODEL.HEADS.NUM_CLASSES": 0,
        "OUTPUT_DIR": os.path.join(cfg.OUTPUT_DIR, "searched"),
    }
    return config.changed(cfg, changes)


def weights_of(model: Any, space: Space, widths: Dict[str, int]) -> Dict[str, torch.Tensor]:
    """The supernet's state_dict, cut down to some widths; without RIB's statistics."""
    backbone: nn.Module = copy.deepcopy(model.backbone)
    narrow(backbone, space, widths)
    state = {**model.state_dict(), **backbone.state_dict(prefix="backbone.")}
    return {name: value for name, value in state.items() if not name.startswith("search.")}
