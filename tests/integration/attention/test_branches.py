"""Attention in the branches of FastReID's MGN."""

import pytest
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
    check_gradients,
    check_keys,
    embed,
    train,
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


@pytest.mark.parametrize("matrices", [{"RANK": 16}, {"GROUPS": 8}], ids=str)
def test_mgn_with_fewer_weights(make_cfg, matrices):
    stock = build_model(make_cfg(MGN_R50))
    settings = {"WIDTH": 0, "DEPTHWISE": True, **matrices}
    model = build_model(make_cfg({**MGN_R50, **attend("layer4", "head", **settings)}))
    check_keys(model, stock)
    assert torch.equal(embed(model, height=96), embed(stock, height=96))
    assert len(attentions(model)) == 6
    for _ in train(model, epochs=1, height=96):
        check_gradients(attentions(model))
