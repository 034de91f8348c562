"""The command ``information``: the information plane of a run, from its checkpoints."""

import random
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
from fastreid_rib.integration import config
from fastreid_rib.losses.clustering import kmeans, spread_seeds
from fastreid_rib.losses.refresh import refresh
from fastreid_rib.losses.table import Rows


@pytest.fixture
def trained(make_cfg):
    """Two epochs of a few steps: its config and the folder with model_0000 and model_final."""
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
    return cfg, folder


def told(joint):
    """Mutual information, cell by cell."""
    joint = joint / joint.sum()
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    cells = zip(joint.flatten().tolist(), apart.flatten().tolist())
    return sum(p * torch.tensor(p / q).log().item() for p, q in cells if p > 1e-300)


def by_hand(cfg, folder):
    """I(F~;X~) and I(F~;Y) of the last checkpoint, image by image."""
    model = build_model(cfg)
    model.load_state_dict(torch.load(folder / "model_final.pth", weights_only=False)["model"])
    data = build_reid_train_loader(cfg).dataset
    data.transform = build_transforms(cfg, is_train=False)
    rows, labels, pixels = [], [], []
    for image in data:
        picture = image["images"].float()
        with torch.no_grad():
            features = model.eval().backbone((picture[None] - model.pixel_mean) / model.pixel_std)
        rows.append(F.normalize(model.heads.pool_layer(features).flatten(), dim=0))
        grid = F.adaptive_avg_pool2d(picture, (8, 4)).flatten()
        pixels.append(F.normalize(grid - grid.mean(), dim=0))
        labels.append(image["targets"])
    rows, labels, pixels = torch.stack(rows), torch.tensor(labels), torch.stack(pixels)
    settings = config.rib_settings(cfg).of_identities(data.num_classes)
    draws = random.Random(settings.seed)
    statistics, _ = refresh(Rows(rows, labels, None), None, settings, data.num_classes, draws)
    of_pixels = kmeans(pixels, spread_seeds(pixels, settings.num_clusters, draws), 10)
    centred = F.normalize(rows - statistics.mean, dim=1)
    phi, of_input = (
        (-settings.beta * torch.cdist(a.double(), b.double()).square()).softmax(1)
        for a, b in ((centred, statistics.centroids), (pixels, of_pixels))
    )
    return told(phi.t() @ of_input), told(phi.t() @ F.one_hot(labels).double())


def test_the_plane_of_a_run(trained, capsys):
    cfg, folder = trained
    assert main(["information", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = re.findall(r"^\| +(\d+) \| (.*) \|$", printed, re.M)
    assert [epoch for epoch, _ in lines] == ["0", "1"]
    first, last = ([float(number) for number in numbers.split(" | ")] for _, numbers in lines)
    assert first != last
    for kept, known, bottleneck, klb, bound in (first, last):
        assert kept > 0 and known > 0 and bottleneck == pytest.approx(kept - known, abs=2e-4)
        assert bottleneck <= klb + 1e-4 and bound >= -known - 1e-4
    assert last[:2] == pytest.approx(by_hand(cfg, folder), abs=1e-3)
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


def test_what_cannot_be_drawn_is_said(make_cfg, tmp_path, capsys):
    assert main(["information", str(tmp_path)]) == 1
    assert "config.yaml" in capsys.readouterr().out
    (tmp_path / "config.yaml").write_text(make_cfg().dump())
    assert main(["information", str(tmp_path)]) == 1
    assert "has no model_*.pth with its epoch" in capsys.readouterr().out
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 0}, tmp_path / "model_0000.pth")
    assert main(["information", str(tmp_path)]) == 1
    assert "is of another network: it lacks" in capsys.readouterr().out
