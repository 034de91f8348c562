"""FastReID's builders and attention: which places a model gets, and what it may not leave out."""

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone
from placed import GROUPS, MGN_R50, WITH_RIB, attend, attentions, chosen, train
from torch import nn

from fastreid_rib.integration.attention.places import build_with_attention


def test_one_place_alone(make_cfg):
    for place, name in (("layer1", "backbone.layer1.1.attention"), ("head", "heads.attention")):
        assert list(attentions(build_model(make_cfg(attend(place))))) == [name]
    assert not attentions(build_model(make_cfg(attend("layer1", name=""))))


def test_a_wrong_place_lists_those_there_are(make_cfg):
    with pytest.raises(ValueError, match=r"'layer5'.*ResNet.*head, layer1, layer2, layer3, layer4"):
        build_model(make_cfg(attend("head", "layer5")))
    with pytest.raises(ValueError, match=r"'layer3'.*OSNet.*It has head, conv2, conv3, conv4\."):
        build_model(make_cfg({**chosen(("osnet", "x0_25")), **attend("layer3")}))
    with pytest.raises(ValueError, match=r"'conv2'.*MGN.*layer1, layer2, layer3, layer4, head"):
        build_model(make_cfg({**MGN_R50, **attend("conv2")}))


def test_distiller_and_its_moving_average(make_cfg, distill):
    changes = {**distill(attend("layer2", name="SE")), "KD.EMA.MOMENTUM": 0.5}
    cfg = make_cfg({**changes, **attend("layer3", "head"), **WITH_RIB, **GROUPS})
    model = build_model(cfg)
    average, teacher = model.model_ts
    assert list(attentions(teacher)) == ["backbone.layer2.1.attention"]
    ours, theirs = (attentions(m)["heads.attention"] for m in (model, average))
    assert ours is not theirs
    assert torch.equal(ours.reduce.weight, theirs.reduce.weight), "another initial state"
    with torch.no_grad():
        start = ours.project.bias.clone()
        ours.project.bias.add_(1.0)
    for _ in train(model, epochs=1):
        pass
    assert torch.allclose(theirs.project.bias, start + 0.5)


class HalfArchitecture(nn.Module):
    """A project's architecture that leaves out the end of the backbone."""

    def __init__(self, cfg):
        super().__init__()
        backbone = build_backbone(cfg)
        self.backbone = nn.Sequential(backbone.conv1, backbone.layer1, backbone.layer2)


def test_an_architecture_that_drops_an_attention(make_cfg):
    assert list(attentions(build_with_attention(HalfArchitecture, make_cfg(attend("layer2"))))) == [
        "backbone.2.1.attention"
    ]
    with pytest.raises(ValueError, match="HalfArchitecture holds attention at .*backbone.2.1"):
        build_with_attention(HalfArchitecture, make_cfg(attend("layer2", "layer4")))


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"MODEL.BACKBONE.WITH_SE": True}, "se.fc"),
        (
            {
                "MODEL.BACKBONE.DEPTH": "50x",
                "MODEL.BACKBONE.FEAT_DIM": 2048,
                "MODEL.BACKBONE.WITH_NL": True,
            },
            "NL_3",
        ),
        (chosen(("resnest", "50x")), "conv2.fc1"),
        (chosen(("osnet", "x0_25")), "gate.fc1"),
    ],
)
def test_fastreid_s_own_attention_with_rib(make_cfg, changes, part):
    model = build_model(make_cfg({**WITH_RIB, "MODEL.LOSSES.NAME": ("RIB",), **changes}))
    own = [p for name, p in model.named_parameters() if f".{part}" in name]
    assert own
    for epoch in train(model):
        # In the second epoch the loss is RIB's alone, and it reaches that attention.
        reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in own]
        assert any(reached) == (epoch == 1)
