"""The search in plain PyTorch: it finds what it should, and repeats."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastreid_rib.search import Channels, Cost, Layer, Space, WidthChoice, WidthSearch
from fastreid_rib.search.width_search import gumbel
from fastreid_rib.settings.search import SearchSettings

pytestmark = pytest.mark.published


class Rank(nn.Module):
    """A linear map through a bottleneck: what it can learn is of the bottleneck's rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return self.decode(self.encode(x))


WIDTHS = (8, 6, 4, 2)


def rank_search(seed=3, **settings):
    network = Rank()
    inside = Channels("inside")
    layers = [Layer("encode", Channels(), inside, masked=True), Layer("decode", inside, Channels())]
    cost = Cost(network, Space({"inside": WIDTHS}, layers), torch.zeros(1, 8))
    return network, WidthSearch(network, cost, SearchSettings(**settings), seed=seed)


def run(network, search, rank, epochs=10, steps=40):
    """Searches on the task of giving back the first `rank` of 8 numbers."""
    logits = torch.optim.Adam(search.parameters(), lr=0.05)
    weights = torch.optim.Adam(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        search.set_progress(epoch / (epochs - 1))
        for _ in range(steps):
            search.draw()
            x = torch.randn(64, 8, generator=generator)
            wanted = x * (torch.arange(8) < rank)
            loss = (network(x) - wanted).square().sum(1).mean() + search.cost_loss()
            for optimizer in (logits, weights):
                optimizer.zero_grad()
            loss.backward()
            (weights if search.step_is_for_weights() else logits).step()
    return search


def test_what_is_found():
    half = {"weights_share": 0.5}
    search = rank_search(cost_scale=0.0, target=1.0, **half)
    assert run(*search, rank=8).derive() == {"inside": 8}, "cost does not count"
    search = rank_search(cost_scale=100.0, target=2 / 8, **half)
    assert run(*search, rank=8).derive() == {"inside": 2}, "cost is all"
    search = rank_search(cost_scale=100.0, target=6 / 8, **half)
    widths = run(*search, rank=8, epochs=15).probabilities()["inside"]
    assert max(range(4), key=widths.__getitem__) == 1, "the target counts"


def test_seeds_repeat_and_differ():
    found = [run(*rank_search(seed=seed), rank=4, epochs=2) for seed in (3, 3, 4)]
    same, again, other = (search.choices["inside"].logits for search in found)
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_gates_cool_geometrically_and_steps_without_gradients_are_not_counted():
    _, search = rank_search(temperature=4.0, final_temperature=0.25)
    temperatures = []
    for progress in (0.0, 0.5, 1.0):
        search.set_progress(progress)
        temperatures.append(search.temperature)
    assert temperatures == pytest.approx([4.0, 1.0, 0.25])
    with torch.no_grad():
        search.draw()
    assert int(search.steps) == 0


def test_the_cost_term():
    network, search = rank_search(target=0.5, cost_scale=3.0)
    search.eval()  # the widest of equals
    assert float(search.cost_loss()) == pytest.approx(3 * 0.6931, abs=1e-3)
    with torch.no_grad():
        search.choices["inside"].logits[3] = 1.0
    assert float(search.cost_loss()) == pytest.approx(3 * 0.6931, abs=1e-3), "below it as above"
    report = search.report()
    assert report["cost"] == 0.25 and 0 < report["entropy/inside"] < 1.3863, "of log 4"


widths = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(
    lambda found: tuple(sorted(found, reverse=True))
)


@given(widths, st.integers(0, 10**6), st.floats(0.05, 20), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_the_sum_of_the_mask_is_the_effective_width(options, seed, temperature, times):
    choice = WidthChoice(options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        choice.logits.copy_(gumbel(len(options), generator))
    choice.draw(gumbel(len(options), generator), temperature)
    mask = choice.mask(times)
    assert mask.shape == (times * options[0],)
    torch.testing.assert_close(mask.sum(), times * choice.effective_width(), rtol=1e-5, atol=1e-5)
    assert (mask[:-1] >= mask[1:] - 1e-6).all(), "channels are dropped from the end"
    assert options[-1] - 1e-3 <= choice.effective_width() <= options[0] + 1e-3


def test_draws_follow_the_logits():
    choice = WidthChoice((8, 4, 2))
    with torch.no_grad():
        choice.logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(3)
    for _ in range(4000):
        choice.draw(gumbel(3, generator), 0.01)
        counts[choice.gates.argmax()] += 1
    torch.testing.assert_close(counts / 4000, choice.probabilities(), atol=0.03, rtol=0)
