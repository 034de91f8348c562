"""Camera noise in FastReID's models: the neck gets it in training, RIB and the triplet do not."""

import copy
import pickle

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage

from fastreid_rib.integration.rib import meta_arch

RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}


def batch(seed):
    images = torch.rand(8, 3, 96, 32, generator=torch.Generator().manual_seed(seed)) * 255
    cameras = torch.tensor([0, 1] * 4)
    return {"images": images, "targets": torch.arange(8) // 2, "camids": cameras}


def trained(cfg):
    """A model whose RIB has begun, with a multiplier of the noise of one half."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for epoch in (0, 1):
        a_step(model, epoch)
    model.rib.statistics = model.rib.statistics._replace(compression=0.5)
    return model


def a_step(model, epoch):
    with EventStorage() as storage:
        storage.epoch = epoch
        return model(batch(epoch))


def around_the_neck(model):
    """What a head pools, and what its neck gets, in the passes to come."""
    found = []
    model.heads.pool_layer.register_forward_hook(lambda m, a, output: found.append(output))
    model.heads.bottleneck[0].register_forward_pre_hook(lambda m, args: found.append(args[0]))
    return found


def test_the_neck_gets_it_in_training(make_small_cfg):
    model = trained(make_small_cfg(RIB))
    found = around_the_neck(model)
    torch.manual_seed(5)
    losses = a_step(model, 1)
    pooled, given = found
    assert losses["loss_rib"].requires_grad and given.shape == pooled.shape
    torch.manual_seed(5)
    expected = model.rib.add_camera_noise(pooled.flatten(1))
    assert torch.equal(given.flatten(1), expected) and not torch.equal(given, pooled)
    gathered = model.rib.bank.content()[0][-8:]
    clean = torch.nn.functional.normalize(pooled.flatten(1), dim=1).detach()
    assert torch.allclose(gathered.float(), clean, atol=1e-3)

    found.clear()
    with torch.no_grad():
        model.eval()(batch(2))
    assert torch.equal(*found)
    found.clear()
    with torch.no_grad(), EventStorage():  # PreciseBN
        model.train()(batch(2))
    assert torch.equal(*found)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_adds_its_own(make_small_cfg, copied):
    model = copied(trained(make_small_cfg(RIB)))
    model.rib.statistics = model.rib.statistics._replace(compression=1.0)
    found = around_the_neck(model)
    a_step(model, 1)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL.HEADS.NECK_FEAT": "after"},
        {"MODEL.META_ARCHITECTURE": "MGN", "MODEL.BACKBONE.NAME": "build_resnet_backbone"},
        {"MODEL.LOSSES.RIB.EMBEDDING": "before", "MODEL.ATTENTION.NAME": "SE"},
    ],
)
def test_where_the_neck_gets_another_embedding_there_is_none(make_small_cfg, heard, changes):
    said = heard(meta_arch.logger)
    if "MODEL.META_ARCHITECTURE" in changes:
        changes = {**changes, "MODEL.BACKBONE.DEPTH": "50x", "MODEL.BACKBONE.FEAT_DIM": 2048}
        changes.update({"MODEL.HEADS.EMBEDDING_DIM": 256, "MODEL.BACKBONE.PRETRAIN": False})
    model = build_model(make_small_cfg({**RIB, **changes}))
    assert any("no camera noise (MODEL.LOSSES.RIB.CAMERA_NOISE)" in message for message in said())
    if hasattr(model, "heads"):
        model.train()
        for epoch in (0, 1):
            a_step(model, epoch)
        found = around_the_neck(model)
        a_step(model, 1)
        assert torch.equal(found[0], found[1])
