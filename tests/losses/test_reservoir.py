import pytest
import torch

from fastreid_rib.losses.reservoir import Reservoir


def stream(bank, total, batch, start=0):
    """Rows (i,) with label (i, i) for i = start..total-1, in batches."""
    for first in range(start, total, batch):
        numbers = torch.arange(first, min(first + batch, total))
        bank.add(numbers[:, None].half(), torch.stack([numbers, numbers], 1))
    return bank


def test_grows_by_doubling_and_never_beyond_its_limit():
    bank = Reservoir(50, seed=0)
    capacities = []
    for first in range(0, 64, 4):
        stream(bank, first + 4, 4, first)
        capacities.append(len(bank.rows))
        assert bank.filled == min(first + 4, 50)
    assert sorted(set(capacities)) == [4, 8, 16, 32, 50]


def test_rows_and_labels_stay_together():
    rows, labels = stream(Reservoir(16, seed=1), 400, 5).content()
    assert len(labels) == len(set(labels[:, 0].tolist())) == 16
    assert rows.flatten().tolist() == labels[:, 0].tolist() == labels[:, 1].tolist()


@pytest.mark.parametrize("batch", [7, 64])
def test_sample_is_uniform(batch):
    limit, total, runs = 20, 200, 400
    kept = torch.zeros(total)
    for seed in range(runs):
        kept[stream(Reservoir(limit, seed), total, batch).content()[1][:, 0]] += 1
    rate = limit / total
    assert kept.sum().item() == runs * limit
    # Chi-square of 199 degrees of freedom: mean 199, deviation 20.
    chi_square = ((kept - runs * rate) ** 2 / (runs * rate * (1 - rate))).sum().item()
    assert 130 < chi_square < 270
    # No drift along the stream either: the count of a half deviates by about 2.13 in a run.
    assert abs(kept[:100].sum().item() - runs * limit / 2) < 4 * 2.13 * runs**0.5


def test_decisions_are_keyed_by_seed_and_epoch():
    def sample(seed, epoch):
        bank = Reservoir(10, seed)
        bank.begin(epoch)
        return stream(bank, 100, 8).content()[1].tolist()

    assert sample(0, 1) == sample(0, 1)
    assert sample(0, 1) != sample(0, 2)
    assert sample(0, 1) != sample(1, 1)


def test_a_restored_bank_goes_on_as_the_first_would():
    first = stream(Reservoir(10, seed=0), 24, 8)
    second = Reservoir(10, seed=0)
    second.begin(first.epoch, 24, tuple(t.clone() for t in first.content()))
    assert torch.equal(
        stream(first, 80, 8, 24).content()[1], stream(second, 80, 8, 24).content()[1]
    )


def test_another_limit_after_a_restore_keeps_the_sample_unbiased():
    full = stream(Reservoir(10, seed=0), 24, 8)
    larger = Reservoir(100, seed=0)
    larger.begin(0, 24, full.content())
    assert stream(larger, 80, 8, 24).filled == 10  # 14 rows are gone: it cannot grow any more
    smaller = Reservoir(4, seed=0)
    smaller.begin(0, 24, full.content())
    assert stream(smaller, 80, 8, 24).filled == 10
    smaller.begin(1)
    assert stream(smaller, 80, 8).filled == 4
    unsampled = Reservoir(100, seed=0)
    unsampled.begin(0, 8, stream(Reservoir(10, seed=0), 8, 8).content())
    assert stream(unsampled, 80, 8, 8).filled == 80
