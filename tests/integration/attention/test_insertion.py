"""An attention as a part of a module: which ones fit, how they start, what a step reaches."""

import pytest
import torch
from fastreid.modeling import build_model
from placed import (
    GROUPS,
    LAYERS,
    MGN_R50,
    VIT,
    WITH_RIB,
    attend,
    attentions,
    check,
    train,
)
from torch import nn


@pytest.mark.parametrize("name", ["SelfAttention", "SE", "ECA", "CBAM"])
def test_every_attention(make_cfg, name):
    cfg = make_cfg({**GROUPS, **WITH_RIB, **attend("layer3", "head", name=name)})
    model = build_model(cfg)
    assert list(attentions(model)) == ["backbone.layer3.1.attention", "heads.attention"]
    check(model, cfg)


def test_settings_that_do_not_fit_a_place(make_cfg):
    with pytest.raises(ValueError, match="64 channels of 'layer1'.*width"):
        build_model(make_cfg(attend("layer1", WIDTH=65)))
    with pytest.raises(ValueError, match="512 channels of 'head'.*width must be in 0..512"):
        build_model(make_cfg(attend("head", WIDTH=513)))


@pytest.mark.parametrize(
    "plain, attention",
    [({}, attend("layer2", "layer3", "head")), (VIT, attend("blocks", MASK_BIAS=1.0))],
)
def test_seeded_models_start_alike_with_and_without_attention(make_cfg, plain, attention):
    stock, ours = [], []
    for changes, states in ((plain, stock), ({**plain, **attention}, ours)):
        torch.manual_seed(3)
        states.append(build_model(make_cfg(changes)).state_dict())
    assert all(torch.equal(ours[0][key], value) for key, value in stock[0].items())


def test_each_attention_has_an_initialisation_of_its_own(make_cfg):
    model = build_model(make_cfg({**MGN_R50, **attend("layer4")}))
    first, second, third = (module.reduce.weight for module in attentions(model).values())
    assert not torch.equal(first, second) and not torch.equal(second, third)


@pytest.mark.filterwarnings("ignore:.broadcast_buffers")  # as FastReID writes it
def test_distributed_without_find_unused_parameters(make_cfg):
    cfg = make_cfg({**attend(*LAYERS, "head"), **WITH_RIB})
    model = build_model(cfg)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        assert list(train(parallel, epochs=3)) == [0, 1, 2]
        model.heads.register_parameter("idle", nn.Parameter(torch.zeros(1)))
        idle = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        with pytest.raises(RuntimeError, match="finished reduction"):
            list(train(idle))
    finally:
        torch.distributed.destroy_process_group()
