"""Models with attention as ONNX models: what they are exported to gives the same embeddings.

Exported as FastReID's ``tools/deploy/onnx_export.py`` does, in eval by tracing; torch >= 2.9 wants
to be asked for that.
"""

import io
import warnings

import pytest
import torch
from fastreid.modeling import build_model

REASON = "ONNX models are exported (torch >= 2) and run with the packages onnx and onnxruntime"
pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

RIB_DCS = {
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
    "MODEL.ATTENTION.NAME": "DCS",
    "MODEL.ATTENTION.PLACEMENT": ("layer3", "head"),
}
VIT = {
    "MODEL.BACKBONE.NAME": "build_vit_backbone",
    "MODEL.BACKBONE.DEPTH": "small",
    "MODEL.BACKBONE.FEAT_DIM": 768,
    "MODEL.HEADS.POOL_LAYER": "Identity",
    "MODEL.ATTENTION.PLACEMENT": ("blocks",),
    "MODEL.ATTENTION.MASK_BIAS": 1.0,
}


def randomize(model):
    """As after a training: no attention is the identity, and masks differ from token to token.

    Returns:
        How many attentions there are.
    """
    torch.manual_seed(1)
    attentions = [m for name, m in model.named_modules() if name.split(".")[-1] == "attention"]
    for module in attentions:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return len(attentions)


def export(model, images):
    file = io.BytesIO()
    legacy = {"dynamo": False} if hasattr(torch, "compile") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FastReID's own, and that this exporter is the old one
        # A copy: FastReID subtracts the mean of the pixels in place.
        torch.onnx.export(model, (images.clone(),), file, input_names=["images"], **legacy)
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL.ATTENTION.WIDTH": 32},
        {"MODEL.ATTENTION.SCALE": "sqrt"},
        {"MODEL.ATTENTION.NAME": "SE"},
        VIT,
    ],
    ids=["full", "width", "sqrt", "SE", "ViT"],
)
def test_the_embeddings_are_those_of_pytorch(make_cfg, changes):
    model = build_model(make_cfg({**RIB_DCS, **changes})).eval()
    if changes is VIT:
        model.backbone.blocks = model.backbone.blocks[:2]  # a quarter of 228 MB
    images = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 255
    with torch.no_grad():
        before = model(images.clone())
        assert randomize(model) == 2
        expected = model(images.clone())
    size = expected.abs().max()
    assert (expected - before).abs().max() > 0.01 * size, "the attention does nothing"
    (embeddings,) = export(model, images).run(None, {"images": images.numpy()})
    # A mask jumps where a logit is within rounding of zero; with these seeds none is.
    assert (torch.from_numpy(embeddings) - expected).abs().max() <= 1e-4 * size
