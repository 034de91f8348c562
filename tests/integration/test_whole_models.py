"""Whole models with RIB: copied, and saved by torch.save for another process."""

import copy

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage

RIB = {
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
    "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
}
MODELS = {
    "Baseline with attention": {**RIB, "MODEL.ATTENTION.NAME": "DCS"},
    "a search": {
        **RIB,
        "MODEL.BACKBONE.NAME": "build_searched_backbone",
        "MODEL.BACKBONE.DEPTH": "0.25x",
        "MODEL.SEARCH.ENABLED": True,
    },
    "MoCo": {**RIB, "MODEL.META_ARCHITECTURE": "MoCo"},
}


def batch():
    torch.manual_seed(2)
    return {"images": torch.rand(8, 3, 64, 32) * 255, "targets": torch.arange(8) % 4}


def trained(model, epochs):
    """The losses of a step in each epoch."""
    losses = []
    model.train()
    for epoch in epochs:
        with EventStorage() as storage:
            storage.epoch = epoch
            torch.manual_seed(epoch)
            found = model(batch())
            model.zero_grad()
            sum(found.values()).backward()
            losses.append({name: float(loss) for name, loss in found.items()})
    return losses


def held(model):
    return {**model.state_dict(), **model.rib.state_dict()}


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_trains_on_as_the_model_does(make_small_cfg, name):
    model = build_model(make_small_cfg(MODELS[name]))
    trained(model, (0, 1, 2))  # statistics, and gradients that hang on the model
    state, other = copy.deepcopy(held(model)), copy.deepcopy(model)
    expected = trained(model, (3, 4))
    assert expected[-1]["loss_rib"] != 0
    assert type(other) is type(model) and other.rib is not model.rib
    found = held(other)
    assert found.keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in found.items())
    assert trained(other, (3, 4)) == expected
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert next(model.parameters()).abs().sum() > 0


def test_it_is_read_where_nothing_was_built_yet(make_small_cfg, tmp_path, run_script):
    model = build_model(make_small_cfg(RIB)).eval()
    path = str(tmp_path / "model.pth")
    torch.save(model, path)
    images = batch()["images"]
    torch.save(images, str(tmp_path / "images.pth"))
    code = (
        "import sys, inspect, torch\n"
        "trusting = 'weights_only' in inspect.signature(torch.load).parameters\n"
        "model = torch.load(sys.argv[1], **({'weights_only': False} if trusting else {}))\n"
        "print('SUM', float(model(torch.load(sys.argv[2])).double().sum()), type(model).__name__)"
    )
    run = run_script("-c", code, path, str(tmp_path / "images.pth")).stdout
    _, total, kind = run.strip().splitlines()[-1].split()
    assert kind == "Baseline"
    assert float(total) == pytest.approx(float(model(images.clone()).double().sum()), rel=1e-5)
