"""A space says what may be chosen; what does not fit is an error that says why."""

import pytest
from networks import GROUPS, Network, space
from torch import nn

from fastreid_rib.search import Channels, Layer, Space

FRONT = {"front": (8, 6)}
STEM = Layer("stem.0", Channels(), Channels("front"))


def test_the_widest_the_narrowest_and_a_choice():
    assert space().widest == {"front": 8, "back": 12}
    assert space().narrowest == {"front": 3, "back": 4}
    assert space().choice((6, 5)) == {"front": 6, "back": 5}
    space().check(Network())


def test_widths_must_be_nested():
    for widths in ((8, 8), (6, 8), (8, 0), (8, -1), ()):
        with pytest.raises(ValueError, match="widths of group 'front' must fall"):
            space({"front": widths, "back": (12, 4)})


def test_what_does_not_fit():
    neck = Layer("neck.0", Channels(), Channels("front"))
    unknown = Layer("stem.0", Channels(), Channels("fromt"))
    for make, message in (
        (lambda: Space({}, []), "needs a group"),
        (lambda: Space(FRONT, [unknown]), r"no group 'fromt'\. Did you mean.*front"),
        (lambda: Space(FRONT, [STEM, STEM]), r"'stem\.0' is in the search space twice"),
        (
            lambda: Space(FRONT, [neck]).check(Network()),
            r"'neck\.0', which Network does not have",
        ),
        (lambda: space().choice((6,)), "2 widths are needed, one each for front, back"),
        (lambda: space().choice((6, 6)), "'back' can have 12, 8, 5, 4 channels, not 6"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_network_of_other_widths():
    network = Network()
    network.stem = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10))
    network.blocks[0].conv[0] = nn.Conv2d(10, 16, 1)
    with pytest.raises(ValueError, match=r"must have 20 outputs \(2 x the widest of group 'front'"):
        space({**GROUPS, "front": (10, 6)}).check(network)


def test_a_layer_that_cannot_be_narrowed():
    layer = Layer("pool", Channels("front"), Channels("front"))
    with pytest.raises(TypeError, match="not AdaptiveAvgPool2d"):
        Space(FRONT, [layer]).check(Network())
