"""The plugin's keys in FastReID's config: where they are, and what they hold.

A key is declared once, here or in :mod:`fastreid_rib.settings`; its name is the field's in capital
letters. Everything else reads the declaration: FastReID's defaults, the checks at start, and the
table in docs/reference/keys.md.
"""

import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, Tuple, Type

from fastreid_rib.base.patching import wrap
from fastreid_rib.settings.attention import AttentionSettings
from fastreid_rib.settings.declaration import (
    Range,
    Settings,
    above,
    declared,
    defaults,
    from_keys,
    one_of,
    setting,
    text,
    yes_or_no,
)
from fastreid_rib.settings.folder import FolderSettings
from fastreid_rib.settings.rib import RIBSettings
from fastreid_rib.settings.search import SearchSettings

# NumPy takes 32 bits, and every rank adds its number.
_MOST_SEED = 2**32 - 2**16 - 1


@dataclass(frozen=True)
class RunKeys(Settings):
    """Keys at the top of the config."""

    seed: int = setting(
        -1,
        Range(f"-1 (no seed) or 0 .. {_MOST_SEED}", lambda value: -1 <= value <= _MOST_SEED),
        "Seed of every random number of a run: Python, NumPy, torch, samplers, data-loader "
        "workers, on every rank, and of K-means, so that a run that was killed and resumed equals "
        "an uninterrupted one. -1 leaves FastReID as it is: a new seed for every run.",
    )


@dataclass(frozen=True)
class EvaluationKeys(Settings):
    """Keys beside FastReID's own of the evaluation."""

    occluded: str = setting(
        "",
        text("the name of a text file, or '' (none)"),
        "A text file with the file name of one occluded query a line: occluded and free queries "
        'get a row each in the evaluation. `""`: where the data set knows it (SyntheticReID), or '
        "has a property `occluded_queries`.",
    )
    neck_feat: str = setting(
        "after",
        one_of("after", "before"),
        "What a trained network gives for an image, in the evaluation, the demo and exports: the "
        'vector after the neck (BNNeck), as FastReID does, or the one before it, `"before"`, which '
        "RIB and the triplet loss train. It works without RIB, too. It changes nothing in the "
        "training.",
    )


@dataclass(frozen=True)
class RIBKeys(RIBSettings):
    """Keys of the loss: its settings, and what FastReID's side does with it."""

    scale: float = setting(
        1.0,
        above(0, "to train without RIB, take it out of MODEL.LOSSES.NAME"),
        "Weight of the bound in the training loss.",
    )
    embedding: str = setting(
        "after",
        one_of("after", "before"),
        "Where RIB's embedding is taken if there is attention at the head: after it, as in the "
        "paper, or before it, from the same map pooled (RIB then trains the backbone, and the "
        "other losses train the attention), which is better with DCS.",
    )


@dataclass(frozen=True)
class AttentionKeys(AttentionSettings):
    """Keys of attention: the modules' settings, and which of them stands where."""

    name: str = setting(
        "",
        text("a name, or '' (none)"),
        'Attention module: `"DCS"`, `"SelfAttention"` (DCS without its mask), or a channel '
        'attention, such as `"SE"`; the page on attention lists all. `""`: none.',
    )
    placement: Tuple[str, ...] = setting(
        ("head",),
        Range(
            'a tuple of places without repetitions, such as ("layer3", "head")',
            lambda value: (
                isinstance(value, (tuple, list))
                and len(value) > 0
                and all(isinstance(place, str) for place in value)
                and len(set(value)) == len(value)
            ),
        ),
        'Where it stands, one of its own at each place: `"head"` (on the map before pooling) and '
        'stages of the backbone, such as `"layer3"`. In a ViT `("blocks",)`, which masks queries '
        "and keys of every block.",
    )
    channel: str = setting(
        "SE",
        text("a name"),
        "What `MODEL.HEADS.NAME: ChannelAttentionHead` holds: a channel attention.",
    )
    lr_factor: float = setting(
        1.0,
        above(0),
        "Learning rate of the attention over that of what stands beside it; on top of "
        "SOLVER.HEADS_LR_FACTOR at the head. 10 ruined SE and CBAM.",
    )


def _whole(widths: Any) -> bool:
    return isinstance(widths, (tuple, list)) and all(type(width) is int for width in widths)


@dataclass(frozen=True)
class SearchKeys(SearchSettings):
    """Keys of the search for a backbone's widths."""

    enabled: bool = setting(
        False,
        yes_or_no,
        "Whether this training searches the widths of the backbone; it ends with `searched.yml`.",
    )
    options: Tuple[Tuple[int, ...], ...] = setting(
        (),
        Range(
            "a tuple with the widths of each group, the widest first, such as "
            "((28, 24, 20, 16), (40, 32)), or () (the backbone's own)",
            lambda value: isinstance(value, (tuple, list)) and all(map(_whole, value)),
        ),
        "The widths of each group to choose from, the widest first. `()`: the paper's for "
        "`build_searched_backbone`, and 1 to 1/4 of those that MobileNetV2 and ResNet have.",
    )
    widths: Tuple[int, ...] = setting(
        (),
        Range("a tuple of widths, one for each group, or () (as built)", _whole),
        "The widths of a derived network: the backbone is cut down to them once it is built, with "
        "its pretrained weights. Not together with `enabled`.",
    )

    def conflicts(self) -> Iterator[Tuple[str, str]]:
        """See :class:`Settings`."""
        yield from super().conflicts()
        if self.enabled and self.widths:
            yield "widths", "() where {enabled} is True, which searches them"


NODES: Dict[str, Type[Settings]] = {
    "MODEL.LOSSES.RIB": RIBKeys,
    "MODEL.ATTENTION": AttentionKeys,
    "MODEL.SEARCH": SearchKeys,
    "DATASETS.FOLDER": FolderSettings,
    "TEST": EvaluationKeys,
    "": RunKeys,
}
"""Where in a config which keys are; a node that FastReID lacks is made."""


def keys_of(settings: Type[Settings]) -> Dict[str, Any]:
    """The keys that a class of settings declares, with their defaults, in order."""
    known = declared(settings)
    return {
        name.upper(): default for name, default in defaults(settings).items() if known[name].is_key
    }


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
            old = f"{path}.{name.upper()}".lstrip(".")
            instead = re.sub(r"`\w+`", lambda key: key[0].upper(), instead)
            root.register_renamed_key(old, "nothing, it is gone", instead)


def read(cfg: Any, path: str) -> Any:
    """What a config says under one of :data:`NODES`, checked, in the class that is named there.

    Raises:
        ValueError: a key is out of its range; the message names it, what was expected, and the
            value.
    """
    return from_keys(NODES[path], at(cfg, path), path)


def reset(cfg: Any, path: str) -> None:
    """Puts the plugin's keys under one of :data:`NODES` back to their defaults."""
    at(cfg, path).update(keys_of(NODES[path]))


def at(cfg: Any, path: str) -> Any:
    """What stands in a config under a path such as "SOLVER.BASE_LR"; "" is the config itself."""
    for part in path.split(".") if path else ():
        cfg = cfg[part]
    return cfg


def keep_dumps_portable(config: Any) -> None:
    """Makes ``CfgNode.dump`` leave out plugin keys at their defaults.

    FastReID writes ``config.yaml`` into every output folder; without this, that file could not be
    loaded where the plugin is not installed.
    """

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

    wrap(config.CfgNode, "dump", dump)
