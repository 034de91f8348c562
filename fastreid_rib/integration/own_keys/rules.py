"""The table of what FastReID's own keys must be, where it cannot take every value.

FastReID checks none of them: such a value shows as an error from deep inside torch, often only when
the training is over, or as a training that learns the wrong way round. A value that FastReID can
work with is never refused, odd as it may be: ``tests/integration/own_keys/test_limits.py`` lists
the edges of every numeric key, and runs them.
"""

from typing import Any, Callable, NamedTuple, Sequence, Tuple

from fastreid_rib.integration import config
from fastreid_rib.integration.keys import at
from fastreid_rib.settings.declaration import Range, at_least, between


class Rule(NamedTuple):
    """What the value of a key has to be.

    Attributes:
        key: its full name.
        range: its values.
        applies: whether the config uses the key at all.
        instead: the rest of the message, what to write where that is not plain.
    """

    key: str
    range: Range
    applies: Callable[[Any], bool] = lambda cfg: True
    instead: str = ""


def _some(value: Sequence[Any]) -> bool:
    return len(value) > 0


def _at_least(least: float, note: str = "") -> Range:
    """As the plugin's own keys have it, but for infinity: FastReID's may be that."""
    return Range(at_least(least, note).text, lambda value: value >= least)


def _on(key: str) -> Callable[[Any], bool]:
    """Whether a config switches a feature on, by its key ENABLED."""
    return lambda cfg: bool(at(cfg, f"{key}.ENABLED"))


def _names(loss: str) -> Callable[[Any], bool]:
    return lambda cfg: loss in config.loss_names(cfg)


def _backbone(*names: str) -> Callable[[Any], bool]:
    return lambda cfg: cfg.MODEL.BACKBONE.NAME in [f"build_{name}_backbone" for name in names]


def _architecture(*names: str) -> Callable[[Any], bool]:
    return lambda cfg: cfg.MODEL.META_ARCHITECTURE in names


def _by_identity(cfg: Any) -> bool:
    return cfg.DATALOADER.SAMPLER_TRAIN in (
        "NaiveIdentitySampler",
        "BalancedIdentitySampler",
        "SetReWeightSampler",
    )


def _size(value: Sequence[int]) -> bool:
    """Of pictures: one number, or height and width; not positive: left as they are."""
    return len(value) in (1, 2) and (value[0] <= 0 or all(v > 0 for v in value))


_VIT = _backbone("vit")
_STRIDE = _backbone("resnet", "resnext", "resnest", "repvgg", "regnet", "effnet")
_FROM_ZERO = _at_least(0)
_LOSS = "; to train without it, take the loss out of MODEL.LOSSES.NAME, or write 0"
_COLOURS = "one number, or one for each of the three colours"
_SIZE = "one number or [height, width], all > 0 (or [0, 0]: pictures as large as they are)"

RULES: Tuple[Rule, ...] = (
    Rule("MODEL.BACKBONE.LAST_STRIDE", _at_least(1), _STRIDE),
    Rule(
        "MODEL.BACKBONE.STRIDE_SIZE",
        Range("(height, width), both > 0", lambda value: len(value) == 2 and min(value) > 0),
        _VIT,
    ),
    Rule("MODEL.BACKBONE.DROP_PATH_RATIO", Range("< 1", lambda value: value < 1), _VIT),
    Rule("MODEL.BACKBONE.DROP_RATIO", between(0, 1), _VIT),
    Rule("MODEL.BACKBONE.ATT_DROP_RATE", between(0, 1), _VIT),
    Rule("MODEL.BACKBONE.FEAT_DIM", _at_least(1)),
    Rule("MODEL.HEADS.NUM_CLASSES", _at_least(0, "0: as the training set has")),
    Rule(
        "MODEL.LOSSES.NAME", Range("at least one loss", _some), _architecture(*config.KNOWN_LOSSES)
    ),
    Rule("MODEL.LOSSES.CE.SCALE", _FROM_ZERO, _names("CrossEntropyLoss"), _LOSS),
    Rule("MODEL.LOSSES.TRI.SCALE", _FROM_ZERO, _names("TripletLoss"), _LOSS),
    Rule("MODEL.LOSSES.CIRCLE.SCALE", _FROM_ZERO, _names("CircleLoss"), _LOSS),
    Rule("MODEL.LOSSES.COSFACE.SCALE", _FROM_ZERO, _names("Cosface"), _LOSS),
    Rule("MODEL.PIXEL_MEAN", Range(_COLOURS, lambda value: len(value) in (1, 3))),
    Rule(
        "MODEL.PIXEL_STD",
        Range(f"{_COLOURS}, none of them 0", lambda value: len(value) in (1, 3) and all(value)),
    ),
    Rule("INPUT.SIZE_TRAIN", Range(_SIZE, _size)),
    Rule("INPUT.SIZE_TEST", Range(_SIZE, _size)),
    Rule(
        "INPUT.CROP.SIZE",
        Range(
            "one number or [height, width], all > 0",
            lambda value: len(value) in (1, 2) and min(value) > 0,
        ),
        _on("INPUT.CROP"),
    ),
    Rule(
        "INPUT.CROP.SCALE",
        Range(
            "[smallest, largest] share of the picture, from 0 on",
            lambda value: len(value) == 2 and 0 <= value[0] <= value[1],
        ),
        _on("INPUT.CROP"),
    ),
    Rule(
        "INPUT.CROP.RATIO",
        Range(
            "[smallest, largest] width over height, > 0",
            lambda value: len(value) == 2 and 0 < value[0] <= value[1],
        ),
        _on("INPUT.CROP"),
    ),
    Rule("INPUT.PADDING.SIZE", _FROM_ZERO, _on("INPUT.PADDING")),
    Rule("INPUT.CJ.BRIGHTNESS", _FROM_ZERO, _on("INPUT.CJ")),
    Rule("INPUT.CJ.CONTRAST", _FROM_ZERO, _on("INPUT.CJ")),
    Rule("INPUT.CJ.SATURATION", _FROM_ZERO, _on("INPUT.CJ")),
    Rule("INPUT.CJ.HUE", between(0, 0.5), _on("INPUT.CJ")),
    Rule("INPUT.REA.PROB", between(0, 1), _on("INPUT.REA")),
    Rule("INPUT.REA.VALUE", Range(_COLOURS, lambda value: len(value) in (1, 3)), _on("INPUT.REA")),
    Rule("DATASETS.NAMES", Range("at least one data set", _some)),
    Rule(
        "DATASETS.TESTS",
        Range("at least one data set", _some),
        instead="; FastReID evaluates when it has trained, on one of DATASETS.NAMES if need be",
    ),
    Rule("DATALOADER.NUM_WORKERS", _at_least(0, "0: none")),
    Rule("DATALOADER.NUM_INSTANCE", _at_least(1), _by_identity),
    Rule(
        "DATALOADER.SET_WEIGHT",
        Range("numbers of identities, >= 0", lambda value: all(v >= 0 for v in value)),
        lambda cfg: cfg.DATALOADER.SAMPLER_TRAIN == "SetReWeightSampler",
    ),
    Rule("SOLVER.MAX_EPOCH", _at_least(1), instead="; --eval-only evaluates alone"),
    Rule("SOLVER.BASE_LR", _FROM_ZERO),
    Rule("SOLVER.HEADS_LR_FACTOR", _FROM_ZERO),
    Rule("SOLVER.BIAS_LR_FACTOR", _FROM_ZERO),
    Rule("SOLVER.WEIGHT_DECAY", _FROM_ZERO),
    Rule("SOLVER.WEIGHT_DECAY_NORM", _FROM_ZERO),
    Rule("SOLVER.WEIGHT_DECAY_BIAS", _FROM_ZERO),
    Rule("SOLVER.MOMENTUM", _FROM_ZERO, lambda cfg: cfg.SOLVER.OPT == "SGD"),
    Rule(
        "SOLVER.MOMENTUM",
        Range("> 0 with SOLVER.NESTEROV", lambda value: value > 0),
        lambda cfg: cfg.SOLVER.OPT == "SGD" and cfg.SOLVER.NESTEROV,
    ),
    Rule("SOLVER.GAMMA", _FROM_ZERO, lambda cfg: cfg.SOLVER.SCHED == "MultiStepLR"),
    Rule(
        "SOLVER.ETA_MIN_LR",
        _FROM_ZERO,
        lambda cfg: cfg.SOLVER.SCHED == "CosineAnnealingLR",
    ),
    Rule("SOLVER.WARMUP_FACTOR", _FROM_ZERO, lambda cfg: cfg.SOLVER.WARMUP_ITERS > 0),
    Rule(
        "SOLVER.CHECKPOINT_PERIOD",
        Range("other than 0", bool),
        instead="; with SOLVER.MAX_EPOCH's value the last epoch alone is saved",
    ),
    Rule(
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
        Range("> 0", lambda value: value > 0),
        _on("SOLVER.CLIP_GRADIENTS"),
        "; SOLVER.CLIP_GRADIENTS.ENABLED False clips nothing",
    ),
    Rule("TEST.AQE.QE_K", _at_least(1), _on("TEST.AQE")),
    Rule("TEST.RERANK.K1", _at_least(1), _on("TEST.RERANK")),
    Rule("TEST.RERANK.K2", _at_least(1), _on("TEST.RERANK")),
    Rule("TEST.PRECISE_BN.NUM_ITER", _at_least(1), _on("TEST.PRECISE_BN")),
    Rule(
        "MODEL.FREEZE_LAYERS",
        Range(
            "without heads, which do not train in evaluation mode",
            lambda value: not any(name == "heads" or name.endswith("_head") for name in value),
        ),
        lambda cfg: cfg.SOLVER.FREEZE_ITERS > 0,
        "; SOLVER.HEADS_LR_FACTOR 0 keeps the heads as they are",
    ),
)
"""What each key must be, for those that FastReID cannot take every value of."""
