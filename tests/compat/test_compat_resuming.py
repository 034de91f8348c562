"""Second runs in one folder, and runs with an odd end."""

import logging
import os
import sys

import pytest
import torch
from fastreid.engine import DefaultTrainer, default_argument_parser
from small_run import small_cfg

FROZEN = {"MODEL.FREEZE_LAYERS": ["backbone"], "SOLVER.FREEZE_ITERS": 4}  # an epoch
DISTILLER = {"MODEL.META_ARCHITECTURE": "Distiller", "KD.EMA.ENABLED": True}


class Trainer(DefaultTrainer):
    """Each evaluation finds the next of `metrics`."""

    metrics = [50.0]

    @classmethod
    def test(cls, cfg, model):
        model.eval()  # as an evaluation does
        model.train()
        return {"metric": cls.metrics.pop(0) if len(cls.metrics) > 1 else cls.metrics[0]}


@pytest.fixture
def make(tmp_path, as_after_setup, caplog):
    """A trainer; with ``epochs`` it is resumed from the one before."""
    caplog.set_level(logging.INFO, logger="fastreid")  # or the trainer sets up a log of its own

    def build(changes=None, epochs=0):
        more = {"SOLVER.MAX_EPOCH": epochs} if epochs else {}
        trainer = Trainer(
            small_cfg(tmp_path, {"MODEL.HEADS.NUM_CLASSES": 8, **(changes or {}), **more})
        )
        trainer.resume_or_load(resume=bool(epochs))
        return trainer

    return build


def test_a_finished_run_is_evaluated_and_ends(make):
    make().train()
    assert make(epochs=1).train() == {"metric": 50.0}


@pytest.mark.parametrize(
    "before, after, difference",
    [
        ({}, {"MODEL.HEADS.NUM_CLASSES": 9}, "heads.weight is .8, 128. there and .9, 128. here"),
        ({}, {"MODEL.HEADS.WITH_BNNECK": True}, "its optimizer has weights of"),
        (
            {"SOLVER.OPT": "Adam"},
            {"SOLVER.OPT": "SGD"},
            "its optimizer is another one .SOLVER.OPT.: SGD needs",
        ),
    ],
)
def test_another_training_is_refused_with_what_to_write(make, before, after, difference):
    make(before).train()
    told = f"^--resume continues .* {difference}.* leave --resume out, write MODEL.WEIGHTS"
    with pytest.raises(ValueError, match=told):
        make(after, epochs=2)


def moved(trainer, of):
    """How many of the tensors differ after the training from before it."""
    before = [tensor.clone() for tensor in of(trainer.model.backbone)]
    trainer.train()
    return sum(not torch.equal(a, b) for a, b in zip(before, of(trainer.model.backbone)))


def weights(backbone):
    return [parameter.detach() for parameter in backbone.parameters()]


@pytest.mark.parametrize("iters, least, most", [(4, 300, 999), (8, 0, 0)])
def test_layers_are_frozen_once(make, iters, least, most):
    """In the second epoch they are not frozen any more, or all of it."""
    frozen = {**FROZEN, "SOLVER.FREEZE_ITERS": iters}
    make(frozen).train()
    assert least <= moved(make(frozen, epochs=2), weights) <= most


def test_frozen_layers_stay_frozen_over_an_evaluation(make):
    def averages(backbone):
        return [t for name, t in backbone.named_buffers() if name.endswith("running_mean")]

    frozen = {**FROZEN, "SOLVER.FREEZE_ITERS": 8, "SOLVER.MAX_EPOCH": 2}
    assert moved(make(frozen), averages) == 0


def test_the_best_model_is_not_overwritten_by_a_worse_one(make, tmp_path, monkeypatch):
    make().train()
    monkeypatch.setattr(Trainer, "metrics", [40.0, 45.0])
    make(epochs=3).train()
    assert torch.load(tmp_path / "model_best.pth", map_location="cpu")["metric"] == 50.0


@pytest.mark.parametrize("changes", [{"TEST.EVAL_PERIOD": 0}, {"TEST.EVAL_PERIOD": -1}])
def test_a_period_of_zero_evaluates_at_the_end(make, changes):
    assert make(changes).train() == {"metric": 50.0}


def test_a_run_of_two_steps_is_logged(make):
    assert make({"SOLVER.IMS_PER_BATCH": 32}).train() == {"metric": 50.0}


@pytest.mark.today_only  # a scaler for the CPU came with torch 2.3
def test_the_scaler_of_amp_is_saved(make, monkeypatch):
    from fastreid.engine import defaults

    def trainer(scale):
        class WithScaler(defaults.SimpleTrainer):  # AMPTrainer wants a GPU
            grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        monkeypatch.setattr(defaults, "SimpleTrainer", WithScaler)
        return make(epochs=2)

    trainer(1024.0).checkpointer.save("model_0000", epoch=0)
    assert trainer(65536.0).grad_scaler.get_scale() == 1024.0


def test_the_teacher_that_follows_is_saved_and_told_if_it_is_not_there(make, tmp_path, caplog):
    make(DISTILLER).train()
    path = tmp_path / "model_final.pth"
    held = torch.load(path, map_location="cpu")
    del held["ema_teacher"]
    torch.save(held, path)
    make(DISTILLER, epochs=2)
    assert "does not hold ema_teacher, which therefore starts anew" in caplog.text


@pytest.mark.parametrize("given", [["--resume", "out/a.pth", "SEED", "1"], ["--resume=out/a.pth"]])
def test_a_path_behind_resume_is_told_how_to_be_written(given, capsys):
    with pytest.raises(SystemExit):
        default_argument_parser().parse_args(given)
    told = capsys.readouterr().err
    assert "got out/a.pth: " in told and "Write --resume OUTPUT_DIR out." in told
    assert "leave --resume out and write MODEL.WEIGHTS" in told


def test_resume_is_parsed_as_before(monkeypatch):
    parse = default_argument_parser().parse_args
    assert parse(["--resume", "OUTPUT_DIR", "out/a"]).opts == ["OUTPUT_DIR", "out/a"]
    monkeypatch.setattr(sys, "argv", ["train_net.py", "MODEL.WEIGHTS", f"a{os.sep}b=c.pth"])
    assert not parse().resume and parse().opts == ["MODEL.WEIGHTS", f"a{os.sep}b=c.pth"]
