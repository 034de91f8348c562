"""DCSHead and ChannelAttentionHead: the attention at the head under another name."""

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead, build_heads
from placed import MGN_R50

from fastreid_rib.attention import ECA, SE, DCSAttention
from fastreid_rib.integration.attention.heads import ChannelAttentionHead, DCSHead

NARROW = {"MODEL.ATTENTION.WIDTH": 8}


@pytest.mark.parametrize(
    "head, name, kind, changes",
    [
        (DCSHead, "DCS", DCSAttention, {}),
        (ChannelAttentionHead, "SE", SE, {}),
        (ChannelAttentionHead, "ECA", ECA, {"MODEL.ATTENTION.CHANNEL": "ECA"}),
    ],
)
def test_a_head_is_the_placement_under_another_name(make_small_cfg, head, name, kind, changes):
    by_head = {**NARROW, **changes, "MODEL.HEADS.NAME": head.__name__}
    by_key = {**NARROW, "MODEL.ATTENTION.NAME": name, "MODEL.ATTENTION.PLACEMENT": ("head",)}
    models = []
    for keys in (by_head, by_key):
        torch.manual_seed(0)
        models.append(build_model(make_small_cfg(keys)))
    ours, theirs = models
    assert type(ours.heads) is head and type(theirs.heads) is EmbeddingHead
    assert type(ours.heads.attention) is type(theirs.heads.attention) is kind
    states = [model.state_dict() for model in models]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for model in models:
        model.eval()
        with torch.no_grad():
            for parameter in model.heads.attention.parameters():
                parameter.fill_(0.05)
    with torch.no_grad():
        maps = torch.rand(2, 128, 4, 2)
        assert torch.equal(ours.heads(maps), theirs.heads(maps))
        attended = EmbeddingHead.forward(ours.heads, ours.heads.attention(maps))
        assert torch.equal(ours.heads(maps), attended)
        assert not torch.equal(attended, EmbeddingHead.forward(ours.heads, maps))


def test_the_settings_reach_the_module(make_cfg):
    settings = {"WIDTH": 8, "TEMPERATURE": 3.0, "FINAL_TEMPERATURE": 2.0, "MASK_BIAS": -0.5}
    settings.update(SCALE="sqrt", COSINE_FACTOR=5.0, NORM="layer")
    changes = {f"MODEL.ATTENTION.{key}": value for key, value in settings.items()}
    attention = build_heads(make_cfg({"MODEL.HEADS.NAME": "DCSHead", **changes})).attention
    assert (attention.channels, attention.width) == (512, 8)
    assert (attention.scale, attention.cosine_factor) == ("sqrt", 5.0)
    assert isinstance(attention.norm, torch.nn.LayerNorm)
    assert attention.mask.first_temperature == 3.0 and attention.mask.final_temperature == 2.0
    assert attention.mask.logits.bias.unique().tolist() == [-0.5]
    channel = {"MODEL.HEADS.NAME": "ChannelAttentionHead", "MODEL.ATTENTION.REDUCTION": 64}
    assert build_heads(make_cfg(channel)).attention.excite[0].out_features == 8
    channel.update({"MODEL.ATTENTION.CHANNEL": "ECA", "MODEL.ATTENTION.KERNEL_SIZE": 7})
    channel["MODEL.ATTENTION.START"] = "published"
    attention = build_heads(make_cfg(channel)).attention
    assert attention.conv.kernel_size == (7,) and attention.start == "published"


def test_both_at_once_is_an_error(make_cfg):
    for head in ("DCSHead", "ChannelAttentionHead"):
        cfg = make_cfg({"MODEL.HEADS.NAME": head, "MODEL.ATTENTION.NAME": "DCS"})
        with pytest.raises(ValueError, match=f"{head}.*MODEL.ATTENTION.NAME.*Write one"):
            build_model(cfg)


def test_other_heads_take_attention_by_the_key(make_cfg):
    changes = {**NARROW, "MODEL.HEADS.NAME": "ClasHead", "MODEL.ATTENTION.NAME": "DCS"}
    head = build_heads(make_cfg(changes))
    assert type(head) is REID_HEADS_REGISTRY.get("ClasHead")
    assert type(head.attention) is DCSAttention


def test_mgn_with_dcs_head_attends_once_a_branch(make_cfg):
    cfg = make_cfg({**MGN_R50, **NARROW, "MODEL.HEADS.NAME": "DCSHead"})
    model = build_model(cfg)
    names = [name for name, module in model.named_modules() if isinstance(module, DCSAttention)]
    assert names == ["b1.attention", "b2.attention", "b3.attention"]
    assert cfg.MODEL.HEADS.NAME == "DCSHead", "the config was changed"
