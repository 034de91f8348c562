"""A space says what may be chosen; what does not fit is an error that says why."""

import pytest
from networks import GROUPS, Network, space
from torch import nn

from fastreid_rib.search import Channels, Layer, Space


def test_the_widest_and_the_narrowest():
    assert space().widest == {"front": 8, "back": 12}
    assert space().narrowest == {"front": 3, "back": 4}
    space().check(Network())


@pytest.mark.parametrize("widths", [(8, 8), (6, 8), (8, 0), (8, -1), ()])
def test_widths_must_be_nested(widths):
    with pytest.raises(ValueError, match="widths of group 'front' must fall"):
        space({"front": widths, "back": (12, 4)})


def test_a_space_needs_a_group():
    with pytest.raises(ValueError, match="needs a group"):
        Space({}, [])


def test_a_group_that_is_not_there():
    with pytest.raises(ValueError, match=r"no group 'fromt'\. Did you mean.*front"):
        Space({"front": (8, 6)}, [Layer("stem.0", Channels(), Channels("fromt"))])


def test_a_layer_twice():
    layer = Layer("stem.0", Channels(), Channels("front"))
    with pytest.raises(ValueError, match=r"'stem\.0' is in the search space twice"):
        Space({"front": (8, 6)}, [layer, layer])


def test_a_layer_that_the_network_lacks():
    with pytest.raises(ValueError, match=r"'neck\.0', which Network does not have"):
        Space({"front": (8, 6)}, [Layer("neck.0", Channels(), Channels("front"))]).check(Network())


def test_a_network_of_other_widths():
    with pytest.raises(ValueError, match=r"must have 20 outputs \(2 x the widest of group 'front'"):
        space({**GROUPS, "front": (10, 6)}).check(_with_stem(10))


def _with_stem(width):
    network = Network()
    network.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
    network.blocks[0].conv[0] = nn.Conv2d(width, 16, 1)
    return network


def test_a_layer_that_cannot_be_narrowed():
    layer = Layer("pool", Channels("front"), Channels("front"))
    with pytest.raises(TypeError, match="not AdaptiveAvgPool2d"):
        Space({"front": (8, 6)}, [layer]).check(Network())


def test_a_choice():
    assert space().choice((6, 5)) == {"front": 6, "back": 5}
    with pytest.raises(ValueError, match="2 widths are needed, one each for front, back"):
        space().choice((6,))
    with pytest.raises(ValueError, match="'back' can have 12, 8, 5, 4 channels, not 6"):
        space().choice((6, 6))
