"""The command ``information``: the information plane of a run, from its checkpoints."""

import math
import re
from pathlib import Path

import pytest
import torch
from fastreid.data.build import build_reid_train_loader
from fastreid.data.transforms import build_transforms
from fastreid.modeling import build_model
from fastreid.utils.events import EventStorage
from torch.nn import functional as F

from fastreid_rib.__main__ import main
from fastreid_rib.commands import information
from fastreid_rib.losses.table import Rows
from fastreid_rib.settings.rib import RIBSettings


@pytest.fixture
def trained(make_cfg):
    """The folder of two epochs of a few steps, with model_0000 and model_final."""
    cfg = make_cfg({"MODEL.LOSSES.NAME": ("CrossEntropy", "RIB")})
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    torch.manual_seed(0)
    model, loader = build_model(cfg).train(), iter(build_reid_train_loader(cfg))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for epoch, name in enumerate(("model_0000", "model_final")):
        with EventStorage() as storage:
            storage.epoch = epoch
            for _ in range(3):
                optimizer.zero_grad()
                sum(model(next(loader)).values()).backward()
                optimizer.step()
        torch.save({"model": model.state_dict(), "epoch": epoch}, folder / f"{name}.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def test_measures_by_hand():
    """Four identities, told apart by their embeddings; their pictures look alike in pairs."""
    labels = torch.arange(32) % 4
    rows = Rows(3 * F.one_hot(labels, 5).float(), labels, None)
    pixels = F.one_hot(labels // 2, 96).float()
    found = information.measures(rows, pixels, RIBSettings(num_clusters=4, beta=50.0))
    assert found["I(F~;X~)"] == pytest.approx(math.log(2), abs=1e-4)
    assert found["I(F~;Y)"] == pytest.approx(math.log(4), abs=1e-4)
    assert found["IB"] == pytest.approx(-math.log(2), abs=1e-4)


def test_the_plane_of_a_run(trained, capsys):
    folder = trained
    assert main(["information", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = re.findall(r"^\| +(\d+) \| (.*) \|$", printed, re.M)
    assert [epoch for epoch, _ in lines] == ["0", "1"]
    first, last = ([float(number) for number in numbers.split(" | ")] for _, numbers in lines)
    assert first != last
    for kept, known, bottleneck, klb, bound in (first, last):
        assert kept > 0 and known > 0 and bottleneck == pytest.approx(kept - known, abs=2e-4)
        assert bottleneck <= klb + 1e-4 and bound >= -known - 1e-4
    assert (folder / "information.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_rib_has_a_plane_too(make_cfg, tmp_path):
    """And what the model computes does not depend on being looked at: batches of any size."""
    cfg = make_cfg()
    model = build_model(cfg)
    torch.save({"model": model.state_dict(), "epoch": 4}, tmp_path / "model_0004.pth")
    found = information.planes(cfg, str(tmp_path))
    assert list(found) == [4]
    cfg.TEST.IMS_PER_BATCH = 7
    again = information.planes(cfg, str(tmp_path))
    assert found[4] == pytest.approx(again[4], abs=1e-3)

    data = build_reid_train_loader(cfg).dataset
    data.transform = build_transforms(cfg, is_train=False)
    rows, pixels = information.embed(model.eval(), data, cfg)
    image = data[3]["images"].float()
    with torch.no_grad():
        features = model.backbone((image[None] - model.pixel_mean) / model.pixel_std)
    pooled = model.heads.pool_layer(features).flatten()
    assert torch.allclose(rows.embeddings[3], pooled, atol=1e-3)
    assert torch.allclose(pixels[3], F.adaptive_avg_pool2d(image, (8, 4)).flatten(), atol=1e-2)


def test_what_cannot_be_drawn_is_said(make_cfg, tmp_path, capsys):
    assert main(["information", str(tmp_path)]) == 1
    assert "config.yaml" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(make_cfg().dump())
    assert main(["information", str(tmp_path)]) == 1
    assert "has no model_*.pth with its epoch" in capsys.readouterr().out
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 0}, tmp_path / "model_0000.pth")
    assert main(["information", str(tmp_path)]) == 1
    assert "is of another network: it lacks" in capsys.readouterr().out
