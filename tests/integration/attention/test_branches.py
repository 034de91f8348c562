"""Attention in the branches of FastReID's MGN."""

import torch
from fastreid.modeling import build_model
from fastreid.modeling.meta_arch import MGN
from placed import (
    GROUPS,
    MGN_R50,
    WITH_RIB,
    attend,
    attentions,
    check,
    check_keys,
    embed,
)


def test_mgn_gets_one_for_each_branch(make_cfg):
    places = ("layer2", "layer3", "layer4", "head")
    plain = {**MGN_R50, **GROUPS, **WITH_RIB}
    stock = build_model(make_cfg(plain))
    cfg = make_cfg({**plain, **attend(*places)})
    model = build_model(cfg)
    assert isinstance(model, MGN)
    branches = [f"b{i}.{end}.attention" for i in (1, 2, 3) for end in ("0.4", "1.2")]
    heads = [f"b{i}.attention" for i in (1, 2, 3)]
    assert set(attentions(model)) == {"backbone.5.3.attention", *branches, *heads}
    check_keys(model, stock)
    assert torch.equal(embed(model, height=96), embed(stock, height=96))
    check(model, cfg, height=96)
