"""What RIBLoss writes into a checkpoint, and what it makes of one."""

import functools
import io
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastreid_rib import losses

# RIB from the second epoch on, so that tests need no third.
RIBLoss = functools.partial(losses.RIBLoss, warmup_epochs=1)

CLASSES, DIM = 5, 6
STATISTICS = {"centroids", "log_q", "class_counts", "class_means"}
BANK = {"bank_rows", "bank_labels"}
COUNTERS = {"epoch", "rows_seen"}


class Model(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(DIM, DIM)
        self.rib = RIBLoss(**{"num_classes": CLASSES, "beta": 8.0, "bank_size": 40, **settings})

    def step(self, generator, inputs=None):
        labels = torch.randint(0, self.rib.num_classes, (8,), generator=generator)
        images = F.one_hot(labels, DIM) + 0.3 * torch.randn(8, DIM, generator=generator)
        loss = self.rib(self.layer(images), labels, inputs)
        self.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter -= 0.1 * parameter.grad
        return loss.detach()

    def train_epoch(self, epoch, steps=9, first=0):
        if not first:
            self.rib.start_epoch(epoch)
        return [
            self.step(torch.Generator().manual_seed(100 * epoch + i)) for i in range(first, steps)
        ]


def trained(epochs, **settings):
    model = Model(**settings)
    for epoch in range(epochs):
        model.train_epoch(epoch)
    return model


def on_disk(model):
    """The state_dict after a trip through a file."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file)


def file_size(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    return len(file.getvalue())


def rib_keys(state_dict):
    return {key[4:] for key in state_dict if key.startswith("rib.")}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_no_statistics_no_keys():
    model = Model()
    assert rib_keys(model.state_dict()) == set()
    model.rib.start_epoch(0)
    assert rib_keys(model.state_dict()) == set()


def test_keys_come_with_what_they_hold():
    model = trained(1)
    assert rib_keys(model.state_dict()) == BANK | COUNTERS
    model.rib.start_epoch(1)
    assert rib_keys(model.state_dict()) == STATISTICS | COUNTERS
    model.step(torch.Generator(), inputs=torch.rand(8, 3))
    assert rib_keys(model.state_dict()) == STATISTICS | BANK | COUNTERS | {"bank_inputs"}
    assert all(type(value) is torch.Tensor for value in model.state_dict().values())


def test_only_the_filled_part_of_the_bank_is_written():
    model = Model(bank_size=100000)
    model.rib.start_epoch(0)
    for i in range(33):
        model.step(torch.Generator().manual_seed(i))
    assert len(model.rib.bank.rows) == 512
    rows = model.state_dict()["rib.bank_rows"]
    assert rows.shape == (264, DIM)
    assert file_size(rows) == file_size(rows.clone())  # not the whole storage behind a view


@pytest.mark.parametrize("bank_size", [40, 1000])
@pytest.mark.parametrize("clusters", [0, 7])
@pytest.mark.parametrize("epochs", [1, 3])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(epochs, clusters, bank_size):
    model = trained(epochs, num_clusters=clusters, bank_size=bank_size)
    resumed = Model(num_clusters=clusters, bank_size=bank_size)
    resumed.load_state_dict(on_disk(model))
    for epoch in range(epochs, epochs + 2):
        assert torch.equal(
            torch.stack(model.train_epoch(epoch)), torch.stack(resumed.train_epoch(epoch))
        )
        assert_equal(model.state_dict(), resumed.state_dict())
    assert model.rib.start_epoch(epochs + 2) == resumed.rib.start_epoch(epochs + 2)


def test_so_does_one_resumed_in_the_middle_of_an_epoch():
    model = trained(2)
    model.train_epoch(2, steps=7)
    resumed = Model()
    resumed.load_state_dict(on_disk(model))
    for m in (model, resumed):
        m.train_epoch(2, first=7)
        m.train_epoch(3)
    assert_equal(model.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("into", [0, 2])
def test_loads_into_a_module_with_and_without_statistics(into, caplog):
    state = on_disk(trained(3))
    other = trained(into)
    with caplog.at_level(logging.INFO):
        result = other.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_equal(other.state_dict(), state)
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert "loaded: epoch 2, 5 clusters, 40 embeddings" in line.message


def test_loading_copies():
    model = trained(2)
    state = model.state_dict()
    other = Model()
    other.load_state_dict(state)
    other.rib.centroids.zero_()
    assert model.rib.centroids.abs().max() > 0


@pytest.mark.parametrize("lost", sorted(STATISTICS | BANK | COUNTERS))
@pytest.mark.parametrize("into", [0, 2])
def test_a_part_of_the_statistics_loads_nothing_of_them(lost, into, caplog):
    state = on_disk(trained(3))
    del state["rib." + lost]
    model = trained(into)
    with caplog.at_level(logging.INFO):
        result = model.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert rib_keys(model.state_dict()) == set()
    assert torch.equal(model.layer.weight, state["layer.weight"])
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert lost in line.message
    assert "start afresh" in line.message
    model.train_epoch(0)
    assert model.rib.start_epoch(1)["bound"] > 0


@pytest.mark.parametrize("settings", [{"num_classes": 4}, {"num_clusters": 9}])
@pytest.mark.parametrize("epochs", [2, 3])
def test_other_numbers_of_identities_or_clusters_start_afresh(settings, epochs, caplog):
    state = on_disk(trained(epochs))
    model = Model(**settings)
    with caplog.at_level(logging.INFO):
        model.load_state_dict(state)
    assert rib_keys(model.state_dict()) == set()
    assert torch.equal(model.layer.weight, state["layer.weight"])
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert "another number of identities" in line.message


def test_a_bank_with_labels_of_more_identities_starts_afresh(caplog):
    state = on_disk(trained(1))  # no centroids yet that would tell
    model = Model(num_classes=2)
    with caplog.at_level(logging.INFO):
        model.load_state_dict(state)
    assert rib_keys(model.state_dict()) == set()
    assert "labels beyond 2 identities" in caplog.text


def test_embeddings_of_another_size_start_afresh(caplog):
    model = Model()
    model.rib.load_state_dict(trained(2).rib.state_dict())
    with caplog.at_level(logging.INFO):
        loss = model.rib(torch.randn(4, 9), torch.arange(4))
    assert loss.item() == 0
    assert model.rib.centroids is None
    assert "size 6, the model's have 9" in caplog.text
    assert model.rib.start_epoch(2)["bound"] > 0


def test_a_stock_checkpoint_starts_afresh_with_one_line(caplog):
    model = trained(2)
    stock = {key: value for key, value in Model().state_dict().items() if "rib" not in key}
    with caplog.at_level(logging.INFO):
        result = model.load_state_dict(stock)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert rib_keys(model.state_dict()) == set()
    assert [r.message for r in caplog.records if "RIB" in r.message] == [
        "RIB statistics: none in the checkpoint, they start afresh: harmless"
    ]


def test_unknown_keys_are_reported_as_torch_does():
    model = Model()
    state = model.state_dict()
    state["rib.colour"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"rib.colour"'):
        model.load_state_dict(state)


def test_fine_tuning_begins_with_a_loss_of_zero_and_the_old_centroids():
    model = Model(warmup_epochs=1)
    model.load_state_dict(on_disk(trained(5)))
    centroids = model.rib.centroids.clone()
    assert max(model.train_epoch(0)).item() == 0
    assert torch.equal(model.rib.centroids, centroids)
    assert min(model.train_epoch(1)).item() > 0


def test_statistics_follow_the_module():
    model = trained(2).double()
    assert model.rib.bank.rows.dtype == torch.float64
    model.float()
    model.train_epoch(2)
    assert model.rib.start_epoch(3)["bound"] > 0
    other = Model()
    other.load_state_dict(model.state_dict())
    assert_equal(other.state_dict(), model.state_dict())


def test_with_fastreids_checkpointer(tmp_path, caplog):
    from fastreid.utils.checkpoint import Checkpointer

    model = trained(3)
    Checkpointer(model, str(tmp_path)).save("model")
    resumed, fewer = Model(), trained(2, num_clusters=4)
    with caplog.at_level(logging.INFO):
        Checkpointer(resumed, str(tmp_path)).load(str(tmp_path / "model.pth"))
        assert_equal(resumed.state_dict(), model.state_dict())
        assert "RIB statistics loaded" in caplog.text
        # By itself it would drop keys of another shape, and RIB not see that they do not fit.
        Checkpointer(fewer, str(tmp_path)).load(str(tmp_path / "model.pth"))
    assert rib_keys(fewer.state_dict()) == set()
    assert "as centroids is (5, 6) and (4, 6) is needed (another number of" in caplog.text
    assert torch.equal(fewer.layer.weight, model.layer.weight)
