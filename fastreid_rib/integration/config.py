"""What a FastReID config asks of the plugin."""

import dataclasses
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from fastreid_rib.base.spelling import did_you_mean
from fastreid_rib.integration import evaluation, keys
from fastreid_rib.settings.attention import GONE_ATTENTIONS
from fastreid_rib.settings.rib import RIBSettings

SHORT_NAMES = {
    "CrossEntropy": "CrossEntropyLoss",
    "Triplet": "TripletLoss",
    "Circle": "CircleLoss",
    "RIB": "RIBLoss",
}
"""Short forms of loss names, and what FastReID (or, for RIB, this package) calls them."""

# What FastReID's own meta-architectures know; any other name they ignore in silence.
_BASELINE_LOSSES = ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface", "RIBLoss")
KNOWN_LOSSES = {
    "Baseline": _BASELINE_LOSSES,
    "Distiller": _BASELINE_LOSSES,
    "MoCo": _BASELINE_LOSSES,
    "MGN": ("CrossEntropyLoss", "TripletLoss", "RIBLoss"),
}


def loss_names(cfg: Any) -> Tuple[str, ...]:
    """The losses of a config under the names that FastReID's code looks for.

    For meta-architectures that are not FastReID's own only RIB's name is translated: the others
    are the project's, and so is their meaning.

    Returns:
        The names of ``MODEL.LOSSES.NAME`` in their order, without repetitions.

    Raises:
        KeyError: a name that FastReID's own meta-architecture would ignore in silence.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    known = KNOWN_LOSSES.get(architecture)
    names: List[str] = []
    for written in cfg.MODEL.LOSSES.NAME:
        name = SHORT_NAMES.get(written, written) if known or written == "RIB" else written
        if known and name not in known:
            short = [name for name in SHORT_NAMES if SHORT_NAMES[name] in known]
            raise KeyError(
                f"MODEL.LOSSES.NAME holds '{written}', which {architecture} does not know and "
                f"would leave out in silence.{did_you_mean(written, (*short, *known))} It knows "
                f"{', '.join(known)}, and the short forms {', '.join(short)}."
            )
        if name not in names:
            names.append(name)
    return tuple(names)


def names_rib(cfg: Any) -> bool:
    """Whether ``MODEL.LOSSES.NAME`` of a config asks for RIB."""
    return "RIBLoss" in loss_names(cfg)


def asks_for_plugin(cfg: Any) -> bool:
    """Whether a config asks for anything that FastReID alone does not have: RIB or attention."""
    return names_rib(cfg) or asked_attention(cfg) is not None


def rib_before_attention(cfg: Any) -> bool:
    """Whether RIB's embedding is to be taken before the attention at the head."""
    return names_rib(cfg) and cfg.MODEL.LOSSES.RIB.EMBEDDING == "before"


def rib_settings(cfg: Any) -> RIBSettings:
    """The settings of the loss that a config asks for.

    Raises:
        ValueError: a key out of its range.
    """
    return dataclasses.replace(keys.read(cfg, "MODEL.LOSSES.RIB"), seed=max(cfg.SEED, 0))


def check(cfg: Any) -> None:
    """Checks the plugin's keys; those of what the config does not ask for may hold anything.

    Raises:
        KeyError: an unknown loss name.
        ValueError: a key out of its range, or a file that cannot be read; the message names the
            key, what was expected and the value.
    """
    asked_attention(cfg)
    asked_search(cfg)
    for path in ("", "TEST", "DATASETS.FOLDER"):
        keys.read(cfg, path)
    if cfg.TEST.OCCLUDED:
        evaluation.listed(cfg)
    if names_rib(cfg):
        keys.read(cfg, "MODEL.LOSSES.RIB")


def asked_search(cfg: Any) -> keys.SearchKeys:
    """The search for a backbone's widths that a config asks for, or what one has found.

    Raises:
        ValueError: a key out of its range, or one of FastReID's that does not go with it.
    """
    asked: keys.SearchKeys = keys.read(cfg, "MODEL.SEARCH")
    if (asked.enabled or asked.widths) and cfg.MODEL.META_ARCHITECTURE == "MGN":
        raise ValueError(
            "MODEL.SEARCH chooses widths of a whole backbone, and MGN takes it apart. Write "
            "another MODEL.META_ARCHITECTURE, such as Baseline."
        )
    return asked


class AskedAttention(NamedTuple):
    """The attention that a config asks for.

    Attributes:
        name: a name of ``fastreid_rib.attention.ATTENTIONS``.
        placement: "head" and stages of the backbone, at least one.
        settings: what the module is built with, except its channels.
        lr_factor: learning rate of the module over that of its surroundings.
    """

    name: str
    placement: Tuple[str, ...]
    settings: Dict[str, Any]
    lr_factor: float


ATTENTION_HEADS = ("DCSHead", "ChannelAttentionHead")
"""Values of ``MODEL.HEADS.NAME`` that stand for an attention with ``PLACEMENT ("head",)``."""


def asked_attention(cfg: Any) -> Optional[AskedAttention]:
    """The attention that a config asks for, by ``MODEL.ATTENTION`` or by its head's name.

    Returns:
        The checked request, or None if the config asks for no attention.

    Raises:
        ValueError: a key out of its range, or attention asked for in both ways.
    """
    node, head = cfg.MODEL.ATTENTION, cfg.MODEL.HEADS.NAME
    key, name, placement = "NAME", node.NAME, node.PLACEMENT
    if head in ATTENTION_HEADS:
        if name:
            raise ValueError(
                f"MODEL.HEADS.NAME {head} is attention at the head, and MODEL.ATTENTION.NAME is "
                f"{name!r}, too. Write one of the two: MODEL.HEADS.NAME EmbeddingHead with "
                "MODEL.ATTENTION.PLACEMENT can hold both the head and stages."
            )
        name, placement = "DCS", ("head",)
        if head == "ChannelAttentionHead":
            key, name = "CHANNEL", node.CHANNEL
    elif name == "":
        return None
    from fastreid_rib.attention import ATTENTIONS, SelfAttention, attention_settings  # loads torch

    names = [
        name
        for name, module in ATTENTIONS.items()
        if key == "NAME" or not issubclass(module, SelfAttention)
    ]
    if name not in names:
        raise ValueError(
            f"MODEL.ATTENTION.{key} must be one of {', '.join(names)}, but is {name!r}."
            f"{GONE_ATTENTIONS.get(name) or did_you_mean(name, names)}"
        )
    asked = keys.read(cfg, "MODEL.ATTENTION")
    settings = {
        setting: getattr(asked, setting)
        for setting in attention_settings(name)
        if hasattr(asked, setting)
    }
    return AskedAttention(name, tuple(placement), settings, asked.lr_factor)


def without_attention(cfg: Any) -> Any:
    """A copy of a config that asks for no attention, with FastReID's own head."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ATTENTION.NAME = ""
    if cfg.MODEL.HEADS.NAME in ATTENTION_HEADS:
        cfg.MODEL.HEADS.NAME = "EmbeddingHead"
    cfg.freeze()
    return cfg
