"""Trains, and goes on from each of its checkpoints: are losses and weights what they were?

    resumed_run.py FOLDER PROCESSES CASE

prints a line of JSON: the epochs that were tried, and what differed. `CASES` has the settings.
"""

import hashlib
import json
import os
import shutil
import sys

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import numpy as np
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, launch
from fastreid.engine.hooks import HookBase
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng

from fastreid_rib.integration.run import seeds

EPOCHS = 3
SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
    "MODEL.HEADS.WITH_BNNECK": True,
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet"),
    "INPUT.SIZE_TRAIN": [64, 32],
    "INPUT.SIZE_TEST": [64, 32],
    "INPUT.FLIP.ENABLED": True,
    "INPUT.REA.ENABLED": True,
    "INPUT.CJ.ENABLED": True,
    "INPUT.AUGMIX.ENABLED": True,
    "INPUT.AUGMIX.PROB": 0.5,
    "DATASETS.NAMES": ("SyntheticReIDTiny",),
    "DATASETS.TESTS": ("SyntheticReIDTiny",),
    "DATALOADER.SAMPLER_TRAIN": "NaiveIdentitySampler",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_EPOCH": EPOCHS,
    "SOLVER.SCHED": "CosineAnnealingLR",
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 1,
    "SEED": 4,
}
RIB = {
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
    "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
    "MODEL.LOSSES.RIB.BANK_SIZE": 40,
    "MODEL.ATTENTION.NAME": "DCS",  # draws its masks from torch's generator
}
CASES = {
    "rib": RIB,
    "workers": {**RIB, "DATALOADER.NUM_WORKERS": 2},
    "patches": {"INPUT.RPT.ENABLED": True, "INPUT.RPT.PROB": 1.0},
    "patches of workers": {
        "INPUT.RPT.ENABLED": True,
        "INPUT.RPT.PROB": 1.0,
        "DATALOADER.NUM_WORKERS": 2,
        "SOLVER.IMS_PER_BATCH": 32,
    },
    "frozen": {
        "MODEL.FREEZE_LAYERS": ["backbone"],
        "SOLVER.FREEZE_ITERS": 6,
        "SOLVER.OPT": "SGD",
    },
    "distilled": {"MODEL.META_ARCHITECTURE": "Distiller", "KD.EMA.ENABLED": True},
    "search": {
        **RIB,
        "MODEL.BACKBONE.NAME": "build_searched_backbone",
        "MODEL.BACKBONE.DEPTH": "0.25x",
        "MODEL.SEARCH.ENABLED": True,
        "MODEL.SEARCH.WARMUP_SHARE": 0.3,
        "MODEL.SEARCH.WEIGHTS_SHARE": 0.5,
    },
    "random": {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler"},
    "balanced": {"DATALOADER.SAMPLER_TRAIN": "BalancedIdentitySampler"},
    "imbalanced": {"DATALOADER.SAMPLER_TRAIN": "ImbalancedDatasetSampler"},
}


class Diary(HookBase):
    """Every loss of this process in full, and the state after each epoch."""

    def __init__(self):
        self.losses, self.states = [], []

    def after_step(self):
        latest = self.trainer.storage.latest()
        values = {name: float(v[0]).hex() for name, v in latest.items() if "loss" in name}
        self.losses.append((self.trainer.iter, values))

    def after_epoch(self):
        digest = hashlib.sha256()
        model = getattr(self.trainer.model, "module", self.trainer.model)
        for name, value in model.state_dict().items():
            # Averages of batch norm are each process's own; those of the first are saved.
            if comm.is_main_process() or "running_" not in name:
                digest.update(value.contiguous().numpy().tobytes())
        self.states.append((self.trainer.epoch, digest.hexdigest()))


def run(folder, case, resume):
    cfg = get_cfg()
    settings = {**SETTINGS, **CASES[case], "OUTPUT_DIR": folder}
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    seeds.seed(cfg.SEED)
    if resume:  # whatever a process starts with
        seed_all_rng(99 + comm.get_rank())
        np.random.rand(3)
    trainer = DefaultTrainer(cfg)
    diary = Diary()
    trainer.register_hooks([diary])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return diary


def main(root, case):
    torch.set_num_threads(1)
    whole = os.path.join(root, "whole")
    os.makedirs(whole, exist_ok=True)
    expected = run(whole, case, resume=False)
    tried, odd = [], []
    for epoch in range(EPOCHS - 1):
        folder = os.path.join(root, f"from-{epoch}")
        if comm.is_main_process():
            os.makedirs(folder)
            name = f"model_{epoch:04d}.pth"
            shutil.copy(os.path.join(whole, name), folder)
            with open(os.path.join(folder, "last_checkpoint"), "w") as file:
                file.write(name)
        comm.synchronize()
        found = run(folder, case, resume=True)
        steps = len(expected.losses) // EPOCHS
        if found.losses != expected.losses[(epoch + 1) * steps :]:
            odd.append(f"losses from epoch {epoch + 1} on, rank {comm.get_rank()}")
        if found.states != expected.states[epoch + 1 :]:
            odd.append(f"weights from epoch {epoch + 1} on, rank {comm.get_rank()}")
        tried.append(epoch + 1)
    gathered = comm.gather(odd)
    if comm.is_main_process():
        every = [item for rank in gathered for item in rank]
        losses = [values for _, values in expected.losses]
        print("REPORT" + json.dumps({"tried": tried, "odd": every, "losses": losses}), flush=True)


if __name__ == "__main__":
    launch(main, int(sys.argv[2]), dist_url="auto", args=(sys.argv[1], sys.argv[3]))
