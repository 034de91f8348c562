"""Trains, is killed at a random moment, resumes: what the losses were each time, as JSON.

    kill_and_resume.py FOLDER MOMENTS SEED

One process imports everything and forks a child for each run, so that a run costs seconds. A moment
is a line of Python, of ours, FastReID's or torch's, in a step, in the refresh of an epoch or in the
writing of a checkpoint. The child that reaches it stands still and is killed with SIGKILL.
"""

import hashlib
import json
import os
import random
import signal
import sys
import traceback
from collections import defaultdict

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer, default_argument_parser, default_setup
from fastreid.engine.hooks import HookBase
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.utils.checkpoint import Checkpointer

from fastreid_rib.losses import RIBLoss

EPOCHS = 4
SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
    "MODEL.BACKBONE.PRETRAIN": False,
    "MODEL.HEADS.WITH_BNNECK": True,
    "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
    "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
    "MODEL.LOSSES.RIB.BANK_SIZE": 40,  # fewer than an epoch has: the reservoir draws
    "MODEL.LOSSES.RIB.NUM_CLUSTERS": 10,
    "INPUT.SIZE_TRAIN": [64, 32],
    "INPUT.FLIP.ENABLED": True,
    "INPUT.REA.ENABLED": True,
    "DATASETS.NAMES": ("SyntheticReIDTiny",),
    "DATASETS.TESTS": ("SyntheticReIDTiny",),
    "DATALOADER.SAMPLER_TRAIN": "NaiveIdentitySampler",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.SCHED": "MultiStepLR",
    "SOLVER.STEPS": [2],
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.MAX_EPOCH": EPOCHS,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": EPOCHS,
    "SEED": 0,
}
PHASES = {
    "step": (SimpleTrainer, "run_step"),
    "refresh": (RIBLoss, "start_epoch"),
    "write": (Checkpointer, "save"),
}


class Trainer(DefaultTrainer):
    @classmethod
    def test(cls, cfg, model):
        return {}  # not what is tried here


class Diary(HookBase):
    """Writes every loss down at once, in full."""

    def __init__(self, path):
        self.path = path

    def after_step(self):
        latest = self.trainer.storage.latest()
        values = {
            name: float(value).hex()
            for name, (value, _) in latest.items()
            if name.startswith(("loss_", "rib/", "total_", "lr"))
        }
        with open(self.path, "a") as file:
            file.write(json.dumps([self.trainer.epoch, self.trainer.iter, values]) + "\n")


class Watch:
    """Counts the lines of Python that each occurrence of a phase runs; stops at one of them."""

    def __init__(self, moment=None, reached=None):
        self.counts = defaultdict(list)
        self.moment, self.reached = moment, reached
        for phase, (owner, name) in PHASES.items():
            setattr(owner, name, self.watched(phase, getattr(owner, name)))

    def watched(self, phase, stock):
        def run(*args, **kwargs):
            if self.moment and [phase, len(self.counts[phase])] != self.moment[:2]:
                self.counts[phase].append(0)
                return stock(*args, **kwargs)
            lines = 0

            def trace(frame, event, arg):
                nonlocal lines
                lines += event == "line"
                if self.moment and lines == self.moment[2]:
                    os.write(self.reached, b"here")
                    signal.pause()
                return trace

            outer = sys.gettrace()
            sys.settrace(trace)
            try:
                return stock(*args, **kwargs)
            finally:
                sys.settrace(outer)
                self.counts[phase].append(lines)

        return run


def train(folder, resume):
    cfg = get_cfg()
    settings = dict(SETTINGS, OUTPUT_DIR=folder)
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    cfg.freeze()
    args = default_argument_parser().parse_args(["--resume"] if resume else [])
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.register_hooks([Diary(os.path.join(folder, "diary"))])
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def child(body):
    """Runs `body` in a forked process; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with open(os.devnull, "w") as silent:
            os.dup2(silent.fileno(), 1)
        body()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finish(pid):
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def uninterrupted(folder):
    """Trains to the end; the lines that each phase runs."""
    counts = os.path.join(folder, "counts")

    def body():
        watch = Watch()
        train(folder, resume=False)
        with open(counts, "w") as file:
            json.dump(watch.counts, file)

    assert finish(child(body)) == 0
    with open(counts) as file:
        return json.load(file)


def killed(folder, moment):
    """Trains until the moment, and is killed there; the signal, negative."""
    ours, theirs = os.pipe()

    def body():
        Watch(moment, theirs)
        train(folder, resume=False)

    pid = child(body)
    os.close(theirs)
    if os.read(ours, 4):  # nothing: it ended without having come to the moment
        os.kill(pid, signal.SIGKILL)
    os.close(ours)
    return finish(pid)


def diary(folder):
    with open(os.path.join(folder, "diary")) as file:
        return [json.loads(line) for line in file]


def fingerprint(path):
    """Of all bits in a checkpoint, by its parts."""
    content = torch.load(path, map_location="cpu", weights_only=False)
    parts = {}

    def add(digest, value):
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(-1).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(digest, value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(digest, item)
        else:
            digest.update(repr(value).encode())

    for name, part in content.items():
        digest = hashlib.sha256()
        add(digest, part)
        parts[name] = digest.hexdigest()
    return parts


def choose(counts, draw, phase):
    occurrence = draw.randrange(len(counts[phase]))
    if phase == "refresh":  # start_epoch is asked at every step, and refreshes in a few of them
        longest = sorted(range(len(counts[phase])), key=counts[phase].__getitem__)
        occurrence = draw.choice(longest[-(EPOCHS - 1) :])
    return [phase, occurrence, draw.randint(1, counts[phase][occurrence])]


def main(root, moments, seed):
    torch.set_num_threads(1)
    reference = os.path.join(root, "uninterrupted")
    os.makedirs(reference)
    counts = uninterrupted(reference)
    expected = diary(reference)
    draw = random.Random(seed)
    report = {
        "steps": len(expected),
        "losses": sorted(expected[-1][2]),
        "phases": {phase: [len(each), max(each)] for phase, each in counts.items()},
        "checkpoint": fingerprint(os.path.join(reference, "model_final.pth")),
        "runs": [],
    }
    for number in range(moments):
        moment = choose(counts, draw, sorted(PHASES)[number % len(PHASES)])
        folder = os.path.join(root, f"killed-{number}")
        os.makedirs(folder)
        signal_number = killed(folder, moment)
        before = diary(folder) if os.path.exists(os.path.join(folder, "diary")) else []
        left = sorted(os.listdir(folder))
        status = finish(child(lambda folder=folder: train(folder, resume=True)))
        after = diary(folder)[len(before) :]
        report["runs"].append(
            {
                "moment": moment,
                "killed by": -signal_number,
                "left": [name for name in left if "pth" in name or name == "last_checkpoint"],
                "steps before": len(before),
                "as before": before == expected[: len(before)],
                "status": status,
                "steps after": len(after),
                "after": after == expected[len(expected) - len(after) :],
                "checkpoint": fingerprint(os.path.join(folder, "model_final.pth")),
            }
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
