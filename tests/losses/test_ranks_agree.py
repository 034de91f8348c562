"""Fed the same embeddings in the same order, 1, 2 and 4 processes hold the same statistics."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kinds import MOVING, PAPER

from fastreid_rib import losses
from fastreid_rib.base import ranks

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, **{**PAPER, "warmup_epochs": 1, "beta": 12.0})

CLASSES, DIM, EPOCHS, STEPS, BATCH = 10, 6, 4, 6, 24
SIZES = (1, 2, 4)
CASES = {
    "even": ({}, "even"),
    "uneven": ({}, "uneven"),
    "one rank has all": ({"num_clusters": 7}, "one"),
    # Rank 0 sees only the first identities, the last rank only the last ones.
    "identities of their own": ({"gamma": 0.5}, "sorted"),
    "the bank is sampled": ({"bank_size": 37}, "uneven"),
    # 37 rows in four slices. With many more clusters than these 12 rows lie on centroids, equally
    # far from them to rounding, and two clusters may swap their numbers.
    "more clusters than rows of a slice": ({"bank_size": 37, "num_clusters": 12}, "even"),
    "fewer rows than ranks": ({"bank_size": 3, "num_clusters": 5}, "uneven"),
    "a sparse table": ({"table_entries": 3}, "uneven"),
    "plain PyTorch": ({"backend": "torch"}, "uneven"),
    "moving": ({**MOVING, "gamma": 0.5}, "uneven"),
    "moving, one rank has all": ({**MOVING, "refreshes": 3, "num_clusters": 7}, "one"),
    "moving, the bank is sampled": ({**MOVING, "bank_size": 37}, "uneven"),
    "cameras": ({"center": True, "relevance": "full", "cross_camera": True}, "uneven"),
    "cameras, a sparse table": ({"table_entries": 3, "cross_camera": True}, "sorted"),
    "cameras, one rank has all": ({"num_clusters": 7, "cross_camera": True}, "one"),
    "moving, a sparse table": ({**MOVING, "table_entries": 3, "form": "clusters"}, "uneven"),
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
    """The rows of a rank: with fewer than four, each has those of several."""
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
            of_batch = rib(embeddings.nan_to_num(0.1), labels, cameras=cameras)
            losses.append(of_batch.item() * count)
            # Not finite: a step that AMP would skip; its rows must mark their places everywhere.
            rib(embeddings, labels, cameras=cameras)
        states.append(copy.deepcopy(rib.state_dict()))  # a table that moves does so in place
    reports.append(rib.start_epoch(EPOCHS))
    states.append(rib.state_dict())
    return {"losses": torch.tensor(losses), "reports": reports, "states": states}


def complaint(rank):
    """What a rank is told if its embeddings have another size than the others'."""
    try:
        RIBLoss(CLASSES)(torch.randn(rank + 1, DIM + (rank == 1)), torch.zeros(rank + 1).long())
    except ValueError as error:
        return str(error)
    return ""


def beside_another_backend(rank):
    """Sizes are told from host to host also where the process group is not gloo's."""
    get_backend, dist.get_backend = dist.get_backend, lambda: "nccl"
    try:
        return [ranks.exchange(rank, 7), ranks.exchange(rank + 1, 7), ranks._made is not None]
    finally:
        dist.get_backend = get_backend


def work(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous{size}", rank=rank, world_size=size
    )
    results = {case: train(case, rank, size) for case in CASES}
    results["complaint"] = complaint(rank)
    results["host group"] = beside_another_backend(rank)
    torch.save(results, f"{folder}/{size}-{rank}.pth")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Size -> what each rank had."""
    folder = tmp_path_factory.mktemp("agree")
    for size in SIZES[1:]:
        mp.spawn(work, args=(size, str(folder)), nprocs=size)
    found = {
        size: [torch.load(folder / f"{size}-{rank}.pth") for rank in range(size)]
        for size in SIZES[1:]
    }
    found[1] = [{case: train(case, 0, 1) for case in CASES}]
    return found


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("case", CASES)
def test_all_ranks_hold_the_same_bits(outcomes, case, size):
    first, *others = (outcome[case] for outcome in outcomes[size])
    for other in others:
        assert first["reports"] == other["reports"]
        for mine, theirs in zip(first["states"], other["states"]):
            assert mine.keys() == theirs.keys()
            assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    assert {"centroids", "log_q", "bank_rows"} <= first["states"][1].keys()
    assert ("cameras" in case) == ("camera_rows" in first["states"][1])


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_agrees_with_one(outcomes, case, size):
    alone, together = outcomes[1][0][case], outcomes[size][0][case]
    for mine, theirs in zip(alone["states"], together["states"]):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if value.is_floating_point() and not key.startswith("bank"):
                if key == "log_q_floor":  # what is left of a row beside its entries: a difference
                    assert torch.allclose(value.exp(), theirs[key].exp(), atol=1e-6)
                    continue
                # log Q is as exact as the logits, whose rounding beta multiplies.
                atol = 2e-5 if key.startswith("log_q") else 1e-6
                assert torch.allclose(value, theirs[key], rtol=1e-6, atol=atol), key
            else:
                assert torch.equal(value, theirs[key]), key
    for mine, theirs in zip(alone["reports"], together["reports"]):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    losses = sum(outcome[case]["losses"] for outcome in outcomes[size])
    assert torch.allclose(losses, alone["losses"], rtol=1e-5, atol=1e-5)
    assert alone["losses"][STEPS:].abs().min() > 0


@pytest.mark.parametrize("size", SIZES[1:])
def test_other_dimensions_on_a_rank_are_told_on_every_rank(outcomes, size):
    for outcome in outcomes[size]:
        assert "the same number of columns on every rank" in outcome["complaint"]
        assert "rank 0: (1, 6) and none, rank 1: (2, 7) and none" in outcome["complaint"]


@pytest.mark.parametrize("size", SIZES[1:])
def test_sizes_are_told_from_host_to_host(outcomes, size):
    for outcome in outcomes[size]:
        first, second, made = outcome["host group"]
        assert first == [(rank, 7) for rank in range(size)]
        assert second == [(rank + 1, 7) for rank in range(size)]
        assert made
