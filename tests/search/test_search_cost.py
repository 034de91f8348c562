"""Costs are what fvcore counts on the narrow network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import GROUPS, Network, space

from fastreid_rib.integration.search.cost import counted
from fastreid_rib.search import Cost, narrow

IMAGES = torch.zeros(1, 3, 16, 8)


@given(st.tuples(*(st.sampled_from(widths) for widths in GROUPS.values())))
@settings(max_examples=12, deadline=None)
def test_the_cost_of_a_choice_is_what_its_network_takes(widths):
    network = Network()
    cost = Cost(network, space(), IMAGES)
    choice = space().choice(widths)
    narrow(network, space(), choice)
    assert cost.of(choice) == counted(network, IMAGES)[""]


def test_by_hand():
    cost = Cost(Network(), space(), IMAGES)
    positions = 8 * 4
    expected = positions * 9 * 3 * 8  # the stem
    for inputs, outputs in ((8, 8), (8, 12), (12, 12)):
        expected += positions * (inputs * 2 * inputs + 9 * 2 * inputs + 2 * inputs * outputs)
    assert cost.widest == expected + 12 * 7
    assert cost.narrowest < cost.widest / 3


def test_many_networks_at_once():
    cost = Cost(Network(), space(), IMAGES, extra={"front": (30.0, 20.0, 10.0)}, constant=5.0)
    widths = {"front": torch.tensor([8.0, 3.0]), "back": torch.tensor([5.0, 12.0])}
    one_by_one = [cost.of({"front": 8, "back": 5}), cost.of({"front": 3, "back": 12})]
    assert cost.of(widths).tolist() == one_by_one
    plain = Cost(Network(), space(), IMAGES)
    assert one_by_one[1] == plain.of({"front": 3, "back": 12}) + 10 + 5


def test_expected_costs_have_gradients_and_meet_those_of_choices():
    cost = Cost(Network(), space(), IMAGES, extra={"back": (40.0, 30.0, 20.0, 10.0)})
    gates = {"front": torch.tensor([0.0, 1.0, 0.0]), "back": torch.tensor([0.0, 0.0, 0.0, 1.0])}
    for gate in gates.values():
        gate.requires_grad_()
    widths = {group: gates[group] @ torch.tensor(GROUPS[group]).float() for group in gates}
    found = cost.expected(widths, gates)
    assert float(found) == cost.of({"front": 6, "back": 4})
    found.backward()
    assert (gates["back"].grad[:-1] > gates["back"].grad[1:]).all(), "wider costs more"


def test_what_is_counted_apart_and_an_extra_that_does_not_fit():
    whole = Cost(Network(), space(), IMAGES)
    part = Cost(Network(), space(), IMAGES, apart=("last",))
    assert whole.widest - part.widest == 12 * 7
    with pytest.raises(ValueError, match=r"extra\['front'\] needs a number for each"):
        Cost(Network(), space(), IMAGES, extra={"front": (1.0,)})


def test_the_network_is_left_as_it_was():
    network = Network().train()
    network.stem.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Cost(network, space(), torch.randn(1, 3, 16, 8))
    assert network.training and not network.stem.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
