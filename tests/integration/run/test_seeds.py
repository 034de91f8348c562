"""SEED: equal runs give equal numbers, and a run without it is left to FastReID."""

import numpy as np
import pytest
from fastreid.data import build_reid_train_loader
from PIL import Image

from fastreid_rib.integration.run import seeds


@pytest.fixture
def seeded(monkeypatch):
    """``seeded(5)`` begins a run as FastReID's setup does; the next test has no seed again."""
    monkeypatch.setattr(seeds, "_value", -1)
    return seeds.seed


def test_a_seeded_run_reads_one_s_own_pictures(make_cfg, seeded, tmp_path):
    for split in ("train", "query", "gallery"):
        for i in range(8):
            path = tmp_path / split / f"{i // 2:04d}" / f"{i // 2:04d}_c{i % 2}_{split}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 32, 3), 9 * i, dtype=np.uint8)).save(path)
    seeded(3)
    folder = {"DATASETS.NAMES": ("FolderReID",), "DATASETS.FOLDER.PATH": str(tmp_path)}
    loader = build_reid_train_loader(make_cfg({**folder, "SOLVER.IMS_PER_BATCH": 4}))
    assert isinstance(loader.batch_sampler.sampler, seeds.EpochSampler)
    assert len(loader.dataset) == 8
