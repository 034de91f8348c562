"""What a run says and settles before it trains.

The check of the config, the output folder, the seed, what the other ranks have, one log line.
"""

import logging
from typing import Any, Callable

from fastreid_rib.base.patching import wrap
from fastreid_rib.base.ranks import rank_and_size
from fastreid_rib.integration import config, evaluation, own_keys
from fastreid_rib.integration.run import agreement, output_folder, seeds

logger = logging.getLogger(__name__)


def extend_default_setup(defaults: Any) -> None:
    """Wraps FastReID's ``default_setup``, which every training script calls first."""

    def default_setup(stock: Callable[..., None], cfg: Any, args: Any) -> None:
        config.check(cfg)
        own_keys.check(cfg, rank_and_size()[1], not getattr(args, "eval_only", False))
        claim_output_folder(cfg, args)
        stock(cfg, args)
        # FastReID's handlers hang on its own logger: what this package says goes there too.
        logging.getLogger("fastreid_rib").parent = logging.getLogger("fastreid")
        agreement.compare_settings(cfg)
        seeds.seed(cfg.SEED)
        announce(cfg)

    wrap(defaults, "default_setup", default_setup)
    own_keys.extend_trainer(defaults)
    agreement.extend_trainer(defaults)  # is asked first: the ranks may have other data
    evaluation.extend_trainer(defaults)


def claim_output_folder(cfg: Any, args: Any) -> None:
    """Holds OUTPUT_DIR for a training; an evaluation may look on.

    Raises:
        output_folder.FolderInUseError: another training is writing there. Only a warning where the
            config asks for nothing of this plugin: FastReID alone would continue.
        OSError: the folder cannot be written.
    """
    if rank_and_size()[0] or getattr(args, "eval_only", False):
        return
    try:
        output_folder.claim(cfg.OUTPUT_DIR)
    except output_folder.FolderInUseError as error:
        if config.asks_for_plugin(cfg):
            raise
        logger.warning("%s", error)


def announce(cfg: Any) -> None:
    """Logs, on the first process, what is at work: versions, repairs, backend of the loss."""
    import fastreid
    import torch

    from fastreid_rib import compat
    from fastreid_rib.base.version import __version__
    from fastreid_rib.ops import backends

    if rank_and_size()[0]:
        return
    with_rib, rib = config.names_rib(cfg), cfg.MODEL.LOSSES.RIB
    backend = "not in use"
    if with_rib:
        backend = backends.explain(rib.BACKEND, torch.device(cfg.MODEL.DEVICE))
    logger.info(
        f"fastreid-rib {__version__}; fastreid from {fastreid.__file__}; "
        f"torch {torch.__version__}; repairs: {', '.join(compat.active()) or 'none'}; "
        f"loss backend: {backend}"
    )
    first = max(1, rib.WARMUP_EPOCHS)
    if with_rib and first >= cfg.SOLVER.MAX_EPOCH:
        logger.warning(
            "RIB would start at epoch %d, but SOLVER.MAX_EPOCH is %d: it will not train. Raise "
            "SOLVER.MAX_EPOCH or lower MODEL.LOSSES.RIB.WARMUP_EPOCHS.",
            first,
            cfg.SOLVER.MAX_EPOCH,
        )
