"""A whole model with attention, for each kind of place, gives the same in ONNX."""

import io
import warnings

import pytest
import torch
from fastreid.modeling import build_model
from placed import MGN_R50, VIT, chosen

from fastreid_rib.integration.attention import part_head

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


def as_onnx(module, example):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    legacy = {"dynamo": False} if hasattr(torch, "compile") else {}
    arguments = (module, (example.clone(),), file)
    quietly(lambda: torch.onnx.export(*arguments, input_names=["x"], **legacy))
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def test_a_head_of_parts_in_onnx(make_cfg):
    cfg = make_cfg({**OSNET, "MODEL.HEADS.NAME": "PartHead"})
    torch.manual_seed(0)
    model = learnt(build_model(cfg))
    part_head.fit(cfg, model)
    images = torch.rand(2, 3, 64, 32) * 255
    with torch.no_grad():
        expected = model(images.clone())
        found = as_onnx(model, images)(images.clone())
    assert expected.shape == (2, 5 * 128) and (found - expected).abs().max() < 1e-4


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
    model, images = learnt(model), torch.rand(2, 3, *size) * 255
    with torch.no_grad():
        expected = model(images.clone())  # FastReID subtracts the mean of the pixels in place
        found = as_onnx(model, images)(images.clone())
    assert torch.isfinite(expected).all() and expected.abs().max() > 0
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
