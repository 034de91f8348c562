"""Two real gloo processes against one."""

import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from kinds import MOVING, PAPER
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastreid_rib import losses
from fastreid_rib.base import ranks

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1, **PAPER)

CLASSES, DIM, EPOCHS, STEPS = 5, 6, 4, 7
# Seeds are drawn (7 clusters), identity means are used (5), the bank is sampled (30 rows).
SETTINGS = [{"num_clusters": 7}, {"num_clusters": 0}, {"bank_size": 30}]
SETTINGS += [{**MOVING, **settings} for settings in SETTINGS]


def batches(epoch):
    """The batches of an epoch for one process; each of two processes takes a half of each."""
    generator = torch.Generator().manual_seed(epoch)
    means = torch.eye(CLASSES, DIM)
    for _ in range(STEPS):
        labels = torch.randint(0, CLASSES - 1, (10,), generator=generator)
        labels[labels == epoch] = -1
        yield means[labels] + 0.2 * torch.randn(10, DIM, generator=generator), labels


def train(settings, share):
    rib = RIBLoss(CLASSES, beta=6.0, **settings)
    losses, reports = [], []
    for epoch in range(EPOCHS):
        reports.append(rib.start_epoch(epoch))
        for embeddings, labels in batches(epoch):
            inputs = embeddings[:, :4].abs()
            losses.append(rib(embeddings[share], labels[share], inputs[share]).item())
    reports.append(rib.start_epoch(EPOCHS))
    return {"state": rib.state_dict(), "losses": losses, "reports": reports}


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(DIM, DIM)
        self.rib = RIBLoss(CLASSES, beta=6.0, **kind)

    def forward(self, embeddings, labels):
        return self.rib(self.layer(embeddings), labels)


def train_wrapped(share, kind, state=None):
    """Under DistributedDataParallel as it comes, that is with its broadcast of buffers."""
    model = Model(kind)
    if state is not None:
        model.load_state_dict(state)
    wrapped = DistributedDataParallel(model)
    for epoch in range(3):
        model.rib.start_epoch(epoch)
        for embeddings, labels in batches(epoch):
            wrapped(embeddings[share], labels[share]).backward()
    return {
        "gradient": model.layer.weight.grad,
        "state": {key: value.clone() for key, value in model.state_dict().items()},
    }


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    share = slice(5 * rank, 5 * rank + 5)
    results = [train(settings, share) for settings in SETTINGS]
    wrapped = []
    for kind in (PAPER, MOVING):
        wrapped.append(train_wrapped(share, kind))
        wrapped.append(train_wrapped(share, kind, wrapped[-1]["state"]))
    joined = ranks.join_slices(torch.arange(7)[ranks.own_slice(7)], 7)
    few = RIBLoss(2, num_clusters=3)
    few.start_epoch(0)
    few(torch.eye(2)[:1], torch.tensor([rank - 1]))  # of the two rows one is ignored
    few.start_epoch(1)
    torch.save(
        {"results": results, "wrapped": wrapped, "joined": joined, "few": few.log_q},
        f"{folder}/{rank}.pth",
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_two_processes_hold_equal_statistics(both, case):
    first, second = (outcome["results"][case] for outcome in both)
    assert first["state"].keys() == second["state"].keys()
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key
    assert first["reports"] == second["reports"]
    assert first["reports"][1]["bound"] != 0


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_two_processes_agree_with_one(both, case):
    one, two = train(SETTINGS[case], slice(None)), both[0]["results"][case]
    assert one["state"].keys() == two["state"].keys()
    for key, value in one["state"].items():
        assert torch.allclose(value.double(), two["state"][key].double(), atol=1e-4), key
    for alone, together in zip(one["reports"], two["reports"]):
        assert alone == pytest.approx(together, abs=1e-4)


def test_buffers_and_gradients_under_ddp(both):
    for first, second in zip(*(outcome["wrapped"] for outcome in both)):
        assert torch.equal(first["gradient"], second["gradient"])
        assert first["gradient"].abs().max() > 0
        assert first["state"].keys() == second["state"].keys()
        assert all(torch.equal(v, second["state"][k]) for k, v in first["state"].items())


def test_shares_cover_the_rows(both):
    assert both[0]["joined"].tolist() == both[1]["joined"].tolist() == list(range(7))


def test_a_process_without_rows(both):
    assert torch.equal(both[0]["few"], both[1]["few"])
    assert both[0]["few"].isfinite().all()


def test_alone_every_collective_is_the_identity():
    rows = torch.arange(6.0).view(3, 2)
    assert ranks.rank_and_size() == (0, 1)
    assert ranks.exchange(3, 2) == [(3, 2)]
    assert ranks.gather_rows(rows, [3]) is rows
    assert ranks.own_slice(3) == slice(0, 3)
    assert ranks.join_slices(rows, 3) is rows
    ranks.sum_over_ranks(rows)
    assert ranks.copy_from_first(rows).tolist() == [[0, 1], [2, 3], [4, 5]]
