"""What RIB is computed from, with attention at the head and without."""

import copy

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.utils.events import EventStorage

from fastreid_rib.integration.rib.embedding import embedding_and_labels

RIB = {"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB"), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1}
DCS = {"MODEL.ATTENTION.NAME": "DCS", "MODEL.ATTENTION.WIDTH": 8}
BEFORE = {"MODEL.LOSSES.RIB.EMBEDDING": "before"}


def step(model, epoch=0):
    """A step of FastReID's trainer: the losses, the map, the head's outputs, what RIB was given."""
    seen = {}
    hooks = [
        model.backbone.register_forward_hook(lambda m, a, out: seen.update(map=out)),
        model.heads.register_forward_hook(lambda m, a, out: seen.update(outputs=out)),
        model.rib.register_forward_pre_hook(lambda m, args: seen.update(rib=args[0])),
    ]
    images = torch.rand(8, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 255
    with EventStorage() as storage:
        storage.epoch = epoch
        losses = model.train()({"images": images, "targets": torch.arange(8) // 2})
    for hook in hooks:
        hook.remove()
    return losses, seen


def trained(cfg):
    """A model whose attention is no longer the identity."""
    torch.manual_seed(0)
    model = build_model(cfg)
    attention = getattr(model.heads, "attention", None)
    if attention is not None:
        torch.nn.init.normal_(attention.project.weight)
    return model


@pytest.mark.parametrize(
    "head, pool",
    [({}, "GlobalAvgPool"), ({"MODEL.HEADS.NAME": "DCSHead"}, "GeneralizedMeanPooling")],
)
def test_before_is_the_map_pooled_and_after_the_heads_embedding(make_small_cfg, head, pool):
    attention = {"MODEL.ATTENTION.WIDTH": 8, **head} if head else DCS
    changes = {**RIB, **attention, "MODEL.HEADS.POOL_LAYER": pool}
    model = trained(make_small_cfg({**changes, **BEFORE}))
    losses, seen = step(model)
    assert torch.equal(seen["rib"], model.heads.pool_layer(seen["map"])[..., 0, 0])
    assert not torch.allclose(seen["rib"], seen["outputs"]["features"])
    of_attention = list(model.heads.attention.parameters())
    found = torch.autograd.grad(
        seen["rib"].sum(), of_attention, retain_graph=True, allow_unused=True
    )
    assert found == (None,) * len(of_attention), "RIB trains the attention"
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    step(model)
    assert step(model, epoch=1)[0]["loss_rib"].item() != 0

    model = trained(make_small_cfg(changes))
    _, seen = step(model)
    assert torch.equal(seen["rib"], seen["outputs"]["features"])
    of_attention = [model.heads.attention.project.weight]
    assert torch.autograd.grad(seen["rib"].sum(), of_attention)[0].abs().sum() > 0


def test_without_attention_at_the_head_both_are_one(make_small_cfg):
    for changes in ({}, {**DCS, "MODEL.ATTENTION.PLACEMENT": ("conv3",)}):
        _, seen = step(build_model(make_small_cfg({**RIB, **changes, **BEFORE})))
        assert torch.equal(seen["rib"], seen["outputs"]["features"])


def test_a_copy_looks_at_its_own_map(make_small_cfg):
    model = trained(make_small_cfg({**RIB, **DCS, **BEFORE}))
    step(model)
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.backbone.conv5.bn.weight)
    _, seen = step(twin)
    assert torch.equal(seen["rib"], twin.heads.pool_layer(seen["map"])[..., 0, 0])
    with torch.no_grad():  # PreciseBN: a training pass that trains nothing
        losses, _ = step(twin)
    assert losses["loss_rib"].item() == 0


def test_where_it_cannot_be_taken(make_small_cfg, monkeypatch):
    class Poolless(torch.nn.Module):
        def __init__(self, cfg):
            super().__init__()

    monkeypatch.setitem(REID_HEADS_REGISTRY._obj_map, "Poolless", Poolless)
    for changes, message in (
        ({"MODEL.META_ARCHITECTURE": "MGN"}, "in MGN.*Write 'after'"),
        ({"MODEL.HEADS.NAME": "Poolless"}, "Poolless has no `pool_layer`"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(make_small_cfg({**RIB, **DCS, **BEFORE, **changes}))


def test_embedding_and_labels_by_hand():
    a, b, labels = torch.ones(2, 3), torch.zeros(2, 1), torch.tensor([0, 1])
    embeddings, found = embedding_and_labels(({"features": a}, [{"features": b}], labels))
    assert torch.equal(embeddings, a) and found is labels
    embeddings, _ = embedding_and_labels(({"features": a}, {"features": b}, labels))
    assert torch.equal(embeddings, torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 0]]))
    assert embedding_and_labels(({"features": a}, torch.rand(2, 4))) is None, "attributes"
    assert embedding_and_labels(({"other": a}, labels)) is None
    assert embedding_and_labels(()) is None


@pytest.mark.parametrize("attention", [{}, DCS], ids=["plain", "DCS"])
def test_the_vector_before_the_neck_can_be_what_a_trained_network_gives(make_cfg, attention):
    model = trained(make_cfg({**RIB, **attention, "TEST.NECK_FEAT": "before"}))
    torch.nn.init.uniform_(model.heads.bottleneck[-1].running_mean)
    stock = build_model(make_cfg({**RIB, **attention}))
    stock.load_state_dict(model.state_dict())
    images = torch.rand(4, 3, 64, 32) * 255
    pooled = []
    model.heads.pool_layer.register_forward_hook(lambda m, a, out: pooled.append(out.flatten(1)))
    with torch.no_grad():
        given = model.eval()({"images": images.clone()})
        assert torch.equal(given, pooled[-1])
        assert not torch.allclose(stock.eval()({"images": images.clone()}), given)
        # A copy gives what it pools itself.
        assert torch.equal(copy.deepcopy(model)({"images": images.clone()}), given)
    torch.manual_seed(1)  # of the masks
    losses, _ = step(model)
    torch.manual_seed(1)
    others, _ = step(stock)
    assert losses.keys() == others.keys()
    assert all(torch.equal(losses[name], others[name]) for name in losses), "training changes"


def test_a_head_that_gives_classes_has_no_vector_before_its_neck(make_cfg):
    with pytest.raises(ValueError, match=r"TEST.NECK_FEAT is 'before'.*ClasHead.*'after'"):
        build_model(make_cfg({"MODEL.HEADS.NAME": "ClasHead", "TEST.NECK_FEAT": "before"}))
