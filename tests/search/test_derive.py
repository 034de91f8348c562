"""The most probable network that can be afforded, as comparing them one by one finds it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import GROUPS, Network, space

from fastreid_rib.search import Channels, Cost, Layer, Space, derive
from fastreid_rib.search.derive import all_choices


@pytest.fixture(scope="module")
def cost():
    return Cost(Network(), space(), torch.zeros(1, 3, 16, 8))


@given(st.lists(st.floats(0.01, 1), min_size=7, max_size=7), st.floats(0.3, 1))
@settings(max_examples=40, deadline=None)
def test_as_one_by_one(cost, numbers, share):
    probabilities = {"front": numbers[:3], "back": numbers[3:]}
    limit = max(cost.narrowest, share * cost.widest)
    found = derive(cost, probabilities, limit)
    assert cost.of(found) <= limit * (1 + 1e-9)

    def probability(widths):
        return math.prod(
            probabilities[group][GROUPS[group].index(width)] for group, width in widths.items()
        )

    for row in itertools.product(*GROUPS.values()):
        widths = dict(zip(GROUPS, row))
        if cost.of(widths) <= limit:
            assert probability(widths) <= probability(found) * (1 + 1e-9)


def test_of_equals_the_one_that_costs_most(cost):
    equal = {"front": [1 / 3] * 3, "back": [1 / 4] * 4}
    assert derive(cost, equal, cost.widest) == cost.space.widest
    assert derive(cost, equal, cost.narrowest) == cost.space.narrowest


def test_no_network_is_that_cheap(cost):
    with pytest.raises(ValueError, match="the narrowest takes"):
        derive(cost, {"front": [1, 0, 0], "back": [1, 0, 0, 0]}, cost.narrowest * 0.99)


def test_all_choices(cost):
    choices = all_choices(cost)
    assert len(choices.costs) == 12 and choices.at(0) == cost.space.widest
    assert float(choices.costs[0]) == cost.widest and float(choices.costs[-1]) == cost.narrowest


def test_too_many():
    network = torch.nn.Sequential(*(torch.nn.Conv2d(9, 9, 1) for _ in range(8)))
    side = [Channels()] + [Channels(f"group{i}") for i in range(7)] + [Channels()]
    layers = [Layer(str(i), side[i], side[i + 1], masked=i < 7) for i in range(8)]
    large = Space({f"group{i}": tuple(range(9, 0, -1)) for i in range(7)}, layers)
    assert 9**7 < 10**7
    cost = Cost(network, large, torch.zeros(1, 9, 1, 1))
    larger = Cost(
        torch.nn.Sequential(*network, torch.nn.Conv2d(9, 9, 1)),
        Space(
            {**large.groups, "group7": tuple(range(9, 0, -1))},
            [
                *layers[:-1],
                Layer("7", Channels("group6"), Channels("group7"), masked=True),
                Layer("8", Channels("group7"), Channels()),
            ],
        ),
        torch.zeros(1, 9, 1, 1),
    )
    assert cost.widest == 8 * 81
    with pytest.raises(ValueError, match="at most 10000000 networks"):
        all_choices(larger)
