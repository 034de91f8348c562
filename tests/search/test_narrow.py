"""A narrow network computes what masks let through; channels that are worth most come first."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import GROUPS, IMAGES, Network, space, trained
from torch import nn

from fastreid_rib.search import Channels, Cost, Layer, Space, WidthSearch, narrow, order
from fastreid_rib.settings.search import SearchSettings

NARROWEST = {"front": 3, "back": 4}


def network(seed=0):
    torch.manual_seed(seed)
    return trained(Network())


@given(st.tuples(*(st.sampled_from(widths) for widths in GROUPS.values())), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_slices_are_the_masked_network(widths, seed):
    masked = network(seed)
    search = WidthSearch(masked, Cost(masked, space(), IMAGES[:1]), SearchSettings(), seed=0).eval()
    choice = space().choice(widths)
    for group, width in choice.items():
        with torch.no_grad():
            search.choices[group].logits[GROUPS[group].index(width)] = 1.0
    small = copy.deepcopy(masked)
    for module in small.modules():
        module._forward_hooks.clear()
    narrow(small, space(), choice)
    torch.testing.assert_close(small(IMAGES), masked(IMAGES), rtol=1e-5, atol=1e-6)
    sizes = [parameter.shape for parameter in small.parameters()]
    assert sizes[0][0] == choice["front"] and sizes[-2][1] == choice["back"]


@given(st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_what_an_ordered_network_computes_stays(seed):
    one = network(seed)
    other = copy.deepcopy(one)
    order(other, space())
    assert not torch.equal(one.last.weight, other.last.weight)
    torch.testing.assert_close(other(IMAGES), one(IMAGES), rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(other)
    order(again, space())
    for first, second in zip(other.state_dict().values(), again.state_dict().values()):
        assert torch.equal(first, second)


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
    small, plain = copy.deepcopy(one), copy.deepcopy(one)
    order(small, space())
    for cut in (small, plain):
        narrow(cut, space(), {"front": 8, "back": 5})
    torch.testing.assert_close(small(IMAGES), one(IMAGES), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain(IMAGES), one(IMAGES), rtol=1e-4, atol=1e-5)


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


def test_what_can_learn_stays_so():
    one = Network()
    one.stem[0].weight.requires_grad_(False)
    parameters = list(one.parameters())
    order(one, space())
    assert all(old is new for old, new in zip(parameters, one.parameters()))
    narrow(one, space(), NARROWEST)
    assert not one.stem[0].weight.requires_grad and one.last.weight.requires_grad
    assert one.blocks[0].conv[3].groups == 6 and "in_features=4" in repr(one.last)
    one(IMAGES).sum().backward()
    for again in (lambda: narrow(one, space(), NARROWEST), lambda: order(one, space())):
        with pytest.raises(ValueError, match="must have 8 outputs"):
            again()
