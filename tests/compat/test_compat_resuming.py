"""Second runs in one folder: what FastReID does of itself, and with its repairs."""

import logging

import pytest
import resumed
from fastreid.engine import default_argument_parser
from of_itself import report


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    return report(resumed, tmp_path_factory.mktemp("repaired"), repaired=True)


@pytest.mark.all_only  # FastReID's own behaviour changes with none of ours
def test_what_fastreid_does_of_itself(tmp_path):
    found = report(resumed, tmp_path)
    assert "has no attribute 'epoch'" in found["finished"]
    for case in ("other_identities", "other_network"):
        assert "The size of tensor a" in found[case]
    assert found["other_optimizer"] == "KeyError: 'momentum'"
    assert found["frozen_again"] == 0, "nothing of the backbone moved"
    assert found["frozen_averages"] > 50
    assert found["best"] == 45.0
    assert found["period_of_zero"].startswith("ZeroDivisionError")
    assert "No evaluation results" in found["period_below_zero"]
    assert found["of_two_steps"].startswith("ZeroDivisionError")
    assert "ema_teacher" not in found["parts"]


def test_a_finished_run_is_evaluated_and_ends(repaired):
    assert repaired["finished"] == {"metric": 50.0}


def test_another_network_is_refused_with_what_to_write(repaired):
    for case, difference in (
        ("other_identities", "heads.weight is (8, 128) there and (9, 128) here"),
        ("other_network", "its optimizer has weights of"),
    ):
        assert difference in repaired[case], repaired[case]
        assert repaired[case].startswith("ValueError: --resume continues the training of ")
        assert "leave --resume out, write MODEL.WEIGHTS" in repaired[case]


def test_another_optimizer_is_refused(repaired):
    assert "its optimizer is another one (SOLVER.OPT): SGD needs" in repaired["other_optimizer"]


def test_layers_are_frozen_once(repaired):
    assert repaired["frozen_again"] > 300
    assert repaired["frozen_still"] == 0, "it was to be frozen for longer"


def test_frozen_layers_stay_frozen_over_an_evaluation(repaired):
    assert repaired["frozen_averages"] == 0


def test_the_best_model_is_not_overwritten_by_a_worse_one(repaired):
    assert repaired["best"] == 50.0


def test_a_period_of_zero_evaluates_at_the_end(repaired):
    assert repaired["period_of_zero"] == repaired["period_below_zero"] == {"metric": 50.0}


def test_a_run_of_two_steps_is_logged(repaired):
    assert repaired["of_two_steps"] == {"metric": 50.0}


def test_the_teacher_that_follows_is_saved(repaired):
    assert "ema_teacher" in repaired["parts"]


@pytest.mark.today_only  # a scaler for the CPU came with torch 2.3
def test_the_scaler_of_amp_is_saved(tmp_path, monkeypatch, caplog):
    import torch
    from fastreid.engine import defaults

    caplog.set_level(logging.INFO, logger="fastreid")  # or the trainer sets up a log of its own

    def trainer(scale):
        class WithScaler(defaults.SimpleTrainer):  # AMPTrainer wants a GPU
            grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        monkeypatch.setattr(defaults, "SimpleTrainer", WithScaler)
        return resumed.make(str(tmp_path), resume=True, SOLVER__MAX_EPOCH=2)

    trainer(1024.0).checkpointer.save("model_0000", epoch=0)
    assert trainer(65536.0).grad_scaler.get_scale() == 1024.0


def test_a_checkpoint_without_the_teacher_says_that_it_starts_anew(tmp_path, caplog):
    import torch

    caplog.set_level(logging.INFO, logger="fastreid")
    distiller = {"MODEL__META_ARCHITECTURE": "Distiller", "KD__EMA__ENABLED": True}
    resumed.make(str(tmp_path), **distiller).train()
    path = tmp_path / "model_final.pth"
    held = torch.load(path, map_location="cpu")
    del held["ema_teacher"]
    torch.save(held, path)
    resumed.make(str(tmp_path), resume=True, **distiller)
    assert "does not hold ema_teacher, which therefore starts anew" in caplog.text


@pytest.mark.parametrize("given", [["--resume", "out/a.pth", "SEED", "1"], ["--resume=out/a.pth"]])
def test_a_path_behind_resume_is_told_how_to_be_written(given, capsys):
    parser = default_argument_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(given)
    told = capsys.readouterr().err
    assert "got out/a.pth: " in told and "Write --resume OUTPUT_DIR out." in told
    assert "leave --resume out and write MODEL.WEIGHTS" in told


def test_resume_is_parsed_as_before():
    parse = default_argument_parser().parse_args
    assert parse(["--resume", "OUTPUT_DIR", "out/a"]).opts == ["OUTPUT_DIR", "out/a"]
    assert parse(["--resume"]).resume and not parse(["MODEL.WEIGHTS", "a.pth"]).resume
