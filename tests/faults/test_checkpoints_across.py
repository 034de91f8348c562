"""Checkpoints between FastReID's models and those with RIB or attention, through FastReID."""

import logging
import re

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage

STOCK = {"MODEL.LOSSES.NAME": ("CrossEntropyLoss",)}
RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
ATTENTION = {
    **STOCK,
    "MODEL.ATTENTION.NAME": "SE",
    "MODEL.ATTENTION.PLACEMENT": ("layer4", "head"),
}


@pytest.fixture
def model(make_cfg):
    def build(changes, epochs=0):
        torch.manual_seed(epochs)
        model = build_model(make_cfg(changes)).train()
        with EventStorage() as storage:
            for epoch in range(epochs):
                storage.epoch = epoch
                images = torch.rand(8, 3, 64, 32) * 255
                model({"images": images, "targets": torch.arange(8) // 2})
        return model

    return build


@pytest.fixture
def load(tmp_path, caplog):
    """Saves one model, loads it into another; what was logged of it."""

    def load(source, target):
        Checkpointer(source, str(tmp_path)).save("model")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            Checkpointer(target).load(str(tmp_path / "model.pth"))
        return [r.getMessage() for r in caplog.records if "Loading checkpoint" not in r.message]

    return load


def network(model):
    return {k: v for k, v in model.state_dict().items() if k[:4] != "rib." and "attention" not in k}


SKIPPED = "RIB statistics in the checkpoint (N tensors) skipped, as this model has no RIB: harmless"


@pytest.mark.parametrize(
    "source, target, told",
    [
        (STOCK, RIB, "RIB statistics: none in the checkpoint, they start afresh: harmless"),
        (RIB, STOCK, SKIPPED),
        (RIB, {**RIB, "MODEL.HEADS.NUM_CLASSES": 0}, SKIPPED),  # an evaluation
        (STOCK, ATTENTION, "Attention is new to this checkpoint (N"),
        (ATTENTION, STOCK, "Attention in the checkpoint (N"),
    ],
)
def test_of_one_network_into_another(model, load, caplog, source, target, told):
    source, target = model(source, 2 * (source is RIB)), model(target, 2 * (target is RIB))
    lines = [re.sub(r"\(\d+", "(N", line) for line in load(source, target)]
    (line,) = (line for line in lines if "RIB" in line or "Attention" in line)
    assert line.startswith(told)
    lost = told.startswith("Attention in")
    assert ("Not harmless" if lost else "harmless") in line
    assert (caplog.records[-1].levelname == "WARNING") == lost
    ours, theirs = network(target), network(source)
    both = [key for key in ours if key in theirs and ours[key].shape == theirs[key].shape]
    assert len(both) > 100 and all(torch.equal(ours[key], theirs[key]) for key in both)
    assert not getattr(target, "rib", None) or not target.rib.state_dict()


def test_of_another_attention_is_not_harmless(model, load):
    """Matrices of low rank, or in blocks, as version 0.2 had them: other names, or other shapes."""
    dcs = {**ATTENTION, "MODEL.ATTENTION.NAME": "DCS", "MODEL.ATTENTION.WIDTH": 8}
    source, layer = model(dcs), "heads.attention.mask.logits.weight"
    state = source.state_dict()
    weight = state.pop(layer)
    factors = {layer.replace("logits", f"logits.{name}"): weight for name in ("narrow", "widen")}
    for old, count in ((factors, 2), ({layer: weight.reshape(2, 8, 4)}, 1)):
        source.state_dict = lambda old=old: {**state, **old}
        lines = load(source, model(dcs))
        (line,) = (line for line in lines if line.startswith("Attention"))
        assert line.startswith(f"Attention in the checkpoint ({count} parameters) skipped")
        assert "for another. Not harmless" in line


def test_statistics_that_are_not_finite_are_not_loaded(model, load):
    source, target = model(RIB, epochs=2), model(RIB)
    stock = source.rib.state_dict
    for lost in ("centroids", "log_q", "class_means", "bank_rows"):
        state = {key: value.clone() for key, value in stock().items()}
        state[lost][1, 1] = float("nan")
        source.rib.state_dict = lambda *args, state=state, **kwargs: state
        (line,) = load(source, target)
        assert f"as {lost} holds NaN or infinity: they start afresh" in line
        assert not target.rib.state_dict()


def test_statistics_have_a_key_of_their_own_and_those_of_0_2_in_the_model_load(model, tmp_path):
    source, target = model(RIB, epochs=2), model(RIB)
    Checkpointer(source, str(tmp_path)).save("model", epoch=1)
    path = tmp_path / "model.pth"
    checkpoint = torch.load(path)
    expected = source.rib.state_dict()
    assert checkpoint.keys() == {"model", "rib", "epoch"}
    assert checkpoint["rib"].keys() == {f"rib.{name}" for name in expected}
    assert checkpoint["model"].keys() == target.state_dict().keys()
    checkpoint["model"].update(checkpoint.pop("rib"))
    torch.save(checkpoint, tmp_path / "of_0_2.pth")
    for file in (path, tmp_path / "of_0_2.pth"):
        target.rib.load_state_dict({})
        assert Checkpointer(target).load(str(file)) == {"epoch": 1}
        found = target.rib.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
