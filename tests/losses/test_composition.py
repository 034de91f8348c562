"""RIBLoss in larger set-ups: several forwards for a step of the optimizer, several in a model."""

import functools

import torch
from files import everything
from kinds import every_kind
from torch import nn
from torch.nn import functional as F

from fastreid_rib import losses

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1)

CLASSES, DIM = 5, 8


def batch(seed, n=24):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return F.one_hot(labels, DIM) + 0.4 * torch.randn(n, DIM, generator=generator), labels


def train(parts, kind, epochs=3, steps=6):
    """Trains a layer with each batch in so many parts; one step of the optimizer a batch."""
    torch.manual_seed(0)
    layer, rib = nn.Linear(DIM, 6), RIBLoss(CLASSES, **{**kind, "beta": 8.0, "gamma": 0.2})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    totals = []
    for epoch in range(epochs):
        rib.start_epoch(epoch)
        for step in range(steps):
            images, labels = batch(100 * epoch + step)
            total = 0.0
            for some, of_them in zip(images.chunk(parts), labels.chunk(parts)):
                loss = rib(layer(some), of_them) / parts
                loss.backward()
                total += loss.item()
            optimizer.step()
            optimizer.zero_grad()
            totals.append(total)
    return layer, rib, torch.tensor(totals)


@every_kind
def test_accumulated_gradients_train_as_the_whole_batch(kind):
    whole, accumulated = train(1, kind), train(4, kind)
    assert whole[2][6:].abs().min() > 0
    # The reservoir rounds to float16, and parts of a batch another way than the whole one.
    assert torch.allclose(whole[2], accumulated[2], rtol=1e-4, atol=3e-4)
    assert torch.allclose(whole[0].weight, accumulated[0].weight, atol=2e-4)
    mine, theirs = whole[1].state_dict(), accumulated[1].state_dict()
    assert mine["rows_seen"] == theirs["rows_seen"] == 6 * 24
    assert torch.equal(mine["bank_labels"], theirs["bank_labels"])
    assert torch.allclose(mine["bank_rows"].float(), theirs["bank_rows"].float(), atol=2e-3)


class TwoLosses(nn.Module):
    """A global embedding and a part of it, each with a RIB of its own."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(DIM, 6)
        self.whole = RIBLoss(CLASSES, **kind, beta=8.0)
        settings = {**kind, "num_clusters": 7, "bank_size": 30}
        self.part = RIBLoss(CLASSES, beta=20.0, **settings)

    def start_epoch(self, epoch):
        return self.whole.start_epoch(epoch), self.part.start_epoch(epoch)

    def forward(self, images, labels):
        embeddings = self.layer(images)
        return self.whole(embeddings, labels) + self.part(embeddings[:, :3], labels)


def run(model, epochs):
    losses, reports = [], []
    for epoch in epochs:
        reports.append(model.start_epoch(epoch))
        for step in range(4):
            loss = model(*batch(10 * epoch + step))
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                model.layer.weight -= 0.1 * model.layer.weight.grad
            losses.append(loss.detach())
    return torch.stack(losses), reports


@every_kind
def test_two_losses_in_a_model_keep_apart(kind):
    model = TwoLosses(kind)
    _, reports = run(model, range(3))
    assert reports[0] == ({}, {})
    for whole, part in reports[1:]:
        assert whole["bound"] != 0 and part["bound"] != 0 and whole != part
    assert model.whole.statistics.centroids.shape == (CLASSES, 6)
    assert model.part.statistics.centroids.shape == (7, 3)
    state = everything(model)
    names = {key.split(".", 1)[0]: set() for key in state}
    for key in state:
        owner, name = key.split(".", 1)
        names[owner].add(name)
    assert names["whole"] == names["part"] and "centroids" in names["whole"]
    assert len(state["whole.bank_rows"]) == 96 and len(state["part.bank_rows"]) == 30


@every_kind
def test_one_loss_of_two_alone_is_what_it_is_beside_the_other(kind):
    """Neither draws from what the other draws from."""
    model, alone = TwoLosses(kind), RIBLoss(CLASSES, **kind, beta=8.0)
    for epoch in range(3):
        model.start_epoch(epoch)
        alone.start_epoch(epoch)
        for step in range(4):
            images, labels = batch(10 * epoch + step)
            model(images, labels)
            alone(model.layer(images), labels)
    assert torch.equal(alone.statistics.centroids, model.whole.statistics.centroids)
    assert torch.equal(alone.statistics.log_q, model.whole.statistics.log_q)
