"""Refreshes within an epoch: before which step, and from what. And the ramp of the weight."""

import functools
import sys

import pytest
import torch
from kinds import MOVING, PAPER

from fastreid_rib import losses

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1, **PAPER)

STEPS, ROWS, DIM = 10, 2, 4
CLASSES = 2 * STEPS


@pytest.fixture
def calls(monkeypatch):
    """What each refresh was made of: (labels, whether there were inputs)."""
    # By this name the package has the function, not the module.
    module = sys.modules["fastreid_rib.losses.rib_loss"]
    seen, refresh = [], module.refresh

    def listen(rows, labels, inputs, *args, **kwargs):
        seen.append((labels.tolist(), inputs is not None))
        return refresh(rows, labels, inputs, *args, **kwargs)

    monkeypatch.setattr(module, "refresh", listen)
    return seen


def train(rib, epoch, calls, steps=STEPS, rows=ROWS, with_inputs=False):
    """An epoch whose rows of a step have its number as their label, those of odd epochs 10 more.

    Returns:
        The steps before which there was a refresh; that of ``start_epoch`` is -1.
    """
    count = len(calls)
    rib.start_epoch(epoch)
    before = [-1] * (len(calls) - count)
    for step in range(steps):
        count = len(calls)
        generator = torch.Generator().manual_seed(100 * epoch + step)
        embeddings = torch.randn(rows, DIM, generator=generator).requires_grad_()
        labels = torch.full((rows,), step % STEPS + STEPS * (epoch % 2))
        rib(embeddings, labels, torch.rand(rows, 3) if with_inputs else None).backward()
        before += [step] * (len(calls) - count)
    return before


def numbers(first, last, epoch):
    return [step + STEPS * (epoch % 2) for step in range(first, last) for _ in range(ROWS)]


@pytest.mark.parametrize("with_inputs", [False, True])
def test_three_refreshes_in_ten_steps(calls, with_inputs):
    rib = RIBLoss(CLASSES, refreshes=3)
    assert train(rib, 0, calls, with_inputs=with_inputs) == []
    for epoch in (1, 2):
        calls.clear()
        # A third of the epoch is done with 3.3 steps, two thirds with 6.7.
        assert train(rib, epoch, calls, with_inputs=with_inputs) == [-1, 4, 7]
        labels = [labels for labels, _ in calls]
        assert labels[0] == numbers(0, 10, epoch - 1)
        # What this epoch gave so far, without the step that comes, and the rest of the last one.
        assert labels[1] == numbers(0, 4, epoch) + numbers(4, 10, epoch - 1)
        assert labels[2] == numbers(0, 7, epoch) + numbers(7, 10, epoch - 1)
        assert [had_inputs for _, had_inputs in calls] == [with_inputs, False, False]


@pytest.mark.parametrize(
    ("refreshes", "expected"),
    [
        (1, []),
        (2, [5]),
        (4, [3, 5, 8]),
        (10, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (25, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_where_they_come(calls, refreshes, expected):
    rib = RIBLoss(CLASSES, refreshes=refreshes)
    train(rib, 0, calls)
    assert train(rib, 1, calls) == [-1, *expected]


def test_the_length_of_an_epoch_is_that_of_the_one_before(calls):
    rib = RIBLoss(CLASSES, refreshes=2)
    train(rib, 0, calls, steps=10)
    assert train(rib, 1, calls, steps=4) == [-1]  # half of ten steps never came
    assert train(rib, 2, calls, steps=10) == [-1, 2]
    assert train(rib, 3, calls, steps=0) == [-1]
    assert train(rib, 4, calls, steps=10) == []  # of an epoch of no steps there is no half


def test_none_before_the_start(calls):
    rib = RIBLoss(CLASSES, refreshes=2, warmup_epochs=3)
    assert [train(rib, epoch, calls) for epoch in range(4)] == [[], [], [], [-1, 5]]


def test_steps_without_a_gradient_or_in_eval_mode_do_not_count(calls):
    rib = RIBLoss(CLASSES, refreshes=2)
    train(rib, 0, calls)
    rib.start_epoch(1)
    embeddings, labels = torch.randn(2, DIM), torch.zeros(2).long()
    calls.clear()
    for _ in range(10):
        with torch.no_grad():
            rib(embeddings, labels)
        rib.eval()
        rib(embeddings, labels)
        rib.train()
    assert calls == []


def test_a_full_bank_gives_its_share(calls):
    rib = RIBLoss(CLASSES, refreshes=2, bank_size=9)
    train(rib, 0, calls)
    assert train(rib, 1, calls) == [-1, 5]
    labels = calls[1][0]
    assert len(labels) == 9 + (9 - 9 * 5 // 10)
    assert all(label >= STEPS for label in labels[:9])  # of this epoch
    assert all(label < STEPS for label in labels[9:])


@pytest.mark.parametrize("empty", [0, 1])
def test_an_epoch_that_gave_no_rows_so_far_is_no_reason_to_refresh(calls, empty):
    rib = RIBLoss(CLASSES, refreshes=2)
    for epoch in range(3):
        count = len(calls)
        before = train(rib, epoch, calls, rows=0 if epoch == empty else ROWS)
        assert len(calls) - count == len(before)
    assert before == ([-1, 5] if empty == 0 else [])


def test_the_loss_of_a_step_does_not_see_its_own_batch():
    """Two runs that differ in the step before which there is a refresh, agree up to it."""
    found = []
    for other in (False, True):
        rib = RIBLoss(CLASSES, **{**MOVING, "momentum": 0.0})
        for epoch in (0, 1):
            rib.start_epoch(epoch)
            for step in range(STEPS):
                generator = torch.Generator().manual_seed(100 * epoch + step)
                embeddings = torch.randn(ROWS, DIM, generator=generator).requires_grad_()
                if other and (epoch, step) == (1, 5):
                    embeddings = torch.randn(ROWS, DIM, generator=generator).requires_grad_()
                rib(embeddings, torch.tensor([step, step + 1]))
                if (epoch, step) == (1, 5):
                    found.append((rib.centroids.clone(), rib.log_q.clone(), rib.mean.clone()))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found))


# The ramp


def test_the_weight_rises_in_equal_steps():
    rib = losses.RIBLoss(3, warmup_epochs=2, ramp_epochs=3)
    weights = [rib.weight]
    for epoch in range(8):
        rib.start_epoch(epoch)
        weights.append(rib.weight)
    assert weights == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert RIBLoss(3).weight == 0
    without = RIBLoss(3)
    without.start_epoch(1)
    assert without.weight == 1


def test_the_loss_and_its_gradient_have_the_weight():
    ribs = [RIBLoss(5, ramp_epochs=ramp) for ramp in (0, 1)]
    for epoch in range(4):
        reports = [rib.start_epoch(epoch) for rib in ribs]
        assert reports[0] == reports[1]  # the bound itself, without the weight
        for step in range(4):
            generator = torch.Generator().manual_seed(10 * epoch + step)
            embeddings = torch.randn(10, DIM, generator=generator).requires_grad_()
            pairs = []
            for rib in ribs:
                loss = rib(embeddings, torch.arange(10) % 5)
                pairs.append((loss, torch.autograd.grad(loss, embeddings)[0]))
            (full, gradient), (ramped, of_ramped) = pairs
            weight = (0, 0.5, 1, 1)[epoch]
            assert ramped.item() == weight * full.item()
            assert torch.allclose(of_ramped, weight * gradient)
            assert (full.item() != 0) == (epoch > 0)
