"""What FastReID's own keys must be, where it cannot train or evaluate with every value.

FastReID checks none of them: such a value shows as an error from deep inside torch, often only when
the training is over, or as a training that learns the wrong way round. Here it is refused before
the run, by name, with what was expected. A value that FastReID can work with is never refused, odd
as it may be: ``tests/integration/keys_at_edges.py`` lists the edges of each key. What torch or
torchvision refuse before the training, in plain words, is left to them.

What can be decided by the config alone is in the table :data:`RULES`; what needs the number of
processes, the data or the network comes after it.
"""

import re
from typing import Any, Callable, Iterator, List, NamedTuple, Tuple

from fastreid_rib.base.kept import evaluated
from fastreid_rib.compat.cpu import no_cuda
from fastreid_rib.integration import config
from fastreid_rib.integration.config import at
from fastreid_rib.settings.declaration import Range, above, at_least


class Rule(NamedTuple):
    """What the value of a key has to be."""

    key: str
    range: Range
    applies: Callable[[Any], bool] = lambda cfg: True  # whether the config uses the key at all
    instead: str = ""  # the rest of the message: what to write, where that is not plain


def _is(key: str, *values: Any) -> Callable[[Any], bool]:
    """Whether a key of the config has one of these values."""
    return lambda cfg: at(cfg, key) in values


def _on(feature: str) -> Callable[[Any], bool]:
    return _is(f"{feature}.ENABLED", True)


def _names(loss: str) -> Callable[[Any], bool]:
    return lambda cfg: loss in config.loss_names(cfg)


def _backbone(*names: str) -> Callable[[Any], bool]:
    return _is("MODEL.BACKBONE.NAME", *(f"build_{name}_backbone" for name in names))


def _each(node: str, keys: str, *rest: Any) -> List[Rule]:
    """The same rule for several keys of a node."""
    return [Rule(f"{node}.{key}", *rest) for key in keys.split()]


_FROM_ZERO, _FROM_ONE = at_least(0), at_least(1)
_COLOURS = Range(
    "one number, or one for each of the three colours", lambda value: len(value) in (1, 3)
)
_SIZE = Range(
    "one number or [height, width], all > 0 (or [0, 0]: pictures as large as they are)",
    lambda value: len(value) in (1, 2) and (value[0] <= 0 or all(v > 0 for v in value)),
)
_CROP_SIZE = Range(
    "one number or [height, width], all > 0",
    lambda value: len(value) in (1, 2) and min(value) > 0,
)
_CROP_SCALE = Range(
    "[smallest, largest] share of the picture, from 0 on",
    lambda value: len(value) == 2 and 0 <= value[0] <= value[1],
)
_CROP_RATIO = Range(
    "[smallest, largest] width over height, > 0",
    lambda value: len(value) == 2 and 0 < value[0] <= value[1],
)
_STRIDES = Range("(height, width), both > 0", lambda value: len(value) == 2 and min(value) > 0)
_BODY = Range(
    "without heads, which do not train in evaluation mode",
    lambda value: not any(name == "heads" or name.endswith("_head") for name in value),
)
_VIT = _backbone("vit")
# torch, its allocator on a CPU, cuDNN and cuBLAS
_NO_MEMORY = re.compile("out of memory|not enough memory|allocate memory|ALLOC_FAILED")
_STRIDE = _backbone("resnet", "resnext", "resnest", "repvgg", "regnet", "effnet")
_BY_IDENTITY = _is(
    "DATALOADER.SAMPLER_TRAIN",
    "NaiveIdentitySampler",
    "BalancedIdentitySampler",
    "SetReWeightSampler",
)
_LOSS = "; to train without it, take the loss out of MODEL.LOSSES.NAME, or write 0"

RULES: Tuple[Rule, ...] = (
    Rule("MODEL.BACKBONE.LAST_STRIDE", _FROM_ONE, _STRIDE),
    Rule("MODEL.BACKBONE.STRIDE_SIZE", _STRIDES, _VIT),
    Rule("MODEL.BACKBONE.DROP_PATH_RATIO", Range("< 1", lambda value: value < 1), _VIT),
    Rule("MODEL.BACKBONE.FEAT_DIM", _FROM_ONE),
    Rule("MODEL.HEADS.NUM_CLASSES", at_least(0, "0: as the training set has")),
    Rule(
        "MODEL.LOSSES.NAME",
        Range("at least one loss", bool),
        _is("MODEL.META_ARCHITECTURE", *config.KNOWN_LOSSES),
    ),
    Rule("MODEL.LOSSES.CE.SCALE", _FROM_ZERO, _names("CrossEntropyLoss"), _LOSS),
    Rule("MODEL.LOSSES.TRI.SCALE", _FROM_ZERO, _names("TripletLoss"), _LOSS),
    Rule("MODEL.LOSSES.CIRCLE.SCALE", _FROM_ZERO, _names("CircleLoss"), _LOSS),
    Rule("MODEL.LOSSES.COSFACE.SCALE", _FROM_ZERO, _names("Cosface"), _LOSS),
    Rule("MODEL.PIXEL_MEAN", _COLOURS),
    Rule(
        "MODEL.PIXEL_STD",
        Range(f"{_COLOURS.text}, none of them 0", lambda v: len(v) in (1, 3) and all(v)),
    ),
    *_each("INPUT", "SIZE_TRAIN SIZE_TEST", _SIZE),
    Rule("INPUT.CROP.SIZE", _CROP_SIZE, _on("INPUT.CROP")),
    Rule("INPUT.CROP.SCALE", _CROP_SCALE, _on("INPUT.CROP")),
    Rule("INPUT.CROP.RATIO", _CROP_RATIO, _on("INPUT.CROP")),
    Rule("INPUT.PADDING.SIZE", _FROM_ZERO, _on("INPUT.PADDING")),
    Rule(
        "DATASETS.TESTS",
        Range("at least one data set", bool),
        instead="; FastReID evaluates when it has trained, on one of DATASETS.NAMES if need be",
    ),
    Rule("DATALOADER.NUM_INSTANCE", _FROM_ONE, _BY_IDENTITY),
    Rule(
        "DATALOADER.SET_WEIGHT",
        Range("numbers of identities, >= 0", lambda value: all(v >= 0 for v in value)),
        _is("DATALOADER.SAMPLER_TRAIN", "SetReWeightSampler"),
    ),
    Rule("SOLVER.MAX_EPOCH", _FROM_ONE, instead="; --eval-only evaluates alone"),
    *_each("SOLVER", "BASE_LR HEADS_LR_FACTOR BIAS_LR_FACTOR", _FROM_ZERO),
    *_each("SOLVER", "WEIGHT_DECAY WEIGHT_DECAY_NORM WEIGHT_DECAY_BIAS", _FROM_ZERO),
    Rule("SOLVER.GAMMA", _FROM_ZERO, _is("SOLVER.SCHED", "MultiStepLR")),
    Rule("SOLVER.ETA_MIN_LR", _FROM_ZERO, _is("SOLVER.SCHED", "CosineAnnealingLR")),
    Rule("SOLVER.WARMUP_FACTOR", _FROM_ZERO, lambda cfg: cfg.SOLVER.WARMUP_ITERS > 0),
    Rule(
        "SOLVER.CHECKPOINT_PERIOD",
        Range("other than 0", bool),
        instead="; with SOLVER.MAX_EPOCH's value the last epoch alone is saved",
    ),
    Rule(
        "SOLVER.AMP.ENABLED",
        Range("False without a GPU", lambda value: not value),
        lambda cfg: cfg.MODEL.DEVICE.startswith("cpu") or no_cuda(),
    ),
    Rule(
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        above(0),
        _on("SOLVER.CLIP_GRADIENTS"),
        "; SOLVER.CLIP_GRADIENTS.ENABLED False clips nothing",
    ),
    Rule("TEST.AQE.QE_K", _FROM_ONE, _on("TEST.AQE")),
    *_each("TEST.RERANK", "K1 K2", _FROM_ONE, _on("TEST.RERANK")),
    Rule("TEST.PRECISE_BN.NUM_ITER", _FROM_ONE, _on("TEST.PRECISE_BN")),
    Rule(
        "MODEL.FREEZE_LAYERS",
        _BODY,
        lambda cfg: cfg.SOLVER.FREEZE_ITERS > 0,
        "; SOLVER.HEADS_LR_FACTOR 0 keeps the heads as they are",
    ),
)
"""What each key must be, for those that FastReID cannot take every value of."""

# The keys that matter to an evaluation alone begin with one of these.
_EVALUATION = (
    "DATASETS.TESTS", "INPUT.CROP.SIZE", "INPUT.SIZE_TEST", "MODEL.BACKBONE", "MODEL.PIXEL",
    "TEST.AQE", "TEST.RERANK",
)  # fmt: skip


def check(cfg: Any, processes: int = 1, training: bool = True) -> None:
    """Refuses what FastReID cannot train or evaluate with.

    Args:
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
        configs, weights = cfg.KD.MODEL_CONFIG, cfg.KD.MODEL_WEIGHTS
        distils = cfg.MODEL.META_ARCHITECTURE == "Distiller"
        if distils and len(weights) != len(configs):
            yield _refusal("KD.MODEL_WEIGHTS", "a file for each of KD.MODEL_CONFIG", weights)
        if distils and not configs and not cfg.KD.EMA.ENABLED:
            expected = "at least one teacher (or KD.EMA.ENABLED be True)"
            yield _refusal("KD.MODEL_CONFIG", expected, configs)


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


def check_identities(cfg: Any, identities: int) -> None:
    """Refuses a classifier that is too small for the identities of the training set.

    Raises:
        ValueError: naming MODEL.HEADS.NUM_CLASSES, or DATASETS.NAMES where one identity is all.
    """
    classes = cfg.MODEL.HEADS.NUM_CLASSES
    named = "CrossEntropyLoss" in config.loss_names(cfg)
    if named and max(classes, identities) < 2:
        raise ValueError(
            f"CrossEntropyLoss needs at least two identities, but DATASETS.NAMES "
            f"{cfg.DATASETS.NAMES} has {identities}: the training set has nothing to tell apart. "
            "Write another data set, or take CrossEntropyLoss out of MODEL.LOSSES.NAME."
        )
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
                if _NO_MEMORY.search(str(error)):
                    raise  # a larger size would not help
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
