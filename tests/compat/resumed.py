"""Second runs in one folder. As a script: what comes of each, as JSON."""

import os
import sys
import tempfile

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from small_run import small_cfg

# isort: split
import torch
from fastreid.engine import DefaultTrainer
from of_itself import case, write_report


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
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    trainer = Trainer(small_cfg(folder, {"MODEL.HEADS.NUM_CLASSES": 8, **changes}))
    trainer.resume_or_load(resume=resume)
    return trainer


def in_a_folder(*repairs):
    """A case that is given an empty folder."""

    def mark(function):
        def run():
            with tempfile.TemporaryDirectory() as folder:
                return function(folder)

        run.__name__ = function.__name__
        return case(*repairs)(run)

    return mark


@in_a_folder("finished-run")
def finished(folder):
    """What training returns that goes on after its last epoch."""
    make(folder).train()
    return make(folder, resume=True).train()


@in_a_folder("another-training")
def other_identities(folder):
    make(folder).train()
    make(folder, resume=True, MODEL__HEADS__NUM_CLASSES=9, SOLVER__MAX_EPOCH=2).train()


@in_a_folder("another-training")
def other_network(folder):
    make(folder).train()
    make(folder, resume=True, MODEL__HEADS__WITH_BNNECK=True, SOLVER__MAX_EPOCH=2).train()


@in_a_folder("another-training")
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


@in_a_folder("frozen-resume")
def frozen_again(folder):
    """Weights of the backbone that move once it is not frozen any more, in a resumed run."""
    make(folder, **FROZEN).train()
    return moved(make(folder, resume=True, SOLVER__MAX_EPOCH=2, **FROZEN), weights)


@in_a_folder("frozen-resume")
def frozen_still(folder):
    """The same where it is to be frozen for all of the resumed run."""
    frozen = dict(FROZEN, SOLVER__FREEZE_ITERS=8)
    make(folder, **frozen).train()
    return moved(make(folder, resume=True, SOLVER__MAX_EPOCH=2, **frozen), weights)


@in_a_folder("frozen-evaluation")
def frozen_averages(folder):
    """Averages of batch norm that move while the backbone is frozen, over an evaluation."""
    frozen = dict(FROZEN, SOLVER__FREEZE_ITERS=8)
    return moved(make(folder, SOLVER__MAX_EPOCH=2, **frozen), averages)


@in_a_folder("best-model")
def best(folder):
    """The metric of model_best.pth after one of 50 and, in a resumed run, one of 40 and of 45."""
    Trainer.metrics = [50.0]
    make(folder).train()
    Trainer.metrics = [40.0, 45.0]
    make(folder, resume=True, SOLVER__MAX_EPOCH=3).train()
    Trainer.metrics = [50.0]
    return torch.load(os.path.join(folder, "model_best.pth"), map_location="cpu")["metric"]


@in_a_folder("eval-period")
def period_of_zero(folder):
    return make(folder, TEST__EVAL_PERIOD=0).train()


@in_a_folder("eval-period")
def period_below_zero(folder):
    return make(folder, TEST__EVAL_PERIOD=-1).train()


@in_a_folder("short-run")
def of_two_steps(folder):
    return make(folder, SOLVER__IMS_PER_BATCH=32).train()


@in_a_folder("whole-state")
def parts(folder):
    """What a checkpoint holds of a training with a teacher that follows the student."""
    make(folder, MODEL__META_ARCHITECTURE="Distiller", KD__EMA__ENABLED=True).train()
    held = torch.load(os.path.join(folder, "model_final.pth"), map_location="cpu")
    return sorted(key for key in held if isinstance(held[key], dict))


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_report()
