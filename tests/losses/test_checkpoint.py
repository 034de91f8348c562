"""What RIBLoss writes into a checkpoint, and what it makes of one."""

import functools
import io
import logging

import pytest
import torch
from files import everything, on_disk
from kinds import EMBEDDING, PAPER, RIBLoss, every_kind
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.published

CLASSES, DIM = 5, 6
PUBLISHED = {"centroids", "log_q", "class_counts", "class_means"}
COMPRESSION = {"compression"}  # those of 0.2 and before do not have it
STATISTICS = PUBLISHED | {"mean", "log_p"}
OF_THE_KIND = {"mean": "center", "log_p": "relevance"}  # and the setting that asks for it
BANK = {"bank_rows", "bank_labels"}
COUNTERS = {"epoch", "rows_seen"}
STEPS = {"steps", "epoch_steps"}  # of 0.2


class Model(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(DIM, DIM)
        self.rib = RIBLoss(**{"num_classes": CLASSES, "beta": 8.0, "bank_size": 40, **settings})

    def step(self, generator, cameras=None):
        labels = torch.randint(0, self.rib.num_classes, (8,), generator=generator)
        images = F.one_hot(labels, DIM) + 0.3 * torch.randn(8, DIM, generator=generator)
        loss = self.rib(self.layer(images), labels, cameras)
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


def file_size(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    return len(file.getvalue())


def rib_keys(state_dict):
    return {key[4:] for key in state_dict if key.startswith("rib.")}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_keys_come_with_what_they_hold():
    model = Model()
    model.rib.start_epoch(0)
    assert rib_keys(everything(model)) == set()
    model = trained(1)
    assert rib_keys(everything(model)) == BANK | COUNTERS
    model.rib.start_epoch(1)
    assert rib_keys(everything(model)) == STATISTICS | COMPRESSION | COUNTERS
    model.step(torch.Generator(), cameras=torch.arange(8))
    assert rib_keys(everything(model)) == STATISTICS | COMPRESSION | BANK | COUNTERS | {
        "bank_cameras"
    }
    model.rib.start_epoch(2)
    assert rib_keys(everything(model)) - STATISTICS - COMPRESSION - COUNTERS == {
        "camera_rows",
        "cameras",
        "differences",
    }
    assert all(type(value) is torch.Tensor for value in everything(model).values())
    model = trained(1, **PAPER)
    model.rib.start_epoch(1)
    assert rib_keys(everything(model)) == PUBLISHED | COMPRESSION | COUNTERS


def test_only_the_filled_part_of_the_bank_is_written():
    model = Model(bank_size=100000)
    model.rib.start_epoch(0)
    for i in range(33):
        model.step(torch.Generator().manual_seed(i))
    assert len(model.rib.bank.rows) == 512
    rows = everything(model)["rib.bank_rows"]
    assert rows.shape == (264, DIM)
    assert file_size(rows) == file_size(rows.clone())  # not the whole storage behind a view


@every_kind
@pytest.mark.parametrize(
    ("epochs", "steps", "more"),
    [(1, 0, {"bank_size": 1000}), (2, 0, {"num_clusters": 7}), (2, 5, {})],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(epochs, steps, more, kind):
    """Also in the middle of an epoch."""
    settings = {**kind, **more}
    model = trained(epochs, **settings)
    if steps:
        model.train_epoch(epochs, steps)
    resumed = Model(**settings)
    resumed.load_state_dict(on_disk(model))
    for epoch, first in ((epochs, steps), (epochs + 1, 0)):
        mine, theirs = (m.train_epoch(epoch, first=first) for m in (model, resumed))
        assert mine == theirs
        assert_equal(everything(model), everything(resumed))
    assert model.rib.start_epoch(epochs + 2) == resumed.rib.start_epoch(epochs + 2)


@every_kind
@pytest.mark.parametrize("into", [0, 2])
def test_loads_into_a_module_with_and_without_statistics(into, caplog, kind):
    state = on_disk(trained(3, **kind))
    other = trained(into, **kind)
    with caplog.at_level(logging.INFO):
        result = other.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert_equal(everything(other), state)
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert "loaded: epoch 2, 5 clusters, 40 embeddings" in line.message


def test_loading_copies():
    model = trained(2)
    state = everything(model)
    other = Model()
    other.load_state_dict(state)
    other.rib.statistics.centroids.zero_()
    assert model.rib.statistics.centroids.abs().max() > 0


@pytest.mark.parametrize("lost", sorted(STATISTICS | BANK | COUNTERS))
@pytest.mark.parametrize("into", [0, 2])
def test_a_part_of_the_statistics_loads_nothing_of_them(lost, into, caplog):
    state = on_disk(trained(3))
    del state["rib." + lost]
    model = trained(into)
    with caplog.at_level(logging.INFO):
        result = model.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert rib_keys(everything(model)) == set()
    assert torch.equal(model.layer.weight, state["layer.weight"])
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert OF_THE_KIND.get(lost, lost) in line.message
    assert "start afresh" in line.message
    model.train_epoch(0)
    assert model.rib.start_epoch(1)["bound"] != 0


# Checkpoints of earlier versions, and between kinds


def of_0_1(model):
    """The state_dict as 0.1 wrote it, of the published kind."""
    state = on_disk(model)
    del state["rib.compression"]
    assert rib_keys(state) == PUBLISHED | BANK | COUNTERS
    return state


def of_0_2(model, refreshes=1, inputs=False, entries=0):
    """The state_dict as 0.2 wrote it: with counts of steps, and what its settings added."""
    state = on_disk(model)
    more = {"steps": torch.tensor(9), "epoch_steps": torch.tensor(9)}
    if refreshes > 1:
        more["older_rows"] = state["rib.bank_rows"].clone()
        more["older_labels"] = state["rib.bank_labels"].clone()
    if inputs:
        more["bank_inputs"] = torch.rand(len(state["rib.bank_rows"]), 32).half()
    if entries:
        state["rib.log_q"], index = state["rib.log_q"].topk(entries, dim=1)
        more["log_q_index"], more["log_q_floor"] = index.int(), torch.zeros(CLASSES)
    state.update({f"rib.{name}": value for name, value in more.items()})
    return state


GONE = [
    ({}, sorted(STEPS)),
    ({"refreshes": 2}, ["epoch_steps", "older_labels", "older_rows", "steps"]),
    ({"inputs": True}, ["bank_inputs", "epoch_steps", "steps"]),
]


@pytest.mark.parametrize(("settings", "gone"), GONE)
def test_a_checkpoint_of_0_2_goes_on_and_the_log_names_what_is_passed_over(settings, gone, caplog):
    model, resumed = trained(3), Model()
    with caplog.at_level(logging.INFO):
        result = resumed.load_state_dict(of_0_2(model, **settings))
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    told, names = line.message.split("; of settings that are gone, and not used: ")
    assert "RIB statistics loaded: epoch 2, 5 clusters, 40" in told
    assert sorted(names.split(", ")) == gone
    assert_equal(everything(resumed), everything(model))
    assert model.train_epoch(3) == resumed.train_epoch(3)


def test_a_checkpoint_of_0_1_goes_on_in_the_published_kind_as_if_it_were_a_new_one(caplog):
    kind = {**PAPER, "gamma": 0.0}
    model = trained(2, **kind)
    model.train_epoch(2, steps=4)
    resumed = Model(**kind)
    with caplog.at_level(logging.INFO):
        result = resumed.load_state_dict(of_0_1(model))
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert "RIB statistics loaded: epoch 2" in line.message and "gone" not in line.message
    for epoch, first in ((2, 4), (3, 0), (4, 0)):
        mine, theirs = (m.train_epoch(epoch, first=first) for m in (model, resumed))
        assert mine == theirs
    assert min(mine) > 0
    assert_equal(everything(model), everything(resumed))
    assert model.rib.start_epoch(5) == resumed.rib.start_epoch(5) != {}


IDENTITIES = "another number of identities"
AFRESH = {
    "other identities": ({}, on_disk, {"num_classes": 4}, IDENTITIES),
    "other clusters": ({}, on_disk, {"num_clusters": 9}, IDENTITIES),
    # No centroids yet that would tell.
    "labels of more identities": (1, on_disk, {"num_classes": 2}, "labels beyond 2 identities"),
    "of 0.1, by default": (PAPER, of_0_1, {}, "with another center than True"),
    "the paper's, centred": (
        {**PAPER, "center": True}, on_disk, EMBEDDING, "with another relevance than 'full'"
    ),
    "back to the paper": ({}, on_disk, PAPER, "with another center than False"),
    "back to its relevance": (
        {}, on_disk, {"relevance": "paper"}, "with another relevance than 'paper'"
    ),
    "of 0.2, a sparse table": (
        {}, functools.partial(of_0_2, entries=2), {}, "their table is sparse (table_entries, which"
    ),
    "of 0.2, more clusters than there are now": (
        {"num_clusters": 9}, of_0_2, {}, "centroids is (9, 6) and (5, 6) is needed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", AFRESH)
def test_statistics_that_do_not_fit_start_afresh_and_one_line_says_why(case, caplog):
    written, wrote, read, why = AFRESH[case]
    state = wrote(trained(1) if written == 1 else trained(3, **written))
    model = Model(**read)
    with caplog.at_level(logging.INFO):
        result = model.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert line.levelno == logging.WARNING
    assert why in line.message and "they start afresh" in line.message
    assert rib_keys(everything(model)) == set()
    assert torch.equal(model.layer.weight, state["layer.weight"])
    assert not any(model.train_epoch(3)) and all(model.train_epoch(4))


def test_a_run_may_go_on_with_another_form_and_weight():
    state = on_disk(trained(3))
    model = Model(**EMBEDDING)
    model.load_state_dict(state)
    assert_equal(everything(model), state)


def test_embeddings_of_another_size_start_afresh(caplog):
    model = Model()
    model.rib.load_state_dict(trained(2).rib.state_dict())
    with caplog.at_level(logging.INFO):
        loss = model.rib(torch.randn(4, 9), torch.arange(4))
    assert loss.item() == 0
    assert model.rib.statistics is None
    assert "size 6, the model's have 9" in caplog.text
    assert model.rib.start_epoch(2)["bound"] != 0


def test_a_models_own_weights_leave_the_statistics_alone(caplog):
    model = trained(2)
    before, stock = on_disk(model), Model().state_dict()
    assert stock.keys() == model.state_dict().keys() == {"layer.weight", "layer.bias"}
    with caplog.at_level(logging.INFO):
        model.load_state_dict(stock)
    assert torch.equal(model.layer.weight, stock["layer.weight"])
    after = on_disk(model)
    assert_equal(*({k: v for k, v in of.items() if "rib" in k} for of in (before, after)))
    assert not [r for r in caplog.records if "RIB" in r.message]


def test_a_run_that_resumes_without_them_pauses_for_an_epoch_and_says_so(caplog):
    model = Model()
    model.load_state_dict(trained(3).state_dict())
    assert not any(model.train_epoch(3)) and all(model.train_epoch(4))
    (line,) = [r for r in caplog.records if "RIB" in r.message]
    assert "without statistics: it pauses for this epoch" in line.message
    assert "saves rib.state_dict() beside the model's" in line.message
    caplog.clear()
    trained(3)
    assert caplog.text == ""


def test_unknown_keys_are_reported_as_torch_does():
    model = Model()
    state = model.state_dict()
    state["rib.colour"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"rib.colour"'):
        model.load_state_dict(state)


def test_fine_tuning_begins_with_a_loss_of_zero_and_the_old_centroids():
    model = Model(warmup_epochs=1)
    model.load_state_dict(on_disk(trained(5)))
    centroids = model.rib.statistics.centroids.clone()
    assert not any(model.train_epoch(0))
    assert torch.equal(model.rib.statistics.centroids, centroids)
    assert all(model.train_epoch(1))


@every_kind
def test_a_module_of_float64_trains(kind):
    rib = RIBLoss(CLASSES, **kind).double()
    generator = torch.Generator().manual_seed(0)
    for epoch in range(3):
        rib.start_epoch(epoch)
        rib.double()
        for _ in range(4):
            embeddings = torch.randn(8, DIM, generator=generator, dtype=torch.float64)
            loss = rib(embeddings.requires_grad_(), torch.arange(8) % CLASSES)
            loss.backward()
            assert loss.dtype == torch.float64 and embeddings.grad.isfinite().all()
    assert loss.item() != 0


@every_kind
def test_with_fastreids_checkpointer(tmp_path, caplog, kind):
    from fastreid.utils.checkpoint import Checkpointer

    model = trained(3, **kind)
    Checkpointer(model, str(tmp_path)).save("model")
    resumed, fewer = Model(**kind), trained(2, **kind, num_clusters=4)
    with caplog.at_level(logging.INFO):
        Checkpointer(resumed, str(tmp_path)).load(str(tmp_path / "model.pth"))
        assert_equal(everything(resumed), everything(model))
        assert "RIB statistics loaded" in caplog.text
        # By itself it would drop keys of another shape, and RIB not see that they do not fit.
        Checkpointer(fewer, str(tmp_path)).load(str(tmp_path / "model.pth"))
    assert rib_keys(everything(fewer)) == set()
    assert "as centroids is (5, 6) and (4, 6) is needed (another number of" in caplog.text
    assert torch.equal(fewer.layer.weight, model.layer.weight)
