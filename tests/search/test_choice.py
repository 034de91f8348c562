"""Masks are nested, their sum is the effective width, and copies choose for themselves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_rib.search import WidthChoice
from fastreid_rib.search.choice import gumbel

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
