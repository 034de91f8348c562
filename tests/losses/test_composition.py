"""RIBLoss in larger set-ups: several forwards for a step of the optimizer, several in a model."""

import torch
from kinds import RIBLoss, every_kind
from torch import nn
from torch.nn import functional as F

CLASSES, DIM = 5, 8
# Parts of a batch are rounded another way than the whole one, by about 1e-8 in a weight. At a
# learning rate of 0.2 such a difference doubles with every step, whatever gamma is, and has reached
# 1e-4 at the end; at this one it does not grow.
LEARNING_RATE = 0.02


def batch(seed, n=24):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return F.one_hot(labels, DIM) + 0.4 * torch.randn(n, DIM, generator=generator), labels


def train(parts, kind, epochs=3, steps=6):
    """Trains a layer with each batch in so many parts; one step of the optimizer a batch."""
    torch.manual_seed(0)
    layer, rib = nn.Linear(DIM, 6), RIBLoss(CLASSES, **{**kind, "beta": 8.0, "gamma": 0.2})
    optimizer = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE)
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
    assert torch.allclose(whole[2], accumulated[2], rtol=0, atol=5e-6)
    assert torch.allclose(whole[0].weight, accumulated[0].weight, rtol=0, atol=5e-6)
    mine, theirs = whole[1].state_dict(), accumulated[1].state_dict()
    assert mine["rows_seen"] == theirs["rows_seen"] == 6 * 24
    assert torch.equal(mine["bank_labels"], theirs["bank_labels"])
    # In float16, where a number on the edge may fall the other way.
    assert torch.allclose(mine["bank_rows"].float(), theirs["bank_rows"].float(), atol=2**-10)


@every_kind
def test_two_losses_in_a_model_keep_apart(kind):
    """A global embedding and a part of it: each RIB is what it is alone, and draws for itself."""
    torch.manual_seed(0)
    layer = nn.Linear(DIM, 6)
    more = {**kind, "beta": 20.0, "num_clusters": 7, "bank_size": 30}
    whole, part, alone = (RIBLoss(CLASSES, **of) for of in (kind, more, kind))
    for epoch in range(3):
        reports = [rib.start_epoch(epoch) for rib in (whole, part, alone)]
        for step in range(4):
            images, labels = batch(10 * epoch + step)
            embeddings = layer(images)
            loss = whole(embeddings, labels) + part(embeddings[:, :3], labels)
            alone(layer(images), labels)
            layer.zero_grad()
            loss.backward()
            with torch.no_grad():
                layer.weight -= 0.1 * layer.weight.grad
    assert reports[0] == reports[2] != reports[1] != {}
    assert part.statistics.centroids.shape == (7, 3) and part.bank.filled == 30
    mine, theirs = alone.state_dict(), whole.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
