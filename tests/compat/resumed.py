"""Second runs in one folder. As a script: what FastReID does of itself, as JSON."""

import json
import os
import sys
import tempfile
import warnings

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.engine import DefaultTrainer

REPAIRS = (
    "eval-period",
    "short-run",
    "frozen-resume",
    "frozen-evaluation",
    "finished-run",
    "another-training",
    "best-model",
    "whole-state",
)
SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
    "MODEL.HEADS.NUM_CLASSES": 8,
    "INPUT.SIZE_TRAIN": [32, 16],
    "DATASETS.NAMES": ("SyntheticReIDTiny",),
    "DATASETS.TESTS": ("SyntheticReIDTiny",),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 1,
}


class Trainer(DefaultTrainer):
    """Each evaluation finds the next of `metrics`."""

    metrics = [50.0]

    @classmethod
    def test(cls, cfg, model):
        model.eval()  # as an evaluation does
        model.train()
        return {"metric": cls.metrics.pop(0) if len(cls.metrics) > 1 else cls.metrics[0]}


def make(folder, resume=False, **changes):
    """A trainer, resumed from what the folder holds."""
    cfg = get_cfg()
    settings = {**SETTINGS, "OUTPUT_DIR": folder}
    settings.update({name.replace("__", "."): value for name, value in changes.items()})
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def finished(folder):
    """What training returns that goes on after its last epoch."""
    make(folder).train()
    return make(folder, resume=True).train()


def other_identities(folder):
    make(folder).train()
    make(folder, resume=True, MODEL__HEADS__NUM_CLASSES=9, SOLVER__MAX_EPOCH=2).train()


def other_network(folder):
    make(folder).train()
    make(folder, resume=True, MODEL__HEADS__WITH_BNNECK=True, SOLVER__MAX_EPOCH=2).train()


def other_optimizer(folder):
    make(folder, SOLVER__OPT="Adam").train()
    make(folder, resume=True, SOLVER__OPT="SGD", SOLVER__MAX_EPOCH=2).train()


def moved(trainer, of):
    """How many of the tensors differ after the training from before it."""
    before = [tensor.clone() for tensor in of(trainer.model)]
    trainer.train()
    return sum(not torch.equal(a, b) for a, b in zip(before, of(trainer.model)))


def weights(model):
    return [parameter.detach() for parameter in model.backbone.parameters()]


def averages(model):
    return [t for name, t in model.backbone.named_buffers() if name.endswith("running_mean")]


FROZEN = {"MODEL__FREEZE_LAYERS": ["backbone"], "SOLVER__FREEZE_ITERS": 4}  # an epoch


def frozen_again(folder):
    """Weights of the backbone that move once it is not frozen any more, in a resumed run."""
    make(folder, **FROZEN).train()
    return moved(make(folder, resume=True, SOLVER__MAX_EPOCH=2, **FROZEN), weights)


def frozen_still(folder):
    """The same where it is to be frozen for all of the resumed run."""
    frozen = dict(FROZEN, SOLVER__FREEZE_ITERS=8)
    make(folder, **frozen).train()
    return moved(make(folder, resume=True, SOLVER__MAX_EPOCH=2, **frozen), weights)


def frozen_averages(folder):
    """Averages of batch norm that move while the backbone is frozen, over an evaluation."""
    frozen = dict(FROZEN, SOLVER__FREEZE_ITERS=8)
    return moved(make(folder, SOLVER__MAX_EPOCH=2, **frozen), averages)


def best(folder):
    """The metric of model_best.pth after one of 50 and, in a resumed run, one of 40 and of 45."""
    Trainer.metrics = [50.0]
    make(folder).train()
    Trainer.metrics = [40.0, 45.0]
    make(folder, resume=True, SOLVER__MAX_EPOCH=3).train()
    Trainer.metrics = [50.0]
    return torch.load(os.path.join(folder, "model_best.pth"), map_location="cpu")["metric"]


def period_of_zero(folder):
    return make(folder, TEST__EVAL_PERIOD=0).train()


def period_below_zero(folder):
    return make(folder, TEST__EVAL_PERIOD=-1).train()


def of_two_steps(folder):
    return make(folder, SOLVER__IMS_PER_BATCH=32).train()


def parts(folder):
    """What a checkpoint holds of a training with a teacher that follows the student."""
    make(folder, MODEL__META_ARCHITECTURE="Distiller", KD__EMA__ENABLED=True).train()
    held = torch.load(os.path.join(folder, "model_final.pth"), map_location="cpu")
    return sorted(key for key in held if isinstance(held[key], dict))


CASES = (
    finished,
    other_identities,
    other_network,
    other_optimizer,
    frozen_again,
    frozen_still,
    frozen_averages,
    best,
    period_of_zero,
    period_below_zero,
    of_two_steps,
    parts,
)


def outcome(case):
    with tempfile.TemporaryDirectory() as folder:
        try:
            return case(folder)
        except Exception as error:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with open(sys.argv[1], "w") as file:
        json.dump({case.__name__: outcome(case) for case in CASES}, file)
