"""Fed the same embeddings in the same order, 1 and 4 processes hold the same statistics."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from files import everything
from kinds import EMBEDDING, PAPER
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastreid_rib import losses
from fastreid_rib.base import ranks

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1, beta=12.0)

CLASSES, DIM, EPOCHS, STEPS, BATCH = 10, 6, 4, 6, 24
SIZE = 4
CASES = {
    "even": ({}, "even"),
    "uneven": ({}, "uneven"),
    "as published": (PAPER, "uneven"),
    "one rank has all": ({"num_clusters": 7}, "one"),
    # Rank 0 sees only the first identities, the last rank only the last ones.
    "identities of their own": ({"gamma": 0.5}, "sorted"),
    "the bank is sampled": ({"bank_size": 37}, "uneven"),
    # Not centred: rows that lie on centroids are equally far from them, to rounding.
    "fewer rows than ranks": ({**PAPER, "bank_size": 3, "num_clusters": 5}, "uneven"),
    "embedding, plain PyTorch": ({**EMBEDDING, "backend": "torch"}, "uneven"),
    "cameras": ({}, "uneven"),
    "cameras, identities of their own": (EMBEDDING, "sorted"),
    "cameras, one rank has all": ({"num_clusters": 7}, "one"),
}


def batches(epoch, how):
    """The batches of an epoch, and where each of four ranks' part ends."""
    generator = torch.Generator().manual_seed(epoch)
    means = torch.eye(CLASSES, DIM) + 0.4
    for step in range(STEPS):
        labels = torch.randint(0, CLASSES - 1, (BATCH,), generator=generator)
        if how == "sorted":
            labels = labels.sort().values
        labels[labels == epoch] = -1  # each epoch another identity is absent, the last one always
        embeddings = means[labels] + 0.3 * torch.randn(BATCH, DIM, generator=generator)
        if step == 2:
            embeddings[5] = float("nan")
        ends = {
            "one": (0, 0, BATCH, BATCH),
            "uneven": ((1, 1, 16, BATCH), (0, 9, 10, 23), (5, 11, 17, BATCH))[step % 3],
        }.get(how, (BATCH // 4, BATCH // 2, 3 * BATCH // 4, BATCH))
        yield embeddings, labels, ends


def share(ends, rank, size):
    """The rows of a rank; one alone has all."""
    ends = (0,) + ends[:-1] + (BATCH,)
    return slice(ends[4 * rank // size], ends[4 * (rank + 1) // size])


def train(case, rank, size):
    settings, how = CASES[case]
    rib = RIBLoss(CLASSES, **settings)
    losses, reports, states = [], [], []
    for epoch in range(EPOCHS):
        reports.append(rib.start_epoch(epoch))
        for embeddings, labels, ends in batches(epoch, how):
            own = share(ends, rank, size)
            cameras = torch.arange(len(labels))[own] % 3 if "cameras" in case else None
            embeddings, labels = embeddings[own], labels[own]
            count = int((labels >= 0).sum())
            of_batch = rib(embeddings.nan_to_num(0.1), labels, cameras)
            losses.append(of_batch.item() * count)
            # Not finite: a step that AMP would skip; its rows must mark their places everywhere.
            rib(embeddings, labels, cameras)
        states.append(rib.state_dict())
    reports.append(rib.start_epoch(EPOCHS))
    states.append(rib.state_dict())
    return {"losses": torch.tensor(losses), "reports": reports, "states": states}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(DIM, DIM)
        self.rib = RIBLoss(CLASSES)

    def forward(self, embeddings, labels):
        return self.rib(self.layer(embeddings), labels)


def train_wrapped(rank):
    """Under DistributedDataParallel as it comes, that is with its broadcast of buffers."""
    model = Model()
    wrapped = DistributedDataParallel(model)
    for epoch in range(3):
        model.rib.start_epoch(epoch)
        for embeddings, labels, ends in batches(epoch, "even"):
            own = share(ends, rank, SIZE)
            wrapped(embeddings[own].nan_to_num(0.1), labels[own]).backward()
    return {"gradient": model.layer.weight.grad, **everything(model)}


def complaint(rank):
    """What a rank is told if its embeddings have another size than the others'."""
    try:
        RIBLoss(CLASSES)(torch.randn(rank + 1, DIM + (rank == 1)), torch.zeros(rank + 1).long())
    except ValueError as error:
        return str(error)
    return ""


def too_large(rank):
    """What a rank is told if another one had a label that is no identity, as a GPU cannot say."""
    rib = RIBLoss(CLASSES)
    rib.start_epoch(0)
    rib.bank.gather(torch.randn(2, DIM), torch.full((2,), CLASSES if rank == 2 else 0), None)
    try:
        rib.start_epoch(1)
    except ValueError as error:
        return str(error)
    return ""


def beside_another_backend(rank):
    """Sizes are told from host to host also where the process group is not gloo's."""
    get_backend, dist.get_backend = dist.get_backend, lambda: "nccl"
    try:
        return [ranks.exchange(rank, 7), ranks.exchange(rank + 1, 7), bool(ranks._host_groups)]
    finally:
        dist.get_backend = get_backend


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=SIZE
    )
    results = {case: train(case, rank, SIZE) for case in CASES}
    results["wrapped"] = train_wrapped(rank)
    results["complaint"], results["too large"] = complaint(rank), too_large(rank)
    results["host group"] = beside_another_backend(rank)
    results["joined"] = ranks.join_slices(torch.arange(7.0)[ranks.own_slice(7)], 7)
    torch.save(results, f"{folder}/{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each of four ranks had."""
    folder = tmp_path_factory.mktemp("agree")
    mp.spawn(work, args=(str(folder),), nprocs=SIZE)
    return [torch.load(folder / f"{rank}.pth") for rank in range(SIZE)]


def unequal(first, second):
    assert first.keys() == second.keys()
    return [key for key in first if not torch.equal(first[key], second[key])]


@pytest.mark.parametrize("case", CASES)
def test_all_ranks_hold_the_same_bits(outcomes, case):
    first, *others = (outcome[case] for outcome in outcomes)
    for other in others:
        assert first["reports"] == other["reports"]
        for mine, theirs in zip(first["states"], other["states"]):
            assert unequal(mine, theirs) == []
    assert {"centroids", "log_q", "bank_rows"} <= first["states"][1].keys()
    assert ("cameras" in case) == ("camera_rows" in first["states"][1])


@pytest.mark.parametrize("case", CASES)
def test_four_processes_agree_with_one(outcomes, case):
    alone, together = train(case, 0, 1), outcomes[0][case]
    for mine, theirs in zip(alone["states"], together["states"]):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if value.is_floating_point() and not key.startswith("bank"):
                # log Q is as exact as the logits, whose rounding beta multiplies.
                atol = 2e-5 if key.startswith("log_q") else 1e-6
                assert torch.allclose(value, theirs[key], rtol=1e-6, atol=atol), key
            else:
                assert torch.equal(value, theirs[key]), key
    for mine, theirs in zip(alone["reports"], together["reports"]):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    losses = sum(outcome[case]["losses"] for outcome in outcomes)
    assert torch.allclose(losses, alone["losses"], rtol=1e-5, atol=1e-5)
    assert alone["losses"][STEPS:].abs().min() > 0


def test_buffers_and_gradients_under_ddp(outcomes):
    first, *others = (outcome["wrapped"] for outcome in outcomes)
    assert first["gradient"].abs().max() > 0 and "rib.centroids" in first
    assert all(unequal(first, other) == [] for other in others)


def test_what_is_wrong_on_a_rank_is_told_on_every_rank(outcomes):
    for outcome in outcomes:
        assert "the same number of columns on every rank" in outcome["complaint"]
        assert "rank 0: (1, 6), rank 1: (2, 7)" in outcome["complaint"]
        assert f"labels must be < num_classes = {CLASSES}" in outcome["too large"]


def test_sizes_are_told_from_host_to_host(outcomes):
    for outcome in outcomes:
        first, second, made = outcome["host group"]
        assert first == [(rank, 7) for rank in range(SIZE)]
        assert second == [(rank + 1, 7) for rank in range(SIZE)]
        assert made and outcome["joined"].tolist() == list(range(7))


def test_alone_every_collective_is_the_identity():
    rows = torch.arange(6.0).view(3, 2)
    assert ranks.rank_and_size() == (0, 1)
    assert ranks.exchange(3, 2) == [(3, 2)]
    assert ranks.gather_rows(rows, [3]) is rows
    assert ranks.own_slice(3) == slice(0, 3)
    assert ranks.join_slices(rows, 3) is rows
    ranks.sum_over_ranks(rows)
    assert ranks.copy_from_first(rows).tolist() == [[0, 1], [2, 3], [4, 5]]
