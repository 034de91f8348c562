"""Costs are what fvcore counts on the narrow network; what is derived is the nearest there is."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import GROUPS, Network, space

from fastreid_rib.integration.search.cost import counted
from fastreid_rib.search import Channels, Cost, Layer, Space, derive, narrow
from fastreid_rib.search.cost import all_choices

IMAGES = torch.zeros(1, 3, 16, 8)


@pytest.fixture(scope="module")
def cost():
    return Cost(Network(), space(), IMAGES)


@given(st.tuples(*(st.sampled_from(widths) for widths in GROUPS.values())))
@settings(max_examples=12, deadline=None)
def test_the_cost_of_a_choice_is_what_its_network_takes(widths):
    network = Network()
    cost, apart = Cost(network, space(), IMAGES), Cost(network, space(), IMAGES, {"last": 5.0})
    choice = space().choice(widths)
    last = choice["back"] * 7
    narrow(network, space(), choice)
    assert cost.of(choice) == counted(network, IMAGES)[""] == apart.of(choice) - 5 + last


@given(st.lists(st.floats(0.01, 1), min_size=7, max_size=7), st.floats(0.3, 1))
@settings(max_examples=40, deadline=None)
def test_as_one_by_one(cost, numbers, share):
    probabilities = {"front": numbers[:3], "back": numbers[3:]}
    limit = max(cost.narrowest, share * cost.widest)
    found = derive(cost, probabilities, limit)
    assert cost.of(found) <= limit * (1 + 1e-9)

    def distance(widths):
        return sum(
            chance * abs(math.log(drawn / width))
            for group, width in widths.items()
            for drawn, chance in zip(GROUPS[group], probabilities[group])
        )

    for row in itertools.product(*GROUPS.values()):
        widths = dict(zip(GROUPS, row))
        if cost.of(widths) <= limit:
            assert distance(widths) >= distance(found) * (1 - 1e-9)


def test_of_equals_the_one_that_costs_most(cost):
    halves = {"front": [0.5, 0.5, 0.0], "back": [0.5, 0.5, 0.0, 0.0]}
    assert derive(cost, halves, cost.widest) == cost.space.widest
    assert derive(cost, halves, cost.narrowest) == cost.space.narrowest


def test_no_network_is_that_cheap(cost):
    with pytest.raises(ValueError, match="the narrowest takes"):
        derive(cost, {"front": [1, 0, 0], "back": [1, 0, 0, 0]}, cost.narrowest * 0.99)


def test_too_many():
    def chain(groups):
        network = torch.nn.Sequential(*(torch.nn.Conv2d(9, 9, 1) for _ in range(groups + 1)))
        names = [f"group{i}" for i in range(groups)]
        side = [Channels(), *map(Channels, names), Channels()]
        layers = [Layer(str(i), side[i], side[i + 1], masked=i < groups) for i in range(groups + 1)]
        space = Space({name: tuple(range(9, 0, -1)) for name in names}, layers)
        return Cost(network, space, torch.zeros(1, 9, 1, 1))

    assert chain(7).widest == 8 * 81 and 9**7 < 10**7
    with pytest.raises(ValueError, match="at most 10000000 networks"):
        all_choices(chain(8))
