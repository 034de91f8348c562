"""PartHead in FastReID: trains as its EmbeddingHead, is fitted by an evaluation, is saved."""

import os
import random

import numpy as np
import pytest
import torch
from fastreid.engine import DefaultTrainer, launch
from fastreid.modeling import build_model
from fastreid.utils import comm
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.events import EventStorage
from placed import MGN_R50, VIT

from fastreid_rib.attention import PartAttention
from fastreid_rib.integration.attention import part_head
from fastreid_rib.integration.training_set import in_batches, training_pictures

PARTS = {"MODEL.HEADS.NAME": "PartHead", "MODEL.BACKBONE.PRETRAIN": False}


def images(seed=0):
    return torch.rand(8, 3, 64, 32, generator=torch.Generator().manual_seed(seed)) * 255


def a_step(model):
    model.train()
    with EventStorage():
        losses = model({"images": images(), "targets": torch.arange(8) // 2})
    sum(losses.values()).backward()
    return losses


def seeded(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def test_it_trains_as_fastreids_head(make_small_cfg):
    ours = seeded(make_small_cfg(PARTS))
    stock = seeded(make_small_cfg({**PARTS, "MODEL.HEADS.NAME": "EmbeddingHead"}))
    assert list(ours.state_dict()) == list(stock.state_dict())
    losses, expected = a_step(ours), a_step(stock)
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    for one, other in zip(ours.parameters(), stock.parameters()):
        assert one.grad is other.grad is None or torch.equal(one.grad, other.grad)
    with torch.no_grad():
        assert torch.equal(ours.eval()({"images": images()}), stock.eval()({"images": images()}))


def test_an_evaluation_fits_it_to_the_training_set(make_small_cfg, heard):
    cfg = make_small_cfg(PARTS)
    model = seeded(cfg)
    a_step(model)
    said = heard(part_head.logger)
    results = DefaultTrainer.test(cfg, model)
    assert 0 < results["mAP"] <= 100 and model.training
    assert said() == [
        "PartHead: fits its parts to the training set, DATASETS.NAMES SyntheticReIDTiny",
        f"PartHead: the parts are fitted to {len(training_pictures(cfg))} pictures",
    ]

    # The same by hand, in any PyTorch loop.
    model.eval()
    attention, maps, labels = PartAttention(), [], []
    with torch.no_grad():
        for batch in in_batches(training_pictures(cfg), cfg):
            maps.append(model.backbone(model.preprocess_image(batch)))
            labels.append(batch["targets"])
        maps, labels = torch.cat(maps), torch.cat(labels)
        attention.find_parts(maps)
        attention.fit(attention.pool(maps), labels)
        expected = attention(model.backbone(model.preprocess_image({"images": images()})))
        found = model({"images": images()})
    assert torch.allclose(found, expected, atol=1e-4)

    DefaultTrainer.test(cfg, model)  # of the same weights: nothing is fitted anew
    assert len(said()) == 2
    a_step(model)
    assert not model.heads.parts.fitted
    DefaultTrainer.test(cfg, model)
    assert len(said()) == 4


def test_a_fit_draws_no_random_number_of_the_training(make_small_cfg):
    cfg = make_small_cfg({**PARTS, "SEED": -1})
    model = seeded(cfg)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    part_head.fit(cfg, model)
    assert model.heads.parts.fitted
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_checkpoint_holds_it(make_small_cfg, tmp_path, heard):
    cfg = make_small_cfg(PARTS)
    model = seeded(cfg)
    Checkpointer(model, str(tmp_path)).save("unfitted")
    part_head.fit(cfg, model)
    Checkpointer(model, str(tmp_path)).save("fitted")
    with torch.no_grad():
        expected = model.eval()({"images": images()})
    said = heard(part_head.logger)
    for identities in (8, 0):  # 0: in an evaluation that was not told
        loaded = build_model(make_small_cfg({**PARTS, "MODEL.HEADS.NUM_CLASSES": identities}))
        Checkpointer(loaded).load(str(tmp_path / "fitted.pth"))
        with torch.no_grad():
            assert torch.equal(loaded.eval()({"images": images()}), expected)
    assert said() == []
    Checkpointer(loaded).load(str(tmp_path / "unfitted.pth"))
    assert "the checkpoint has no parts" in said()[0] and not loaded.heads.parts.fitted


@pytest.mark.parametrize("period", [0, 2, 3])
def test_the_last_checkpoint_holds_it(make_small_cfg, period):
    """Also where FastReID writes it before the last evaluation."""
    cfg = make_small_cfg({**PARTS, "TEST.EVAL_PERIOD": period})
    os.makedirs(cfg.OUTPUT_DIR)  # as default_setup does
    trainer = DefaultTrainer(cfg)
    trainer.train()
    state = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")["model"]
    assert "heads.parts.projections" in state
    fitted = trainer.model.heads.parts.projections
    assert torch.equal(state["heads.parts.projections"], fitted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.HEADS.EMBEDDING_DIM": 64}, "Write 0, or EmbeddingHead"),
        (MGN_R50, "needs a network of one head, and MGN has several. Write EmbeddingHead"),
    ],
)
def test_another_neck_is_refused(make_cfg, changes, message):
    with pytest.raises(ValueError, match=f"MODEL.HEADS.NAME PartHead .*{message}"):
        build_model(make_cfg({**changes, **PARTS}))


def test_what_cannot_be_fitted_is_named(make_small_cfg, monkeypatch):
    cfg = make_small_cfg({**PARTS, "MODEL.HEADS.POOL_LAYER": "Identity"})
    with pytest.raises(ValueError, match=r"fitted to DATASETS.NAMES SyntheticReIDTiny: whole must"):
        part_head.fit(cfg, seeded(cfg))
    cfg = make_small_cfg(PARTS)
    model = seeded(cfg)
    model.another = seeded(cfg).heads
    with pytest.raises(ValueError, match="a network of one head, and Baseline has 2"):
        part_head.fit(cfg, model)


def test_its_batches_are_those_of_an_evaluation(make_small_cfg):
    """And the training's sampler, which fits to another number of processes, is not asked."""
    changes = {"DATALOADER.NUM_INSTANCE": 32, "SOLVER.IMS_PER_BATCH": 16, "TEST.IMS_PER_BATCH": 6}
    cfg = make_small_cfg({**PARTS, **changes})
    data = training_pictures(cfg)
    sizes = [len(batch["targets"]) for batch in in_batches(data, cfg)]
    assert sum(sizes) == len(data) and set(sizes[:-1]) == {6}


def test_a_backbone_without_a_map_stops_at_the_first_step(make_cfg):
    cfg = make_cfg({**VIT, **PARTS, "MODEL.HEADS.POOL_LAYER": "Identity"})
    model = build_model(cfg).train()
    model.backbone.blocks = model.backbone.blocks[:1]
    size = cfg.INPUT.SIZE_TRAIN
    with pytest.raises(ValueError, match=r"this backbone gives \(2, 768.*\), one position"):
        model({"images": torch.rand(2, 3, *size), "targets": torch.tensor([0, 1])})


def of_a_rank(cfg, folder):
    torch.set_num_threads(1)
    model = seeded(cfg)
    part_head.fit(cfg, model)
    torch.save(model.state_dict(), f"{folder}/{comm.get_rank()}.pth")


def test_two_processes_share_the_pictures_and_fit_the_same(make_small_cfg, tmp_path):
    cfg = make_small_cfg(PARTS)
    training_pictures(cfg)  # drawn once, by one
    launch(of_a_rank, 2, dist_url="auto", args=(cfg, str(tmp_path)))
    one, other = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    model = seeded(cfg)
    part_head.fit(cfg, model)
    assert model.heads.parts.fitted
    for name, value in model.state_dict().items():
        found = one[name]
        assert torch.equal(found, other[name])
        if name.endswith("projections"):  # columns that tell as much may be turned
            found, value = found @ found.transpose(1, 2), value @ value.transpose(1, 2)
        assert torch.allclose(found, value, atol=1e-3 * float(value.abs().max() or 1)), name
