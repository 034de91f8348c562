import itertools
import threading

import pytest
from cases import amp_trainer, empty_epoch, one_identity, sync_bn
from fastreid.data import samplers

from fastreid_rib.compat import checks


def data(images):
    """Identities with the given numbers of images, over two cameras in turn."""
    return [("", pid, shot % 2) for pid, n in enumerate(images) for shot in range(n)]


def yields(name, images, batch, instances, processes, monkeypatch):
    """Whether FastReID's own sampler gives a batch: its loop is run, for a while at most."""
    from fastreid.data.samplers import triplet_sampler
    from fastreid.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    monkeypatch.setattr(checks, "refuse_impossible_batch", lambda *a: None)
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
    ([4] * 15, 32, 4, 2),
    ([8] * 12, 32, 4, 2),
    ([1] * 16, 32, 4, 2),
    ([4] * 16, 6, 4, 2),
    ([4] * 16, 21, 4, 3),
    ([4] * 16, 2, 4, 1),
    ([4] * 16, 10, 4, 2),
    ([2] * 3, 4, 2, 2),
    ([9, 1, 1], 4, 2, 2),
    ([9, 9, 1], 4, 2, 3),
    ([9] * 3, 4, 2, 3),
]


@pytest.mark.parametrize("name", ["BalancedIdentitySampler", "NaiveIdentitySampler"])
@pytest.mark.parametrize("case", CASES)
def test_exactly_the_batches_that_never_come_are_refused(name, case, monkeypatch):
    if name.startswith("Naive") and case[1] < case[2]:
        return  # FastReID's loop spins without a turn that could be counted
    assert checks.fills_batches(name, *case) == yields(name, *case, monkeypatch)


def test_stock_samplers_hang(stock):
    assert stock["balanced"] is False
    assert stock["naive"] is False


def test_too_few_identities():
    with pytest.raises(ValueError) as raised:
        samplers.NaiveIdentitySampler(data([4] * 15), 64, 4, seed=0)
    assert str(raised.value) == (
        "NaiveIdentitySampler can never fill a batch of SOLVER.IMS_PER_BATCH 64 with "
        "DATALOADER.NUM_INSTANCE 4: it needs IMS_PER_BATCH to be a multiple of NUM_INSTANCE x "
        "processes, and IMS_PER_BATCH / NUM_INSTANCE identities of the 15 in the training set. "
        "Write SOLVER.IMS_PER_BATCH 60 or DATALOADER.NUM_INSTANCE 8."
    )
    assert next(iter(samplers.NaiveIdentitySampler(data([4] * 15), 60, 4, seed=0))) in range(60)
    assert next(iter(samplers.NaiveIdentitySampler(data([4] * 15), 64, 8, seed=0))) in range(60)


def test_a_batch_that_the_instances_do_not_divide():
    with pytest.raises(ValueError, match="Write SOLVER.IMS_PER_BATCH 28 or .*NUM_INSTANCE 3 or"):
        samplers.BalancedIdentitySampler(data([4] * 16), 30, 4, seed=0)


def test_processes_are_named(monkeypatch):
    from fastreid.utils import comm

    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH 63 \(3 processes with 21 each\)"):
        samplers.NaiveIdentitySampler(data([4] * 16), 21, 4, seed=0)


def test_the_training_sampler_needs_none_of_it():
    assert next(iter(samplers.TrainingSampler(3, seed=0))) in range(3)


def test_set_reweight_sampler_fills_batches(stock):
    assert stock["reweight"] is not True
    images = data([4] * 6)
    sampler = samplers.SetReWeightSampler(images, 24, 2, [1, 3], seed=0)
    batch = list(itertools.islice(iter(sampler), 24))
    # Three draws of 1 + 3 identities with 2 images each.
    assert len(batch) == 24
    assert set(batch) <= set(range(24))
    again = samplers.SetReWeightSampler(images, 24, 2, [1, 3], seed=0)
    assert list(itertools.islice(iter(again), 24)) == batch
    pids = [images[index][1] for index in batch]
    assert all(pids.count(pid) % 2 == 0 for pid in pids)


def test_set_weights_must_match_the_cameras():
    with pytest.raises(ValueError, match=r"each of the 2 cameras \[0, 1\], got \(1, 1, 1\)"):
        samplers.SetReWeightSampler(data([4] * 6), 24, 2, (1, 1, 1), seed=0)


def test_a_training_set_smaller_than_a_batch(stock):
    assert stock["empty_epoch"].startswith("ZeroDivisionError")
    with pytest.raises(ValueError, match="Write a smaller SOLVER.IMS_PER_BATCH"):
        empty_epoch()


def test_a_training_set_of_one_identity(stock):
    assert stock["one_identity"].startswith("ZeroDivisionError")
    with pytest.raises(ValueError, match="NUM_CLASSES is 1: the training set has nothing to tell"):
        one_identity()


def test_sync_bn_on_the_cpu(stock):
    assert "NORM" not in stock["sync_bn"]
    with pytest.raises(ValueError, match="MODEL.BACKBONE.NORM BN and MODEL.HEADS.NORM BN"):
        sync_bn()


def test_torchs_own_sync_bn_is_untouched():
    import torch
    from fastreid.layers.batch_norm import SyncBatchNorm

    assert not hasattr(torch.nn.SyncBatchNorm.forward, "__stock__")
    assert hasattr(SyncBatchNorm.forward, "__stock__")


def test_amp_on_the_cpu(stock):
    assert stock["amp"] is None  # it failed only in the first step
    with pytest.raises(ValueError, match="write SOLVER.AMP.ENABLED False"):
        amp_trainer()


def test_nothing_is_evaluated_after_a_failure():
    from fastreid.engine.hooks import EvalHook

    class Trainer:
        epoch, max_epoch = 0, 1

    called = threading.Event()
    for fails in (True, False):
        hook = EvalHook(2, lambda: called.set())
        hook.trainer = Trainer
        try:
            try:
                if fails:
                    raise RuntimeError("training failed")
            finally:
                hook.after_train()
        except RuntimeError:
            assert not called.is_set()
    assert called.is_set()
