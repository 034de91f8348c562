"""The examples train with RIB, under the real packages, and learn."""

import math
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastreid_rib import RIBLoss
from fastreid_rib.base.safe_reads import read_safely
from fastreid_rib.data.synthetic_folder import SyntheticSpec, generate

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HELPERS = {"pedestrians", "retrieval"}
EPOCHS = 8
COMMANDS = [
    ("plain_pytorch",),
    ("vit_with_bnneck",),
    ("vit_with_bnneck", "--rib", "behind"),
    ("with_pytorch_metric_learning",),
    ("with_torchreid",),
]

TINY = SyntheticSpec(
    num_train_ids=16,
    train_images=8,
    num_test_ids=12,
    query_images=2,
    gallery_images=4,
    num_distractors=4,
    height=32,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pedestrians")
    generate(str(path), TINY)
    return path


@pytest.fixture
def helpers(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import pedestrians
    import retrieval

    return SimpleNamespace(pedestrians=pedestrians, retrieval=retrieval)


@pytest.fixture
def seen(monkeypatch):
    """What every RIBLoss gave: reports of refreshes, losses, and their gradients."""
    seen = SimpleNamespace(reports=[], losses=[], gradients=[])
    start_epoch, forward = RIBLoss.start_epoch, RIBLoss.forward

    def watched_start(self, epoch):
        seen.reports.append(start_epoch(self, epoch))
        return seen.reports[-1]

    def watched_forward(self, *args):
        loss = forward(self, *args)
        if self.active:
            seen.losses.append(float(loss.detach()))
            loss.register_hook(lambda gradient: seen.gradients.append(float(gradient)))
        return loss

    monkeypatch.setattr(RIBLoss, "start_epoch", watched_start)
    monkeypatch.setattr(RIBLoss, "forward", watched_forward)
    return seen


@pytest.fixture
def run(helpers, monkeypatch, tmp_path, capsys):
    """Runs an example as its own script and gives what it printed."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)  # torchreid writes checkpoints
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_each_example_is_tested():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts - HELPERS == {command[0] for command in COMMANDS}


PACKAGES = {
    "with_torchreid": "torchreid",
    "with_pytorch_metric_learning": "pytorch_metric_learning",
}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_trains_with_rib_and_learns(command, folder, run, seen, tmp_path):
    if command[0] in PACKAGES:
        pytest.importorskip(PACKAGES[command[0]])
    printed = run(*command, "--data", folder, "--height", 32, "--epochs", EPOCHS)

    before, after = (float(value) for value in re.findall(r"mAP:? (\d+\.\d)", printed))
    if command[0] != "with_torchreid":  # whose untrained network finds as much in so small a set
        assert after > before + 5
    quarter = len(seen.losses) // 4
    assert sum(seen.losses[-quarter:]) < sum(seen.losses[:quarter]) - 0.1 * quarter

    # RIB begins with the third epoch, on the embeddings of the second.
    due = seen.reports[2:EPOCHS]
    assert len(due) == EPOCHS - 2 and seen.reports[:2] == [{}, {}]
    assert all(report["mutual_information"] > 0 for report in due)
    steps = 16 * 8 // 32
    # torchreid's sampler leaves out what does not fill a batch.
    least = 0.75 if command[0] == "with_torchreid" else 1.0
    assert least * (EPOCHS - 2) * steps <= len(seen.losses) <= (EPOCHS - 2) * steps
    assert all(math.isfinite(loss) and loss != 0 for loss in seen.losses)
    assert seen.gradients == [1.0] * len(seen.losses)  # part of what was minimised, unscaled

    if command[0] == "with_torchreid":
        (checkpoint,) = tmp_path.glob("logs/torchreid/model/*")
        saved = read_safely(str(checkpoint))["state_dict"]
        assert saved["rib.centroids"].shape == (16, 512)
