"""Batches that a training set cannot fill: exactly those are refused, with what would work."""

import itertools

import pytest
from fastreid.data import samplers

from fastreid_rib.compat import datasets


def data(images):
    """Identities with the given numbers of images, over two cameras in turn."""
    return [("", pid, shot % 2) for pid, n in enumerate(images) for shot in range(n)]


def yields(name, images, batch, instances, processes, monkeypatch):
    """Whether FastReID's own sampler gives a batch: its loop is run, for a while at most."""
    from fastreid.data.samplers import triplet_sampler
    from fastreid.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    monkeypatch.setattr(datasets, "fills_batches", lambda *a: True)
    sampler = getattr(triplet_sampler, name)(data(images), batch, instances, seed=0)
    turns = itertools.count()

    class EndedError(Exception):
        pass

    def permutation(*args, **kwargs):
        if next(turns) > 200:
            raise EndedError
        return stock(*args, **kwargs)

    # Each turn of either endless loop deep-copies or permutes the identities.
    if name.startswith("Balanced"):
        stock = triplet_sampler.np.random.permutation
        monkeypatch.setattr(triplet_sampler.np.random, "permutation", permutation)
    else:
        stock = triplet_sampler.copy.deepcopy
        monkeypatch.setattr(triplet_sampler.copy, "deepcopy", permutation)
    try:
        first = list(itertools.islice(sampler._infinite_indices(), batch * processes))
    except (EndedError, ZeroDivisionError):
        return False
    finally:
        monkeypatch.undo()
    return len(first) == batch * processes


CASES = [
    # images of each identity, batch of a process, instances, processes
    ([4] * 16, 64, 4, 1),
    ([4] * 15, 64, 4, 1),
    ([4] * 16, 30, 4, 1),
    ([4] * 16, 32, 4, 2),
    ([8] * 12, 32, 4, 2),
    ([1] * 16, 32, 4, 2),
    ([4] * 16, 6, 4, 2),
    ([4] * 16, 21, 4, 3),
    ([4] * 16, 2, 4, 1),
    ([4] * 16, 10, 4, 2),
    ([2] * 3, 4, 2, 2),
    ([9, 1, 1], 4, 2, 2),
    ([9, 9, 1], 4, 2, 3),
]


@pytest.mark.parametrize("name", ["BalancedIdentitySampler", "NaiveIdentitySampler"])
def test_exactly_the_batches_that_never_come_are_refused(name, monkeypatch):
    for case in CASES:
        if name.startswith("Naive") and case[1] < case[2]:
            continue  # FastReID's loop spins without a turn that could be counted
        expected = yields(name, *case, monkeypatch)
        assert datasets.fills_batches(name, *case) == expected, case


def test_the_error_says_what_would_fill_a_batch(monkeypatch):
    from fastreid.utils import comm

    with pytest.raises(ValueError) as raised:
        samplers.NaiveIdentitySampler(data([4] * 15), 64, 4, seed=0)
    assert str(raised.value) == (
        "NaiveIdentitySampler can never fill a batch of SOLVER.IMS_PER_BATCH 64 with "
        "DATALOADER.NUM_INSTANCE 4: it needs IMS_PER_BATCH to be a multiple of NUM_INSTANCE x "
        "processes, and IMS_PER_BATCH / NUM_INSTANCE identities of the 15 in the training set. "
        "Write SOLVER.IMS_PER_BATCH 60 or DATALOADER.NUM_INSTANCE 8."
    )
    for batch, instances in ((60, 4), (64, 8)):
        sampler = samplers.NaiveIdentitySampler(data([4] * 15), batch, instances, seed=0)
        assert next(iter(sampler)) in range(60)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 63 \(3 processes with 21 each\)"):
        samplers.BalancedIdentitySampler(data([4] * 16), 21, 4, seed=0)


def test_set_reweight_sampler_fills_batches_from_cameras_of_any_name():
    """FastReID's data sets name them: the weights are in the order of the names' numbers."""
    names = {0: "market1501_2", 1: "market1501_10"}
    images = [(path, pid, names[camera]) for path, pid, camera in data([4] * 6)]
    for pid in range(3):  # who is seen by one camera alone
        images += [("", 10 + pid, names[0]), ("", 20 + pid, names[1])]

    def drawn(weights, batch):
        sampler = samplers.SetReWeightSampler(images, batch, 2, weights, seed=0)
        return [images[index][1] for index in itertools.islice(iter(sampler), 10 * batch)]

    assert max(drawn((2, 0), 8)) in range(10, 20)
    pids = drawn((1, 3), 24)  # three draws of 1 + 3 identities with 2 images each
    assert len(pids) == 240 and pids == drawn((1, 3), 24)
    assert all(pids[:24].count(pid) % 2 == 0 for pid in pids[:24])


@pytest.mark.parametrize(
    "weights, batch, message",
    [
        ((1, 1, 1), 24, r"\(1, 1, 1\) identities, .* Expected 2 whole numbers, .* cameras 0, 1,"),
        ((1, 0.5), 24, "Expected 2 whole numbers"),
        ((1, 13), 56, "Camera 1 has 12 pictures: write at most 12"),
        ((1, 3), 30, "two or more times 8, got 30. Write SOLVER.IMS_PER_BATCH 24"),
    ],
)
def test_set_weights_that_fill_no_batch(weights, batch, message):
    with pytest.raises(ValueError, match=message):
        samplers.SetReWeightSampler(data([4] * 6), batch, 2, weights, seed=0)
