"""NaN and infinity, wherever they come from: the step names the term, and nothing is poisoned."""

import math

import pytest
import torch
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage

from fastreid_rib.losses import RIBLoss

RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}


def batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        images = torch.rand(8, 3, 64, 32, generator=generator) * 255
        yield {"images": images, "targets": torch.arange(8) // 2}


@pytest.fixture
def trainer(make_cfg):
    """FastReID's trainer, with RIB active and an epoch's first step taken."""
    torch.manual_seed(0)
    model = build_model(make_cfg(RIB))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    trainer = SimpleTrainer(model, batches(), optimizer, None)
    trainer.iter = 0
    with EventStorage() as storage:
        for epoch in (0, 1):
            storage.epoch = epoch
            trainer.run_step()
        trainer.iter = 2
        yield trainer


def finite(model):
    values = [value for value in model.rib.state_dict().values() if value.is_floating_point()]
    return len(values) >= 3 and all(bool(value.isfinite().all()) for value in values)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_in_the_images(trainer, value):
    data = next(trainer._data_loader_iter)
    data["images"][3, 0, 5, 5] = value
    trainer._data_loader_iter = iter([data])
    before, seen = weights(trainer.model), trainer.model.rib.bank.seen
    with pytest.raises(FloatingPointError) as caught:
        trainer.run_step()
    message = str(caught.value)
    assert "loss_cls is nan on rank 0" in message and "loss_rib is nan on rank 0" in message
    assert "at iteration 2" in message
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer.model)))
    assert finite(trainer.model) and trainer.model.rib.bank.seen == seen + 8
    # Batch norm spreads it over the batch: none of its rows may count.
    assert (trainer.model.rib.state_dict()["bank_labels"][-8:] == -1).all()
    assert math.isfinite(trainer.model.rib.start_epoch(2)["bound"]) and finite(trainer.model)


@pytest.mark.parametrize("what", ["centroids", "log_q"])
def test_in_the_statistics(trainer, what):
    getattr(trainer.model.rib.statistics, what)[1] = float("nan")
    with pytest.raises(FloatingPointError, match="^loss_rib is nan on rank 0, at iteration 2"):
        trainer.run_step()


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="no GradScaler for the CPU")
def test_embeddings_of_a_step_that_amp_skips_are_kept(make_cfg):
    layer = torch.nn.Linear(5, 6)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    rib = RIBLoss(4, warmup_epochs=1)
    rib.start_epoch(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = layer.weight.detach().clone()
    embeddings = layer(torch.randn(8, 5))
    scaler.scale(embeddings.square().sum() * 1e6 + rib(embeddings, torch.arange(8) % 4)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38 and torch.equal(layer.weight, before), "it was not skipped"
    assert rib.bank.seen == 8 and (rib.state_dict()["bank_labels"] >= 0).all()
    assert math.isfinite(rib.start_epoch(1)["bound"])
