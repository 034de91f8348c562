"""The settings of a search for the widths of a network."""

from dataclasses import dataclass
from typing import Any, Iterator, Tuple

from fastreid_rib.settings.declaration import (
    Range,
    Settings,
    above,
    at_least,
    between,
    setting,
    yes_or_no,
)


@dataclass(frozen=True)
class SearchSettings(Settings):
    """The settings of :class:`fastreid_rib.search.WidthSearch`.

    Raises:
        SettingError: a value is out of its range.
    """

    target: float = setting(
        0.5,
        Range("> 0 and <= 1", lambda value: 0 < value <= 1),
        "Multiply-adds an image of the network that is searched, as a share of the widest one's. "
        "The derived network costs at most this.",
        symbol="T",
    )
    cost_scale: float = setting(
        1.0,
        at_least(0, "0: widths are chosen by the other losses alone"),
        "Weight of |log(cost / target)| in the loss.",
        symbol="lambda",
    )
    lr: float = setting(
        0.05,
        above(0),
        "Learning rate of Adam over the logits of the choices. The weights have the config's own "
        "optimizer.",
    )
    weights_share: float = setting(
        0.8,
        Range("> 0 and < 1", lambda value: 0 < value < 1),
        "Share of the steps after the warm-up that train the weights; the others train the "
        "logits. 0.8 is FBNetV2's.",
    )
    warmup_share: float = setting(
        0.2,
        between(0, 0.9),
        "Share of the training at its start without a step of the logits.",
    )
    temperature: float = setting(
        5.0,
        above(0),
        "Temperature of the Gumbel-Softmax in the first epoch; high: gates between widths.",
        symbol="tau",
    )
    final_temperature: float = setting(
        0.1, above(0), "The same in the last epoch; in between it falls geometrically."
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
