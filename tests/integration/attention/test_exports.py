"""Attention in the forms that a model is handed on in gives what the model gives.

Each attention alone in every form, and a whole model for each kind of place in ONNX.
"""

import io
import warnings

import pytest
import torch
from fastreid.modeling import build_model
from placed import MGN_R50, VIT, chosen

from fastreid_rib.attention import ATTENTIONS, build_attention

OSNET = chosen(("osnet", "x0_25"))
MASKED_VIT = {**VIT, "MODEL.HEADS.POOL_LAYER": "Identity", "MODEL.ATTENTION.MASK_BIAS": 1.0}
MODELS = {
    "head": ("DCS", OSNET),
    "conv3": ("SE", OSNET),
    "blocks": ("DCS", MASKED_VIT),
    "layer2": ("SE", MGN_R50),
}
"""By place: an attention and a model that has the place."""


def learnt(module):
    """As after a training: no attention is the identity."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module.eval()


def quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters, and of FastReID's code that they read
        return make()


def traced(module, example):
    return quietly(lambda: torch.jit.trace(module, example.clone(), check_trace=False))


def exported(module, example):
    return quietly(lambda: torch.export.export(module, (example.clone(),))).module()


def as_onnx(module, example):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    legacy = {"dynamo": False} if hasattr(torch, "compile") else {}
    arguments = (module, (example.clone(),), file)
    quietly(lambda: torch.onnx.export(*arguments, input_names=["x"], **legacy))
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


FORMS = {"traced": traced, "exported": exported, "ONNX": as_onnx}


def compare(module, form, example):
    with torch.no_grad():
        expected = module(example.clone())  # FastReID subtracts the mean of the pixels in place
        found = FORMS[form](module, example)(example.clone())
    assert torch.isfinite(expected).all() and expected.abs().max() > 0
    error = (found - expected).abs().max().item() / expected.abs().max().item()
    assert error < 1e-4, (form, error)


@pytest.mark.published
@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_attention_alone(name):
    torch.manual_seed(0)
    module = learnt(build_attention(name, 16))
    for form in FORMS:
        if form == "exported" and not hasattr(torch, "export"):
            continue  # it came with torch 2.1
        compare(module, form, torch.randn(2, 16, 6, 4))


@pytest.mark.parametrize("place", MODELS)
def test_a_model_with_it_in_onnx(make_cfg, place):
    name, changes = MODELS[place]
    keys = {"MODEL.ATTENTION.NAME": name, "MODEL.ATTENTION.PLACEMENT": (place,)}
    cfg = make_cfg({**changes, **keys})
    torch.manual_seed(0)
    model = build_model(cfg)
    if changes is MASKED_VIT:
        model.backbone.blocks = model.backbone.blocks[:2]  # a quarter of 228 MB
    size = {"blocks": cfg.INPUT.SIZE_TRAIN, "layer2": (96, 32)}.get(place, (64, 32))
    images = torch.rand(2, 3, *size) * 255
    compare(learnt(model), "ONNX", images)
