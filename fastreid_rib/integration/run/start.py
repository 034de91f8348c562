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


def extend_engine(defaults: Any) -> None:
    """Wraps FastReID's ``default_setup``, which every training script calls first, and its trainer.

    The trainer checks, before the first step, what can be seen of the data and the network only.
    """

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

    def auto_scale_hyperparams(stock: Callable[..., Any], cfg: Any, num_classes: int) -> Any:
        if config.names_rib(cfg):
            agreement.compare_identities(num_classes)
        own_keys.check_identities(cfg, num_classes)
        return stock(cfg, num_classes)

    def build_model(stock: Callable[..., Any], cls: Any, cfg: Any) -> Any:
        model = stock(cls, cfg)
        own_keys.check_network(cfg, model)
        return model

    wrap(defaults, "default_setup", default_setup)
    wrap(defaults.DefaultTrainer, "auto_scale_hyperparams", auto_scale_hyperparams)
    wrap(defaults.DefaultTrainer, "build_model", build_model)
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
    from fastreid_rib.base import __version__
    from fastreid_rib.ops import backends

    if rank_and_size()[0]:
        return
    backend = "not in use"
    if config.names_rib(cfg):
        backend = backends.explain(cfg.MODEL.LOSSES.RIB.BACKEND, torch.device(cfg.MODEL.DEVICE))
    logger.info(
        f"fastreid-rib {__version__}; fastreid from {fastreid.__file__}; "
        f"torch {torch.__version__}; repairs: {', '.join(compat.active()) or 'none'}; "
        f"loss backend: {backend}"
    )
    if config.late_rib(cfg):
        logger.warning(config.late_rib(cfg))
