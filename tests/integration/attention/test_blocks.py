"""DCS's mask inside the blocks of a vision transformer."""

import pytest
import torch
from fastreid.modeling import build_model
from placed import GROUPS, VIT, WITH_RIB, attend, attentions, check, check_keys, embed

from fastreid_rib.attention import DCSMask


def test_vit_masks_queries_and_keys_in_every_block(make_cfg):
    plain = {**VIT, **GROUPS, **WITH_RIB}
    stock = build_model(make_cfg(plain))
    cfg = make_cfg({**plain, **attend("blocks", MASK_BIAS=0.5, TEMPERATURE=2.0)})
    model = build_model(cfg)
    placed = attentions(model)
    assert list(placed) == [f"backbone.blocks.{i}.attn.qkv.attention" for i in range(8)]
    for mask in placed.values():
        assert type(mask) is DCSMask and mask.temperature == 2.0
        assert mask.logits.bias.mean().item() == pytest.approx(0.5)
    check_keys(model, stock)
    assert torch.equal(embed(model), embed(stock)), "a mask that keeps all changes something"
    projection = model.backbone.blocks[2].attn.qkv
    tokens = torch.rand(2, 5, 768)
    with torch.no_grad():
        whole = stock.backbone.blocks[2].attn.qkv(tokens).chunk(3, dim=-1)
        projection.attention.logits.bias[:10] = -1.0
        masked = projection(tokens).chunk(3, dim=-1)
    for i in (0, 1):
        assert torch.equal(masked[i][..., :10], torch.zeros(2, 5, 10))
        assert torch.equal(masked[i][..., 10:], whole[i][..., 10:])
    assert torch.equal(masked[2], whole[2]), "values are masked"
    check(model, cfg)


@pytest.mark.parametrize(
    "changes, message",
    [
        (attend("head"), r"class token.*\(\"blocks\",\)"),
        ({"MODEL.HEADS.NAME": "ChannelAttentionHead"}, r"class token.*\(\"blocks\",\)"),
        (attend("layer3"), "'layer3'.*VisionTransformer.*It has blocks"),
        (attend("blocks", name="SE"), "SE is for maps"),
        (attend("blocks", MASK_BIAS=0.0), "MASK_BIAS is 0, .*VisionTransformer would start"),
    ],
)
def test_vit_has_no_map(make_cfg, changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg({**VIT, **changes}))
