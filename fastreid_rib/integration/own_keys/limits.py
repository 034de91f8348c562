"""FastReID's own keys at values that it cannot train or evaluate with are refused before the run.

By name, with what was expected. What can be told from the config alone is in the table of `rules`;
what needs the number of processes, the data or the network is here.
"""

from typing import Any, Callable, Iterator

from fastreid_rib.base.evaluating import evaluated
from fastreid_rib.base.patching import wrap
from fastreid_rib.integration import config
from fastreid_rib.integration.keys import at
from fastreid_rib.integration.own_keys.rules import RULES

# The keys that matter to an evaluation alone begin with one of these.
_EVALUATION = (
    "DATASETS.TESTS",
    "INPUT.CROP.SIZE",
    "INPUT.SIZE_TEST",
    "MODEL.BACKBONE",
    "MODEL.PIXEL",
    "TEST.AQE",
    "TEST.RERANK",
)


def check(cfg: Any, processes: int = 1, training: bool = True) -> None:
    """Refuses what FastReID cannot train or evaluate with.

    Args:
        cfg: a FastReID config.
        processes: of the run, on all machines.
        training: whether the run trains; otherwise it evaluates alone.

    Raises:
        ValueError: the first key that cannot be what it is, what it must be, and what it is.
    """
    for refusal in refusals(cfg, processes, training):
        raise refusal


def refusals(cfg: Any, processes: int = 1, training: bool = True) -> Iterator[ValueError]:
    """All that :func:`check` could raise, in order."""
    for rule in RULES:
        value = at(cfg, rule.key)
        concerned = training or rule.key.startswith(_EVALUATION)
        if concerned and rule.applies(cfg) and not rule.range.holds(value):
            yield _refusal(rule.key, rule.range.text, value, rule.instead)
    for key in ("SOLVER.IMS_PER_BATCH", "TEST.IMS_PER_BATCH"):
        if at(cfg, key) < processes and (training or key.startswith("TEST")):
            each = " (an image for each process)" if processes > 1 else ""
            yield _refusal(key, f"at least {processes}{each}", at(cfg, key))
    if training:
        yield from _of_batches(cfg, processes)
        if cfg.MODEL.META_ARCHITECTURE == "Distiller":
            yield from _of_teachers(cfg)


def _refusal(key: str, expected: str, value: Any, instead: str = "") -> ValueError:
    return ValueError(f"{key} must be {expected}, but is {value!r}{instead}.")


def _of_batches(cfg: Any, processes: int) -> Iterator[ValueError]:
    images = cfg.SOLVER.IMS_PER_BATCH
    neck = cfg.MODEL.HEADS.WITH_BNNECK and cfg.MODEL.HEADS.NORM in ("BN", "GhostBN")
    if neck and images // processes < 2:
        yield _refusal(
            "SOLVER.IMS_PER_BATCH",
            f"at least {2 * processes}, as batch norm (MODEL.HEADS.WITH_BNNECK) needs two images",
            images,
        )
    queue, batch = cfg.MODEL.QUEUE_SIZE, max(1, images // processes * processes)
    if cfg.MODEL.META_ARCHITECTURE == "MoCo" and (queue < batch or queue % batch):
        near = max(1, round(queue / batch)) * batch
        yield _refusal(
            "MODEL.QUEUE_SIZE", "a multiple of SOLVER.IMS_PER_BATCH", queue, f"; {near} is one"
        )


def _of_teachers(cfg: Any) -> Iterator[ValueError]:
    configs, weights = cfg.KD.MODEL_CONFIG, cfg.KD.MODEL_WEIGHTS
    if len(weights) < len(configs):
        yield _refusal("KD.MODEL_WEIGHTS", "a file for each of KD.MODEL_CONFIG", weights)
    if not configs and not cfg.KD.EMA.ENABLED:
        yield _refusal(
            "KD.MODEL_CONFIG", "at least one teacher (or KD.EMA.ENABLED be True)", configs
        )


def extend_trainer(defaults: Any) -> None:
    """Checks, before the first step, what can be seen of the data and the network only.

    Args:
        defaults: the module ``fastreid.engine.defaults``.
    """

    def auto_scale_hyperparams(stock: Callable[..., Any], cfg: Any, num_classes: int) -> Any:
        check_identities(cfg, num_classes)
        return stock(cfg, num_classes)

    def build_model(stock: Callable[..., Any], cls: Any, cfg: Any) -> Any:
        model = stock(cls, cfg)
        check_network(cfg, model)
        return model

    wrap(defaults.DefaultTrainer, "auto_scale_hyperparams", auto_scale_hyperparams)
    wrap(defaults.DefaultTrainer, "build_model", build_model)


def check_identities(cfg: Any, identities: int) -> None:
    """Refuses a classifier that is too small for the training set.

    Args:
        cfg: a FastReID config.
        identities: in the training set.

    Raises:
        ValueError: naming MODEL.HEADS.NUM_CLASSES.
    """
    classes = cfg.MODEL.HEADS.NUM_CLASSES
    named = "CrossEntropyLoss" in config.loss_names(cfg)
    classifies = named or cfg.MODEL.HEADS.CLS_LAYER != "Linear"
    if classifies and 0 < classes < identities:
        raise _refusal(
            "MODEL.HEADS.NUM_CLASSES",
            f"0, or at least {identities}, the identities of the training set",
            classes,
        )


def check_network(cfg: Any, model: Any) -> None:
    """Refuses pictures that are too small for a backbone, and another MODEL.BACKBONE.FEAT_DIM.

    One black picture of each size goes through the backbone, in evaluation mode: nothing of the
    model changes. Architectures other than FastReID's own are left alone, and so are sizes that
    are up to the pictures.

    Args:
        cfg: a FastReID config.
        model: what was built from it.

    Raises:
        ValueError: naming the key.
    """
    import torch

    if cfg.MODEL.META_ARCHITECTURE not in config.KNOWN_LOSSES:
        return
    for key in ("INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"):
        size = at(cfg, key)
        if len(size) != 2 or min(size) <= 0 or cfg.INPUT.CROP.ENABLED:
            continue
        with evaluated(model):
            try:
                found = model.backbone(torch.zeros(1, 3, *size, device=model.device))
            except (AssertionError, RuntimeError) as error:
                raise ValueError(
                    f"{key} {list(size)} cannot go through {cfg.MODEL.BACKBONE.NAME}: {error}. "
                    "Write a larger size, or see to the settings of MODEL.BACKBONE."
                ) from error
        channels = getattr(found, "shape", (0, cfg.MODEL.BACKBONE.FEAT_DIM))[1]
        if cfg.MODEL.META_ARCHITECTURE != "MGN" and channels != cfg.MODEL.BACKBONE.FEAT_DIM:
            raise _refusal(
                "MODEL.BACKBONE.FEAT_DIM",
                f"{channels}, as {cfg.MODEL.BACKBONE.NAME} gives",
                cfg.MODEL.BACKBONE.FEAT_DIM,
            )
