"""A space says what may be chosen; what does not fit is an error that says why."""

import pytest
from networks import Network, space
from torch import nn

from fastreid_rib.search import Channels, Layer, Space
from fastreid_rib.search.space import sides_of

FRONT = {"front": (8, 6)}


def of(path, group="front"):
    return Layer(path, Channels(), Channels(group))


def test_what_does_not_fit():
    wider = {"front": (10, 6), "back": (12, 4)}
    for make, message in (
        (lambda: Space({}, []), "needs a group"),
        (lambda: Space({"front": (6, 8)}, []), "widths of group 'front' must fall"),
        (lambda: Space(FRONT, [of("stem.0", "fromt")]), r"no group 'fromt'\. Did you mean.*front"),
        (lambda: Space(FRONT, [of("stem.0")] * 2), r"'stem\.0' is in the search space twice"),
        (lambda: Space(FRONT, [of("neck.0")]).check(Network()), r"'neck\.0', which Network does"),
        (lambda: Space(FRONT, [of("pool")]).check(Network()), "not AdaptiveAvgPool2d"),
        (lambda: space(wider).check(Network()), "must have 10 outputs .1 x the widest of group"),
        (
            lambda: sides_of(nn.Conv2d(8, 16, 3, groups=8)),
            "not one of 8 channels to 16 in 8 groups",
        ),
        (lambda: space().choice((6,)), "2 widths are needed, one each for front, back"),
        (lambda: space().choice((6, 6)), "'back' can have 12, 8, 5, 4 channels, not 6"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            make()
