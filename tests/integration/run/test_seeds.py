"""SEED: equal runs give equal numbers, and a run without it is left to FastReID."""

import json

import numpy as np
from fastreid.data import build_reid_train_loader
from PIL import Image

from fastreid_rib.integration.run import seeds


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    timing = ("time", "data_time", "eta_seconds")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def test_two_equal_runs_give_equal_numbers_whatever_loads_their_pictures(
    make_cfg, run_script, tmp_path
):
    changes = {
        "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
        "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
        "INPUT.REA.ENABLED": True,
        "INPUT.FLIP.ENABLED": True,
        "INPUT.AUGMIX.ENABLED": True,
        "INPUT.AUGMIX.PROB": 0.5,
        "SOLVER.MAX_EPOCH": 2,
    }
    (tmp_path / "config.yml").write_text(make_cfg(changes).dump())
    results = []
    for name, seed, workers in (("a", "5", "0"), ("b", "5", "1"), ("c", "6", "0")):
        out = tmp_path / name
        options = ["SEED", seed, "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", str(out)]
        run_script(
            "train_as_users_do.py",
            "--config-file",
            str(tmp_path / "config.yml"),
            *options,
            env={"ARM": "1"},
        )
        results.append(metrics(out))
    assert results[0] == results[1]
    assert results[0] != results[2]
    assert any(line.get("rib/bound", 0) for line in results[0])


def test_a_seeded_run_reads_one_s_own_pictures(make_cfg, tmp_path, monkeypatch):
    for split in ("train", "query", "gallery"):
        for i in range(8):
            path = tmp_path / split / f"{i // 2:04d}" / f"{i // 2:04d}_c{i % 2}_{split}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 32, 3), 9 * i, dtype=np.uint8)).save(path)
    monkeypatch.setattr(seeds, "_value", 3)
    folder = {"DATASETS.NAMES": ("FolderReID",), "DATASETS.FOLDER.PATH": str(tmp_path)}
    loader = build_reid_train_loader(make_cfg({**folder, "SOLVER.IMS_PER_BATCH": 4}))
    assert isinstance(loader.batch_sampler.sampler, seeds.EpochSampler)
    assert len(loader.dataset) == 8
