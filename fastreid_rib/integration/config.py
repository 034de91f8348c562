"""The plugin's keys in FastReID's config: where they are, and what a config asks for by them.

A key is declared once, in :mod:`fastreid_rib.settings`; its name is the field's in capital letters.
Everything else reads the declaration: FastReID's defaults, the checks at start, and the list in
docs/reference/keys.md.
"""

import dataclasses
import re
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

from fastreid_rib.base.patching import wrap
from fastreid_rib.integration import evaluation
from fastreid_rib.settings.attention import GONE_ATTENTIONS, AttentionKeys
from fastreid_rib.settings.declaration import Settings, did_you_mean, from_keys, keys_of
from fastreid_rib.settings.rib import RIBKeys
from fastreid_rib.settings.run import EvaluationKeys, FolderSettings, RunKeys
from fastreid_rib.settings.search import SearchKeys

NODES: Dict[str, Type[Settings]] = {
    "MODEL.LOSSES.RIB": RIBKeys,
    "MODEL.ATTENTION": AttentionKeys,
    "MODEL.SEARCH": SearchKeys,
    "DATASETS.FOLDER": FolderSettings,
    "TEST": EvaluationKeys,
    "": RunKeys,
}
"""Where in a config which keys are; a node that FastReID lacks is made."""


_GONE = "nothing"  # the new name that yacs has of a key which is gone


def add_keys(defaults: Any) -> None:
    """Adds the plugin's keys to FastReID's default config."""
    root = defaults._C
    if "ATTENTION" in root.MODEL:
        return
    for path, settings in NODES.items():
        node = root
        for part in path.split(".") if path else ():
            if part not in node:
                node[part] = type(root)()
            node = node[part]
        for key, default in keys_of(settings).items():
            node[key] = default
        for name, instead in settings.gone.items():
            instead = re.sub(r"`\w+`", lambda key: key[0].upper(), instead)
            root.register_renamed_key(f"{path}.{name.upper()}", _GONE, instead)


def read(cfg: Any, path: str) -> Any:
    """What a config says under one of :data:`NODES`, as :func:`from_keys` checks it."""
    return from_keys(NODES[path], at(cfg, path), path)


def reset(cfg: Any, path: str) -> None:
    """Puts the plugin's keys under one of :data:`NODES` back to their defaults."""
    at(cfg, path).update(keys_of(NODES[path]))


def at(cfg: Any, path: str) -> Any:
    """What stands in a config under a path such as "SOLVER.BASE_LR"; "" is the config itself."""
    for part in path.split(".") if path else ():
        cfg = cfg[part]
    return cfg


def changed(cfg: Any, changes: Dict[str, Any]) -> Any:
    """A frozen copy of a config with other values, by their full keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for path, value in changes.items():
        node, _, key = path.rpartition(".")
        at(cfg, node)[key] = value
    cfg.freeze()
    return cfg


def extend_config(config: Any) -> None:
    """Refuses keys that are gone; leaves the plugin's keys out of dumps where they are at defaults.

    FastReID writes ``config.yaml`` into every output folder; otherwise that file could not be
    loaded where the plugin is not installed.
    """

    def raise_key_rename_error(stock: Callable[..., None], self: Any, full_key: str) -> None:
        new_name = self.__dict__[self.RENAMED_KEYS][full_key]
        if new_name[0] == _GONE:
            raise KeyError(f"The key {full_key} is gone. {new_name[1]}")
        stock(self, full_key)

    def dump(stock: Callable[..., str], self: Any, **kwargs: Any) -> str:
        if "ATTENTION" not in self.get("MODEL", {}):  # a part of a config, or one of before
            return stock(self, **kwargs)
        cfg = self.clone()
        cfg.defrost()
        for path, settings in NODES.items():
            node = at(cfg, path)
            for key, default in keys_of(settings).items():
                if node.get(key, default) == default:
                    node.pop(key, None)
            parent, _, name = path.rpartition(".")
            if path and not node:
                del at(cfg, parent)[name]
        return stock(cfg, **kwargs)

    wrap(config.CfgNode, "raise_key_rename_error", raise_key_rename_error)
    wrap(config.CfgNode, "dump", dump)


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
    return names_rib(cfg) or in_parts(cfg) or asked_attention(cfg) is not None


def rib_before_attention(cfg: Any) -> bool:
    """Whether RIB's embedding is to be taken before the attention at the head."""
    return names_rib(cfg) and cfg.MODEL.LOSSES.RIB.EMBEDDING == "before"


def rib_settings(cfg: Any) -> RIBKeys:
    """The settings of the loss that a config asks for, checked."""
    return dataclasses.replace(read(cfg, "MODEL.LOSSES.RIB"), seed=max(cfg.SEED, 0))


def late_rib(cfg: Any) -> str:
    """What to do about a training that ends before RIB begins; empty if it does not."""
    first, epochs = max(1, cfg.MODEL.LOSSES.RIB.WARMUP_EPOCHS), cfg.SOLVER.MAX_EPOCH
    if not names_rib(cfg) or first < epochs:
        return ""
    return (
        f"RIB would start at epoch {first}, but SOLVER.MAX_EPOCH is {epochs}: it will not train. "
        "Raise SOLVER.MAX_EPOCH or lower MODEL.LOSSES.RIB.WARMUP_EPOCHS."
    )


def check(cfg: Any) -> None:
    """Checks the plugin's keys; those of what the config does not ask for may hold anything.

    Raises:
        KeyError: an unknown loss name.
        ValueError: a key out of its range, or a file that cannot be read; the message names the
            key, what was expected and the value.
    """
    asked_attention(cfg)
    asked_search(cfg)
    for path in ("", "TEST", "DATASETS.FOLDER", *["MODEL.LOSSES.RIB"] * names_rib(cfg)):
        read(cfg, path)
    evaluation.listed(cfg)


def asked_search(cfg: Any) -> SearchKeys:
    """The search for a backbone's widths that a config asks for, or what one has found.

    Raises:
        ValueError: a key out of its range, or one of FastReID's that does not go with it.
    """
    asked: SearchKeys = read(cfg, "MODEL.SEARCH")
    if (asked.enabled or asked.widths) and cfg.MODEL.META_ARCHITECTURE == "MGN":
        raise ValueError(
            "MODEL.SEARCH chooses widths of a whole backbone, and MGN takes it apart. Write "
            "another MODEL.META_ARCHITECTURE, such as Baseline."
        )
    return asked


ATTENTION_HEADS = ("DCSHead", "ChannelAttentionHead")
"""Values of ``MODEL.HEADS.NAME`` that stand for an attention with ``PLACEMENT ("head",)``."""


def in_parts(cfg: Any) -> bool:
    """Whether a config's head attends to parts: the attention that is fitted, not trained."""
    return bool(cfg.MODEL.HEADS.NAME == "PartHead")


def asked_attention(cfg: Any) -> Optional[AttentionKeys]:
    """The attention that a config asks for, by ``MODEL.ATTENTION`` or by its head's name.

    Returns:
        The keys, checked, as if MODEL.ATTENTION alone said it; or None if the config asks for no
        attention.

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
    from fastreid_rib.attention import ATTENTIONS, SelfAttention  # loads torch

    names = [each for each, kind in ATTENTIONS.items() if not issubclass(kind, SelfAttention)]
    names = names if key == "CHANNEL" else list(ATTENTIONS)
    if name not in names:
        raise ValueError(
            f"MODEL.ATTENTION.{key} must be one of {', '.join(names)}, but is {name!r}."
            f"{GONE_ATTENTIONS.get(name) or did_you_mean(name, names)}"
        )
    asked = read(cfg, "MODEL.ATTENTION")
    return dataclasses.replace(asked, name=name, placement=tuple(placement))


def without_attention(cfg: Any) -> Any:
    """A copy of a config that asks for no attention, with FastReID's own head."""
    head = cfg.MODEL.HEADS.NAME
    head = "EmbeddingHead" if head in ATTENTION_HEADS else head
    return changed(cfg, {"MODEL.ATTENTION.NAME": "", "MODEL.HEADS.NAME": head})
