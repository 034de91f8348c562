"""What would stop or spoil a training is found before it, all of it, with what to write."""

import pytest
import torch
from fastreid.data import build

from fastreid_rib.commands.doctor import examine
from fastreid_rib.data.synthetic import SyntheticReIDTiny
from fastreid_rib.data.synthetic_folder import generate

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


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
        ({"MODEL.LOSSES.RIB.BETA": -1.0, "MODEL.LOSSES.NAME": ("RIB",)}, "RIB.BETA must be > 0"),
        ({"SOLVER.BASE_LR": -0.1}, "SOLVER.BASE_LR must be"),
        ({"MODEL.WEIGHTS": "nowhere.pth"}, "MODEL.WEIGHTS is 'nowhere.pth', which is not there"),
        ({"MODEL.HEADS.NUM_CLASSES": 3}, "NUM_CLASSES must be 0, or at least 8"),
        ({"MODEL.BACKBONE.FEAT_DIM": 100}, "FEAT_DIM must be 128"),
        ({"INPUT.SIZE_TEST": [8, 4]}, "network: "),
        ({"DATASETS.TESTS": ("NoSuchSet",)}, "test set: "),
        ({"DATASETS.NAMES": ("Market1501",)}, "training set: "),
        (
            {"SOLVER.IMS_PER_BATCH": 80, "DATALOADER.SAMPLER_TRAIN": "TrainingSampler"},
            "no batch is ever full",
        ),
        ({"SOLVER.IMS_PER_BATCH": 80}, "can never fill a batch"),
        ({"MODEL.ATTENTION.NAME": "DCS", "MODEL.ATTENTION.PLACEMENT": ("layer9",)}, "'layer9'"),
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


@NO_GPU
def test_a_config_for_gpus(found):
    changes = {"MODEL.DEVICE": "cuda", "SOLVER.AMP.ENABLED": True, "MODEL.HEADS.NORM": "syncBN"}
    failures = " ".join(found(changes)["FAIL"])
    assert "there is no GPU: write cpu" in failures and "write False" in failures
    found({})


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


def test_a_folder_with_a_training(found, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "last_checkpoint").write_text("model_0001.pth")
    assert any("--resume continues it" in text for text in found()["note"])


def test_a_truncated_checkpoint(found, tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:1500])
    failures = found({"MODEL.WEIGHTS": str(path)})["FAIL"]
    assert any("truncated or damaged" in text for text in failures), failures


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
