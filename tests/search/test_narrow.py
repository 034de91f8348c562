"""A narrow network computes what the masks of its widths let through, exactly."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import GROUPS, Network, space, trained

from fastreid_rib.search import Cost, WidthSearch, narrow
from fastreid_rib.settings.search import SearchSettings


def supernet(seed=0):
    torch.manual_seed(seed)
    network = trained(Network())
    cost = Cost(network, space(), torch.zeros(1, 3, 16, 8))
    return network, WidthSearch(network, cost, SearchSettings(), seed=0).eval()


@given(st.tuples(*(st.sampled_from(widths) for widths in GROUPS.values())), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_slices_are_the_masked_network(widths, seed):
    network, search = supernet(seed)
    choice = space().choice(widths)
    for group, width in choice.items():
        with torch.no_grad():
            search.choices[group].logits[GROUPS[group].index(width)] = 1.0
    small = copy.deepcopy(network)
    for module in small.modules():
        module._forward_hooks.clear()
    narrow(small, space(), choice)
    images = torch.randn(4, 3, 16, 8)
    torch.testing.assert_close(small(images), network(images), rtol=1e-5, atol=1e-6)
    sizes = [parameter.shape for parameter in small.parameters()]
    assert sizes[0][0] == choice["front"] and sizes[-2][1] == choice["back"]


def test_what_can_learn_stays_so():
    network = Network()
    network.stem[0].weight.requires_grad_(False)
    narrow(network, space(), {"front": 3, "back": 4})
    assert not network.stem[0].weight.requires_grad and network.last.weight.requires_grad
    assert network.blocks[0].conv[3].groups == 6 and "in_features=4" in repr(network.last)
    network(torch.randn(2, 3, 16, 8)).sum().backward()


def test_twice_is_an_error():
    network = Network()
    narrow(network, space(), {"front": 3, "back": 4})
    with pytest.raises(ValueError, match="must have 8 outputs"):
        narrow(network, space(), {"front": 3, "back": 4})


def test_a_width_that_is_not_offered():
    with pytest.raises(ValueError, match="'front' can have 8, 6, 3 channels, not 7"):
        narrow(Network(), space(), {"front": 7, "back": 4})
