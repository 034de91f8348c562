"""The command that says whether training can work here, and what would stop or spoil one."""

import sys

import pytest
import torch
from fastreid.data import build

from fastreid_rib.commands.doctor import examine
from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import generate

DOCTOR = ("-m", "fastreid_rib", "doctor")


def test_a_good_machine_is_ready(command, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    status, report = command("doctor")
    assert status == 0 and "FAIL" not in report and "ready to train" in report
    for subject in ("fastreid-rib", "torch", "NumPy", "CUDA", "loss on cpu", "optimizer"):
        assert subject in report
    assert "cpu-launch" in report or "CUDA" in report
    assert str(tmp_path) in report


def test_a_data_root_that_cannot_be_made(command, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "file" / "datasets"))
    status, report = command("doctor")
    assert status == 1 and "FAIL  data root" in report and "FASTREID_DATASETS" in report


def test_a_plugin_that_is_switched_off_is_a_failure(run_script):
    run = run_script(*DOCTOR, env={"FASTREID_RIB_DISABLE": "1"}, check=False)
    assert run.returncode == 1
    assert "FAIL  activation" in run.stdout and "training cannot work here" in run.stdout


def test_a_pth_file_that_did_not_load_is_a_failure(run_script, tmp_path):
    """Without it FastReID passes over a loss that it does not know, and says nothing."""
    (tmp_path / "fastreid_rib.pth").write_text("import sys")  # nothing of ours, as where it failed
    code = (
        "import sys; from fastreid_rib.commands import doctor\n"
        f"sys.executable, sys.path[:0] = {str(tmp_path / 'python')!r}, [{str(tmp_path)!r}]\n"
        "print(*list(doctor.plugin())[-1])"
    )
    python = tmp_path / "python"  # as an interpreter that reads no .pth files
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o700)
    said = run_script("-c", code).stdout
    assert said.startswith("FAIL activation fastreid_rib.pth did not load: write `import")
    assert "trains without RIB, and says nothing" in said
    (tmp_path / "fastreid_rib.pth").unlink()
    code = code.replace("sys.path[:0] =", "sys.path[:] =")
    assert run_script("-c", code).stdout.startswith("note activation no .pth file")


def test_without_fastreid(run_script):
    code = (
        "import sys, fastreid_rib.activation as activation\n"
        "class NotThere:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'fastreid': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotThere())\n"
        "from fastreid_rib.__main__ import main\n"
        "sys.exit(main(['doctor']))"
    )
    run = run_script("-c", code, check=False)
    assert run.returncode == 1
    assert "FAIL  fastreid" in run.stdout


@pytest.mark.today_only  # FastReID's optimizers learn on torch 1.13
def test_an_optimizer_that_does_not_learn_is_found(run_script):
    run = run_script(*DOCTOR, env={"FASTREID_RIB_DISABLE": "zero-grad"}, check=False)
    assert run.returncode == 1
    assert "FAIL  optimizer" in run.stdout
    assert "not repaired" in run.stdout


# Of a config and its data


@pytest.fixture
def found(make_small_cfg, tmp_path):
    """The findings of the tiny config with keys changed: {status: [text]}."""

    def of(changes=None):
        path = tmp_path / "config.yml"
        path.write_text(make_small_cfg({"SOLVER.STEPS": [2], **(changes or {})}).dump())
        result = {"FAIL": [], "note": [], "ok": []}
        for finding in examine(str(path)):
            result[finding.status].append(f"{finding.subject}: {finding.text}")
        return result

    return of


def test_a_training_that_can_begin(found, tmp_path):
    report = found({"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB")})
    assert report["FAIL"] == [] and report["note"] == []
    assert "training set: 64 pictures of 8 identities by 6 cameras" in report["ok"]
    assert any("12 queries, 28 pictures in the gallery" in text for text in report["ok"])
    assert not (tmp_path / "logs").exists(), "nothing is written"


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"MODEL.LOSSES.NAME": ("CrossEntropy", "RIBB")}, "'RIBB', which Baseline does not know"),
        ({"MODEL.HEADS.NUM_CLASSES": 3}, "NUM_CLASSES must be 0, or at least 8"),
        ({"MODEL.BACKBONE.FEAT_DIM": 100}, "FEAT_DIM must be 128"),
        ({"INPUT.SIZE_TEST": [8, 4]}, "network: "),
        ({"DATASETS.NAMES": ("Market1501",)}, "training set: "),
        (
            {"SOLVER.IMS_PER_BATCH": 80, "DATALOADER.SAMPLER_TRAIN": "TrainingSampler"},
            "no batch is ever full",
        ),
        ({"SOLVER.IMS_PER_BATCH": 80}, "can never fill a batch"),
    ],
)
def test_what_would_stop_it(found, changes, expected):
    failures = found(changes)["FAIL"]
    assert any(expected in text for text in failures), failures


def test_all_of_it_is_said(found):
    failures = found(
        {
            "SOLVER.BASE_LR": -0.1,
            "SOLVER.MAX_EPOCH": 0,
            "MODEL.WEIGHTS": "nowhere.pth",
            "DATASETS.TESTS": ("NoSuchSet",),
        }
    )["FAIL"]
    for expected in ("BASE_LR", "MAX_EPOCH", "nowhere.pth", "NoSuchSet"):
        assert any(expected in text for text in failures), expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_config_for_gpus(found):
    failures = " ".join(found({"MODEL.DEVICE": "cuda", "SOLVER.AMP.ENABLED": True})["FAIL"])
    assert "MODEL.DEVICE cpu" in failures and "ENABLED must be False without a GPU" in failures


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"MODEL.LOSSES.NAME": ("RIB",), "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 3},
            "RIB: RIB would start at epoch 3, but SOLVER.MAX_EPOCH is 3",
        ),
        ({"SOLVER.STEPS": [30, 55]}, "SOLVER.STEPS (30, 55) are beyond 3 epochs"),
        ({"SOLVER.WARMUP_ITERS": 1000}, "SOLVER.BASE_LR is never reached"),
        ({"MODEL.BACKBONE.PRETRAIN": True}, "fetched at the first start"),
    ],
)
def test_what_would_spoil_it(found, changes, expected):
    report = found(changes)
    assert report["FAIL"] == [] and any(expected in text for text in report["note"]), report


def test_files_that_are_there(found, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "last_checkpoint").write_text("model_0001.pth")
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:1500])
    report = found({"MODEL.WEIGHTS": str(path)})
    assert any("--resume continues it" in text for text in report["note"])
    assert any("truncated or damaged" in text for text in report["FAIL"])


def test_pictures_that_are_alone_and_queries_without_an_answer(found, tmp_path, monkeypatch):
    folder = tmp_path / "Market-1501-v15.09.15"
    generate(str(folder), SyntheticReIDTiny.spec)
    monkeypatch.setattr(build, "_root", str(tmp_path))
    first = sorted(folder.joinpath("bounding_box_train").iterdir())
    identity = first[0].name[:4]
    for path in [path for path in first if path.name.startswith(identity)][1:]:
        path.unlink()
    changes = {"DATASETS.NAMES": ("Market1501",), "DATASETS.TESTS": ("Market1501",)}
    assert any("1 of 8 identities have one picture" in text for text in found(changes)["note"])
    for path in folder.joinpath("query").iterdir():
        path.unlink()
    assert any("test set: " in text for text in found(changes)["FAIL"])
