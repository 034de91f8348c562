"""SEED: equal runs give equal numbers, and a run without it is left to FastReID."""

import json

import numpy as np
import pytest
from fastreid.data import build_reid_train_loader
from fastreid.engine import DefaultTrainer
from PIL import Image

from fastreid_rib.integration.run import seeds


@pytest.fixture
def seeded(monkeypatch):
    """``seeded(5)`` begins a run as FastReID's setup does; the next test has no seed again."""
    monkeypatch.setattr(seeds, "_value", -1)
    return seeds.seed


def test_equal_runs_give_equal_numbers_whatever_loads_their_pictures(
    make_small_cfg, seeded, tmp_path
):
    results = []
    for seed, workers in ((5, 0), (5, 1), (6, 0)):
        folder = tmp_path / f"{seed}-{workers}"
        folder.mkdir()
        cfg = make_small_cfg(
            {
                "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
                "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
                "INPUT.REA.ENABLED": True,
                "INPUT.FLIP.ENABLED": True,
                "INPUT.AUGMIX.ENABLED": True,
                "INPUT.AUGMIX.PROB": 0.5,
                "SOLVER.MAX_EPOCH": 2,
                "DATALOADER.NUM_WORKERS": workers,
                "OUTPUT_DIR": str(folder),
                "SEED": seed,
            }
        )
        seeded(seed)
        DefaultTrainer(cfg).train()
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        timing = {"time", "data_time", "eta_seconds"}
        results.append([{k: line[k] for k in line.keys() - timing} for line in lines])
    assert results[0] == results[1]
    assert results[0] != results[2]
    assert any(line.get("rib/bound", 0) for line in results[0])


def test_a_seeded_run_reads_one_s_own_pictures(make_cfg, seeded, tmp_path):
    for split in ("train", "query", "gallery"):
        for i in range(8):
            path = tmp_path / split / f"{i // 2:04d}" / f"{i // 2:04d}_c{i % 2}_{split}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 32, 3), 9 * i, dtype=np.uint8)).save(path)
    seeded(3)
    folder = {"DATASETS.NAMES": ("FolderReID",), "DATASETS.FOLDER.PATH": str(tmp_path)}
    cfg = make_cfg({**folder, "SOLVER.IMS_PER_BATCH": 4, "SEED": 3})
    loader = build_reid_train_loader(cfg)
    assert isinstance(loader.batch_sampler.sampler, seeds.EpochSampler)
    assert len(loader.dataset) == 8


def test_the_seed_of_a_run_ends_with_it(make_cfg, seeded):
    """A second one in the same process, as in a notebook, has that of its own config or none."""
    seeded(3)
    loader = build_reid_train_loader(make_cfg({"SEED": -1}))
    assert not seeds.seeded()
    assert not isinstance(loader.batch_sampler.sampler, seeds.EpochSampler)
