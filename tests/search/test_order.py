"""The channels that are worth most come first, and nothing that is computed changes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import GROUPS, Network, space, trained
from torch import nn

from fastreid_rib.search import Channels, Layer, Space, narrow, order

IMAGES = torch.randn(4, 3, 16, 8, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return trained(Network())


@given(st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_what_is_computed_stays(seed):
    one = network(seed)
    other = copy.deepcopy(one)
    order(other, space())
    assert not torch.equal(one.last.weight, other.last.weight)
    torch.testing.assert_close(other(IMAGES), one(IMAGES), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_channels_that_nobody_reads_go_first_when_it_is_cut(seed):
    one = network(seed)
    drawn = torch.Generator().manual_seed(seed)
    dead = torch.randperm(12, generator=drawn)[:7]  # of "back", which keeps 5
    hidden = torch.randperm(24, generator=drawn)[:14]  # an order of its own: 10 are kept
    inside = one.blocks[2].conv
    with torch.no_grad():
        one.last.weight[:, dead] = 0.0
        inside[0].weight[:, dead] = 0.0
        inside[6].weight[:, hidden] = 0.0
    small = copy.deepcopy(one)
    order(small, space())
    narrow(small, space(), {"front": 8, "back": 5})
    torch.testing.assert_close(small(IMAGES), one(IMAGES), rtol=1e-4, atol=1e-5)
    plain = copy.deepcopy(one)
    narrow(plain, space(), {"front": 8, "back": 5})
    assert not torch.allclose(plain(IMAGES), one(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_second_time_changes_nothing():
    one = network()
    order(one, space())
    other = copy.deepcopy(one)
    order(other, space())
    for first, second in zip(one.state_dict().values(), other.state_dict().values()):
        assert torch.equal(first, second)


def test_layers_without_norms_and_a_map_that_is_read_elsewhere():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
    inside, outside = Channels("inside"), Channels("outside")
    layers = [Layer("0", Channels(), inside, masked=True), Layer("2", inside, outside)]
    with torch.no_grad():
        one[2].weight[:, 1] = 0.0
    other = copy.deepcopy(one)
    order(other, Space({"inside": (4, 3), "outside": (4, 2)}, layers))
    assert other[2].weight[:, 3].abs().sum() == 0
    torch.testing.assert_close(other(torch.ones(2, 3)), one(torch.ones(2, 3)))


def test_a_network_that_was_cut_already():
    one = Network()
    narrow(one, space(), {"front": 3, "back": 4})
    with pytest.raises(ValueError, match="must have 8 outputs"):
        order(one, space())


def test_what_can_learn_stays_so():
    one = network()
    parameters = list(one.parameters())
    order(one, space())
    assert all(old is new for old, new in zip(parameters, one.parameters()))
    assert all(parameter.requires_grad for parameter in parameters)
    assert GROUPS == {"front": (8, 6, 3), "back": (12, 8, 5, 4)}
