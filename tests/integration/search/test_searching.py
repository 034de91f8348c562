"""A search under FastReID's own trainer: turns, outputs, processes."""

import json
import re

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer
from fastreid.engine.train_loop import AMPTrainer
from fastreid.modeling import build_model
from fastreid.solver import build_optimizer

SEARCH = {
    "MODEL.BACKBONE.NAME": "build_searched_backbone",
    "MODEL.BACKBONE.DEPTH": "0.25x",
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
    "MODEL.HEADS.NUM_CLASSES": 0,
    "MODEL.SEARCH.ENABLED": True,
    "MODEL.SEARCH.WEIGHTS_SHARE": 0.5,
}


class Watched(DefaultTrainer):
    """Notes for each step what it moved: weights, logits."""

    def run_step(self):
        logits = [value.clone() for value in self.model.search.parameters()]
        weight = self.model.backbone.stem[0].weight.detach().clone()
        super().run_step()
        moved = any(not torch.equal(a, b) for a, b in zip(logits, self.model.search.parameters()))
        self.moved.append((not torch.equal(weight, self.model.backbone.stem[0].weight), moved))


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny):
    """A finished search: its trainer and its folder."""
    folder = tmp_path_factory.mktemp("search")
    cfg = get_cfg()
    settings = {**tiny, **SEARCH, "OUTPUT_DIR": str(folder)}
    settings.update({"SOLVER.MAX_EPOCH": 4, "TEST.EVAL_PERIOD": 4, "SOLVER.CHECKPOINT_PERIOD": 4})
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    trainer = Watched(cfg)
    trainer.moved = []
    trainer.train()
    return trainer, folder


def test_weights_and_logits_take_turns(searched):
    moved = searched[0].moved
    first = len(moved) // 4
    assert moved[:first] == [(True, False)] * first, "the warm-up: a fifth of four epochs"
    later = moved[first:]
    assert set(later) == {(True, False), (False, True)}, "never both, never none"
    assert abs(later.count((True, False)) - later.count((False, True))) <= 1


def test_progress_goes_to_the_event_storage(searched):
    _, folder = searched
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    last = [line for line in metrics if "search/cost" in line][-1]
    assert last["search/temperature"] == pytest.approx(0.1) and "search/entropy/stage3" in last
    probabilities = [last[f"search/probability/stage2/{width}"] for width in (40, 32, 24, 16)]
    assert sum(probabilities) == pytest.approx(1.0)


def test_the_derived_network_trains_with_the_plugin_alone(searched):
    trainer, folder = searched
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "searched.yml"))
    widths = cfg.MODEL.SEARCH.WIDTHS
    search = trainer.model.search
    chosen = dict(zip(search.choices, widths))
    assert chosen == search.derive() and search.cost.of(chosen) <= search.target
    assert not cfg.MODEL.SEARCH.ENABLED and str(folder / "searched") == cfg.OUTPUT_DIR
    cfg.SOLVER.MAX_EPOCH = cfg.TEST.EVAL_PERIOD = 1
    assert str(folder / "searched.pth") == cfg.MODEL.WEIGHTS
    (folder / "searched").mkdir()  # as FastReID's setup does
    small = DefaultTrainer(cfg)
    small.resume_or_load(resume=False)
    weight = trainer.model.backbone.stage1[0].conv[6].weight[: widths[0]]
    assert torch.equal(small.model.backbone.stage1[0].conv[6].weight, weight)
    results = small.train()
    assert 0 < results["mAP"] <= 100


@pytest.fixture
def logs(tmp_path):
    """OUTPUT_DIR of `make_cfg`, which FastReID's setup makes otherwise."""
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs"


def test_a_search_that_fails_derives_nothing(make_cfg, logs):
    class Fails(DefaultTrainer):
        def after_step(self):
            super().after_step()
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        Fails(make_cfg(SEARCH)).train()
    assert not (logs / "searched.yml").exists()


def test_two_processes_agree_in_every_choice(run_script, make_cfg, logs, tmp_path):
    config = tmp_path / "config.yml"
    config.write_text(make_cfg({**SEARCH, "SEED": -1, "SOLVER.MAX_EPOCH": 2}).dump())
    run = run_script("search_on_two.py", str(config)).stdout
    first, second = re.findall(r"^rank \d: (.*)$", run, re.MULTILINE)
    assert first == second and "stage4" in first


class Searched:
    """A supernet with its optimizer and a scaler, as mixed precision steps them; on the CPU."""

    def __init__(self, cfg):
        self.model = build_model(cfg)
        self.optimizer, _ = build_optimizer(cfg, self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        # On the CPU FastReID's trainer is refused; it looks at where the model is.
        elsewhere = torch.nn.Linear(1, 1, device="meta")
        AMPTrainer(elsewhere, [], self.optimizer, None, self.scaler)
        self.search = self.model.search.train()
        self.search.set_progress(1.0)  # after the warm-up
        self.logits = list(self.search.parameters())

    def backward(self, for_weights):
        """Draws until it is their turn, and takes the gradients."""
        self.search.draw()
        while self.search.step_is_for_weights() != for_weights:
            self.search.draw()
        self.optimizer.zero_grad()
        loss = self.search.cost_loss() + self.model.backbone.stem[0].weight.sum()
        self.scaler.scale(loss).backward()

    def step(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()


@pytest.fixture
def mixed(make_cfg):
    """A search in mixed precision."""
    if not hasattr(getattr(torch, "amp", None), "GradScaler"):
        pytest.skip("this torch scales gradients on GPUs only")
    return Searched(make_cfg({**SEARCH, "MODEL.HEADS.NUM_CLASSES": 4}))


def test_mixed_precision_unscales_the_gradients_of_the_logits(mixed):
    mixed.backward(for_weights=False)
    scaled = [value.grad.clone() for value in mixed.logits]
    before = [value.detach().clone() for value in mixed.logits]
    mixed.step()
    for value, large, old in zip(mixed.logits, scaled, before):
        assert torch.equal(value.grad, large / 1024) and value.grad.abs().max() > 0
        assert not torch.equal(value, old)


def test_mixed_precision_leaves_out_a_step_of_the_logits_that_is_not_finite(mixed):
    mixed.backward(for_weights=False)
    mixed.logits[1].grad[0] = float("inf")
    before = [value.detach().clone() for value in mixed.logits]
    mixed.step()
    assert all(torch.equal(value, old) for value, old in zip(mixed.logits, before))
    assert mixed.scaler.get_scale() == 512
    # A step of the weights does not look at what is dropped.
    mixed.backward(for_weights=True)
    mixed.logits[1].grad[0] = float("inf")
    weight = mixed.model.backbone.stem[0].weight
    old = weight.detach().clone()
    mixed.step()
    assert not torch.equal(weight, old) and mixed.scaler.get_scale() == 512
    assert torch.isfinite(torch.cat([value.flatten() for value in mixed.logits])).all()
