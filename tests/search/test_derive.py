"""The network nearest to what is drawn, as comparing them one by one finds it."""

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


@given(st.sampled_from(GROUPS["front"]), st.sampled_from(GROUPS["back"]))
def test_what_has_settled_is_derived(cost, front, back):
    chosen = {"front": front, "back": back}
    sure = {
        group: [0.97 if width == chosen[group] else 0.01 for width in widths]
        for group, widths in GROUPS.items()
    }
    assert derive(cost, sure, cost.of(chosen)) == chosen


def test_a_network_near_what_was_drawn_and_no_improbable_one(cost):
    # All but certain of 8 and 12, which cost too much. The most probable network within the limit
    # would have 8 and 4, far from what was drawn.
    probabilities = {"front": [0.98, 0.01, 0.01], "back": [0.979, 0.001, 0.001, 0.019]}
    limit = cost.widest * 0.8
    assert cost.of({"front": 8, "back": 8}) <= limit
    assert derive(cost, probabilities, limit) == {"front": 8, "back": 8}


def test_of_equals_the_one_that_costs_most(cost):
    halves = {"front": [0.5, 0.5, 0.0], "back": [0.5, 0.5, 0.0, 0.0]}
    assert derive(cost, halves, cost.widest) == cost.space.widest
    assert derive(cost, halves, cost.narrowest) == cost.space.narrowest


def test_no_network_is_that_cheap(cost):
    with pytest.raises(ValueError, match="the narrowest takes"):
        derive(cost, {"front": [1, 0, 0], "back": [1, 0, 0, 0]}, cost.narrowest * 0.99)


def test_all_choices(cost):
    choices = all_choices(cost)
    assert len(choices.costs) == 12 and choices.at(0) == cost.space.widest
    assert float(choices.costs[0]) == cost.widest and float(choices.costs[-1]) == cost.narrowest


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
