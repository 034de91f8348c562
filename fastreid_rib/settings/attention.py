"""The settings of the attention modules. Each module takes some of them."""

from dataclasses import dataclass
from typing import Tuple

from fastreid_rib.settings.declaration import (
    Range,
    Settings,
    above,
    at_least,
    between,
    one_of,
    setting,
    text,
)

GONE_ATTENTIONS = {"CAM": " CAM is gone: write SE, ECA or CBAM, or DCS as in the paper."}
"""Attention modules of earlier versions, by name, and what to write instead."""

_WIDTH = "For fewer weights write WIDTH, the number of channels inside."


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """The settings of the modules of :mod:`fastreid_rib.attention`, except the channels.

    Raises:
        SettingError: a value is out of its range.
    """

    gone = {
        "rank": _WIDTH,
        "groups": _WIDTH,
        "depthwise": "Leave it out: nobody measured a gain.",
    }

    width: int = setting(
        0,
        at_least(0, "0: all channels"),
        "DCS, SelfAttention: channels inside, at most those of the map. All, as in the paper: at "
        "2048 channels a mask layer of 4.2 million weights; fewer cost less.",
        symbol="D",
    )
    temperature: float = setting(
        1.0, above(0), "DCS: temperature of the mask's gradient in the first epoch.", symbol="tau"
    )
    final_temperature: float = setting(
        0.5, above(0), "DCS: the same in the last epoch; in between it falls geometrically."
    )
    mask_bias: float = setting(
        0.0,
        between(-20, 20),
        "DCS: where the mask's bias starts. In training a share of sigmoid(this) of the channels "
        "is kept at first; in evaluation all of them if it is positive, else none. A short "
        "training from 0 can close some for good, and from 1 none; a ViT, which loses its "
        "attention with them, wants a positive one.",
        symbol="b",
    )
    scale: str = setting(
        "cosine",
        one_of("cosine", "sqrt"),
        "DCS, SelfAttention: affinities are cosine similarities times `cosine_factor` (ours), or "
        "dot products over the root of the channels inside; with a `norm` those leave each "
        "position to itself. In a ViT its own scale stays.",
    )
    cosine_factor: float = setting(
        4.0, above(0), 'DCS, SelfAttention: what `scale` `"cosine"` multiplies them by.'
    )
    norm: str = setting(
        "batch",
        one_of("batch", "layer", "none"),
        "What goes into the layer that starts at zero is normalised by the statistics "
        "of the batch (ours), each image or token by its own, or not, as in the papers. Not in a "
        "ViT, whose tokens are.",
    )
    reduction: int = setting(
        16, at_least(1), "SE, CBAM: the channels are divided by this between their two layers."
    )
    kernel_size: int = setting(
        0,
        Range(
            "odd, or 0 for the paper's choice",
            lambda value: value == 0 or (value > 0 and value % 2 == 1),
        ),
        "ECA: channels that a gate looks at.",
    )
    start: str = setting(
        "identity",
        one_of("identity", "published"),
        'SE, ECA, CBAM: gates start at 1 (ours), or as in their papers, near 1/2. `norm` `"none"` '
        "in addition makes them the papers' own.",
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
