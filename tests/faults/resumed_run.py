"""Trains, and goes on from each checkpoint, or from where it was killed: is it the same run?

    resumed_run.py FOLDER PROCESSES CASE    from each of its checkpoints
    resumed_run.py FOLDER kill CASE COUNT   killed with SIGKILL at random moments

prints a line of JSON: what was tried, and what differed. `CASES` has the settings. A moment of a
kill is a line of Python, of ours, FastReID's or torch's, in the writing of a checkpoint, in the
refresh of an epoch or in a step.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import traceback

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from small_run import small_cfg

# isort: split
import numpy as np
import torch
from fastreid.engine import DefaultTrainer, launch
from fastreid.engine.hooks import HookBase
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.utils import comm
from fastreid.utils.checkpoint import Checkpointer
from fastreid.utils.env import seed_all_rng

from fastreid_rib.base.safe_reads import read_safely
from fastreid_rib.integration.run import seeds
from fastreid_rib.losses import RIBLoss

EPOCHS = 3
SETTINGS = {
    "MODEL.HEADS.WITH_BNNECK": True,
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet"),
    "INPUT.SIZE_TRAIN": [64, 32],
    "INPUT.FLIP.ENABLED": True,
    "INPUT.REA.ENABLED": True,
    "INPUT.CJ.ENABLED": True,
    "INPUT.AUGMIX.ENABLED": True,
    "INPUT.AUGMIX.PROB": 0.5,
    "DATALOADER.SAMPLER_TRAIN": "NaiveIdentitySampler",
    "SOLVER.MAX_EPOCH": EPOCHS,
    "SOLVER.SCHED": "CosineAnnealingLR",
    "SOLVER.WARMUP_ITERS": 3,
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


PHASES = {
    "write": (Checkpointer, "save"),
    "refresh": (RIBLoss, "start_epoch"),
    "step": (SimpleTrainer, "run_step"),
}


class Diary(HookBase):
    """Every loss of this process in full, and the state after each epoch, written down at once."""

    def __init__(self, path):
        self.path = path

    def write(self, *line):
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def after_step(self):
        latest = self.trainer.storage.latest()
        values = {name: float(v[0]).hex() for name, v in latest.items() if "loss" in name}
        self.write(self.trainer.iter, values)

    def after_epoch(self):
        digest = hashlib.sha256()
        model = getattr(self.trainer.model, "module", self.trainer.model)
        rib = getattr(model, "rib", None)
        for name, value in {**model.state_dict(), **(rib.state_dict() if rib else {})}.items():
            # Averages of batch norm are each process's own; those of the first are saved.
            if comm.is_main_process() or "running_" not in name:
                digest.update(value.contiguous().numpy().tobytes())
        self.write("epoch", self.trainer.epoch, digest.hexdigest())


def diary(folder):
    path = os.path.join(folder, f"diary{comm.get_rank()}")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file]


def run(folder, case, resume):
    """Trains; this process's lines of the diary."""
    os.makedirs(folder, exist_ok=True)
    before = len(diary(folder))
    cfg = small_cfg(folder, {**SETTINGS, **CASES[case]})
    seeds.seed(cfg.SEED)
    if resume:  # whatever a process starts with
        seed_all_rng(99 + comm.get_rank())
        np.random.rand(3)
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([Diary(os.path.join(folder, f"diary{comm.get_rank()}"))])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return diary(folder)[before:]


def from_each_checkpoint(root, case):
    torch.set_num_threads(1)
    whole = os.path.join(root, "whole")
    expected = run(whole, case, resume=False)
    odd = []
    for epoch in range(EPOCHS - 1):
        folder = os.path.join(root, f"from-{epoch}")
        if comm.is_main_process():
            os.makedirs(folder)
            name = f"model_{epoch:04d}.pth"
            shutil.copy(os.path.join(whole, name), folder)
            with open(os.path.join(folder, "last_checkpoint"), "w") as file:
                file.write(name)
        comm.synchronize()
        if run(folder, case, resume=True) != expected[(epoch + 1) * len(expected) // EPOCHS :]:
            odd.append(f"from epoch {epoch + 1} on, rank {comm.get_rank()}")
    gathered = comm.gather(odd)
    if comm.is_main_process():
        report([item for rank in gathered for item in rank], expected)


def report(odd, expected, **more):
    found = {"odd": odd, "losses": [line[1] for line in expected if line[0] != "epoch"], **more}
    print("REPORT" + json.dumps(found), flush=True)


def kill_at(phase, occurrence, lines):
    """Lets this process kill itself after some lines of Python of an occurrence, or at its end."""
    owner, name = PHASES[phase]
    stock, left = getattr(owner, name), [occurrence, lines]

    def trace(frame, event, arg):
        left[1] -= event == "line"
        if left[1] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def run(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            return stock(*args, **kwargs)
        sys.settrace(trace)
        stock(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, run)


def choose(draw, phase):
    """A moment. RIB's start_epoch is asked at every step, and refreshes in an epoch's first."""
    steps = 4
    if phase == "write":
        return phase, draw.randrange(EPOCHS), draw.randint(1, 400)
    if phase == "refresh":
        return phase, draw.randrange(1, EPOCHS) * steps, draw.randint(1, 400)
    return phase, draw.randrange(EPOCHS * steps), draw.randint(1, 4000)


def child(body):
    """Runs `body` in a forked process; its end."""
    pid = os.fork()
    if not pid:
        try:
            body()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def killed(root, case, count):
    """This process imports everything and trains nothing: it can be forked for each run."""
    torch.set_num_threads(1)
    whole = os.path.join(root, "whole")
    assert child(lambda: run(whole, case, resume=False)) == 0
    expected, draw, odd, moments = diary(whole), random.Random(0), [], []
    for number in range(count):
        folder = os.path.join(root, f"killed-{number}")
        moment = choose(draw, list(PHASES)[number % len(PHASES)])

        def until_then(moment=moment, folder=folder):
            kill_at(*moment)
            run(folder, case, resume=False)

        first = child(until_then)
        before, names = diary(folder), os.listdir(folder)
        saved = 0
        if "last_checkpoint" in names:
            with open(os.path.join(folder, "last_checkpoint")) as file:
                saved = 1 + read_safely(os.path.join(folder, file.read()))["epoch"]
        ended = first, child(lambda folder=folder: run(folder, case, resume=True))
        after = diary(folder)[len(before) :]
        if ended != (-signal.SIGKILL, 0) or before != expected[: len(before)]:
            odd.append(["it ended, or began, in another way", moment, ended])
        if after != expected[saved * len(expected) // EPOCHS :]:
            odd.append(["it did not go on from its last checkpoint, bit for bit", moment])
        moments.append(moment)
    report(odd, expected, moments=moments)


if __name__ == "__main__":
    folder, how, case = sys.argv[1:4]
    if how == "kill":
        killed(folder, case, int(sys.argv[4]))
    else:
        launch(from_each_checkpoint, int(how), dist_url="auto", args=(folder, case))
