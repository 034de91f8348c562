"""The keys of FastReID that have a limit, at 0, below 0, beyond the data, and empty.

As a script: trains with each, the checks of the plugin left out, and says what came of it as JSON.

    keys_at_edges.py REPORT
"""

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings

BASE = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
    "MODEL.HEADS.WITH_BNNECK": True,
    "MODEL.LOSSES.NAME": ("CrossEntropyLoss", "TripletLoss"),
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "DATASETS.NAMES": ("SyntheticReIDTiny",),
    "DATASETS.TESTS": ("SyntheticReIDTiny",),
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.SAMPLER_TRAIN": "NaiveIdentitySampler",
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 1,
    "SEED": 0,
}
VIT = {
    "MODEL.BACKBONE.NAME": "build_vit_backbone",
    "MODEL.BACKBONE.DEPTH": "small",
    "MODEL.BACKBONE.FEAT_DIM": 768,
    "SOLVER.OPT": "SGD",
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "SOLVER.IMS_PER_BATCH": 32,
}
RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH": "18x",
    "MODEL.BACKBONE.FEAT_DIM": 512,
    "SOLVER.OPT": "SGD",
    "SOLVER.IMS_PER_BATCH": 32,
}

TRAINS = "trains"
"""FastReID can train and evaluate with it, whatever it learns; it is not refused."""
FAILS = "fails"
"""It ends in an error, without the key's name or too late; it is refused."""
WRONG = "trains the wrong way round, or evaluates to nothing"
"""No error, and no sense: rates, weights of losses and decays below 0, NaN; it is refused."""
TOLD = "told"
"""A repair (``fastreid_rib.compat``) refuses it, once the data or the model are there, by name."""

ROWS = []


def rows(key, outcome, *values, **more):
    ROWS.extend((key, value, outcome, more.get("also", {})) for value in values)


def on(feature, **more):
    return {f"{feature}.ENABLED": True, **more}


rows("MODEL.FREEZE_LAYERS", TRAINS, [], ["backbone"], ["unknown"], also={"SOLVER.FREEZE_ITERS": 2})
rows("MODEL.FREEZE_LAYERS", FAILS, ["backbone", "heads"], also={"SOLVER.FREEZE_ITERS": 2})
rows("MODEL.FREEZE_LAYERS", TRAINS, ["heads"])
MOCO = {"MODEL.META_ARCHITECTURE": "MoCo"}
rows("MODEL.QUEUE_SIZE", FAILS, 0, -32, 16, 48, also=MOCO)
rows("MODEL.QUEUE_SIZE", TRAINS, 32, 4096, also=MOCO)
rows("MODEL.QUEUE_SIZE", TRAINS, 0)
rows("MODEL.BACKBONE.LAST_STRIDE", FAILS, 0, also=RESNET)
rows("MODEL.BACKBONE.LAST_STRIDE", TRAINS, 100, also=RESNET)
rows("MODEL.BACKBONE.LAST_STRIDE", TRAINS, 0)
rows("MODEL.BACKBONE.FEAT_DIM", FAILS, 0, 64, 4096)
rows("MODEL.BACKBONE.STRIDE_SIZE", FAILS, (), (12,), (0, 16), also=VIT)
rows("MODEL.BACKBONE.STRIDE_SIZE", TRAINS, (12, 12), (200, 200), also=VIT)
rows("MODEL.BACKBONE.STRIDE_SIZE", TRAINS, ())
rows("MODEL.BACKBONE.DROP_PATH_RATIO", TRAINS, 0.0, -0.1, also=VIT)
rows("MODEL.BACKBONE.DROP_PATH_RATIO", FAILS, 1.0, also=VIT)
rows("MODEL.BACKBONE.DROP_PATH_RATIO", WRONG, 2.0, also=VIT)
rows("MODEL.HEADS.NUM_CLASSES", TRAINS, 0, 8, 10000)
rows("MODEL.HEADS.NUM_CLASSES", FAILS, -1, 4)
TRIPLET = {"MODEL.LOSSES.NAME": ("TripletLoss",)}
rows("MODEL.HEADS.NUM_CLASSES", TRAINS, 1, 4, also=TRIPLET)
rows("MODEL.HEADS.NUM_CLASSES", FAILS, 4, also={**TRIPLET, "MODEL.HEADS.CLS_LAYER": "ArcSoftmax"})
rows("MODEL.LOSSES.NAME", FAILS, ())
for key, loss in (
    ("CE", "CrossEntropyLoss"),
    ("TRI", "TripletLoss"),
    ("CIRCLE", "CircleLoss"),
    ("COSFACE", "Cosface"),
):
    both = {"MODEL.LOSSES.NAME": ("CrossEntropyLoss", loss)}
    rows(f"MODEL.LOSSES.{key}.SCALE", TRAINS, 0.0, 1e4, also=both)
    rows(f"MODEL.LOSSES.{key}.SCALE", WRONG, -1.0, also=both)
rows("MODEL.LOSSES.CE.SCALE", TRAINS, -1.0, also=TRIPLET)
rows("MODEL.PIXEL_MEAN", FAILS, [], [0.0] * 4)
rows("MODEL.PIXEL_MEAN", TRAINS, [0.0], [-1000.0] * 3)
rows("MODEL.PIXEL_STD", FAILS, [], [1.0] * 4, [0.0, 1.0, 1.0])
rows("MODEL.PIXEL_STD", TRAINS, [1.0], [-1.0] * 3)
KD = {"MODEL.META_ARCHITECTURE": "Distiller"}
rows("KD.MODEL_CONFIG", FAILS, [], also=KD)
rows("KD.MODEL_CONFIG", TRAINS, [], also={**KD, "KD.EMA.ENABLED": True})
rows("KD.MODEL_WEIGHTS", FAILS, [], also={**KD, "KD.MODEL_CONFIG": ["TEACHER"]})
rows("INPUT.SIZE_TRAIN", FAILS, [], [32, 0], [1, 1], [8, 4], [32, 16, 3])
rows("INPUT.SIZE_TRAIN", TRAINS, [0, 0], [-1, -1], [32], [128, 64])
rows("INPUT.SIZE_TEST", FAILS, [], [32, 0], [1, 1], [32, 16, 3])
rows("INPUT.SIZE_TEST", FAILS, [48, 32], also=VIT)  # a ViT's is that of its training
rows("INPUT.SIZE_TEST", TRAINS, [0, 0], [-1, -1], [32], [128, 64])
CROP = on("INPUT.CROP", **{"INPUT.CROP.SIZE": [32, 16]})
rows("INPUT.CROP.SIZE", FAILS, [], [0, 0], [-1, -1], also=CROP)
rows("INPUT.CROP.SIZE", TRAINS, [32], [128, 64], also=CROP)
rows("INPUT.CROP.SIZE", TRAINS, [])
rows("INPUT.CROP.SCALE", FAILS, [], [0.5], [-1.0, 1.0], [1.0, 0.1], also=CROP)
rows("INPUT.CROP.SCALE", TRAINS, [0.0, 0.0], [2.0, 3.0], also=CROP)
rows("INPUT.CROP.RATIO", FAILS, [], [1.0], [0.0, 1.0], [-1.0, 1.0], [2.0, 1.0], also=CROP)
rows("INPUT.CROP.RATIO", TRAINS, [100.0, 200.0], also=CROP)
rows("INPUT.PADDING.SIZE", FAILS, -4, also=on("INPUT.PADDING"))
rows("INPUT.PADDING.SIZE", TRAINS, 0, 100, also=on("INPUT.PADDING"))
rows("DATASETS.TESTS", FAILS, ())
rows("DATASETS.TESTS", TRAINS, ("SyntheticReIDTiny", "SyntheticReIDTiny"))
for sampler in ("NaiveIdentitySampler", "BalancedIdentitySampler"):
    rows("DATALOADER.NUM_INSTANCE", FAILS, 0, -1, also={"DATALOADER.SAMPLER_TRAIN": sampler})
    rows("DATALOADER.NUM_INSTANCE", TOLD, 1, 1000, also={"DATALOADER.SAMPLER_TRAIN": sampler})
for sampler in ("TrainingSampler", "ImbalancedDatasetSampler"):
    rows("DATALOADER.NUM_INSTANCE", TRAINS, 0, 1000, also={"DATALOADER.SAMPLER_TRAIN": sampler})
WEIGHTED = {"DATALOADER.SAMPLER_TRAIN": "SetReWeightSampler", "DATALOADER.NUM_INSTANCE": 2}
rows("DATALOADER.SET_WEIGHT", TOLD, [], [0] * 4, [1, 1], also=WEIGHTED)
rows("DATALOADER.SET_WEIGHT", FAILS, [-1, 1, 1, 1], also=WEIGHTED)
rows("DATALOADER.SET_WEIGHT", TRAINS, [], [-1])
rows("SOLVER.MAX_EPOCH", WRONG, 0, -1)  # with the repair "finished-run"
for key in ("HEADS_LR_FACTOR", "BIAS_LR_FACTOR"):
    rows(f"SOLVER.{key}", TRAINS, 0.0, 100.0)
    rows(f"SOLVER.{key}", WRONG, -1.0)
for key in ("BASE_LR", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS"):
    rows(f"SOLVER.{key}", TRAINS, 0.0)
    rows(f"SOLVER.{key}", WRONG, -1e-3)
SGD = {"SOLVER.OPT": "SGD"}
rows("SOLVER.MOMENTUM", TRAINS, 0.0, 1.0, also=SGD)
for name in ("MultiStepLR", "CosineAnnealingLR"):
    # Three epochs of two steps.
    longer = {"SOLVER.SCHED": name, "SOLVER.MAX_EPOCH": 3, "SOLVER.IMS_PER_BATCH": 32}
    rows("SOLVER.DELAY_EPOCHS", TRAINS, -1, 0, 2, 3, 4, 100, also=longer)
    rows("SOLVER.WARMUP_ITERS", TRAINS, -1, 0, 4, 5, 6, 7, 1000, also=longer)
    also = {**longer, "SOLVER.WARMUP_ITERS": 4}
    rows("SOLVER.WARMUP_FACTOR", TRAINS, 0.0, 2.0, also=also)
    rows("SOLVER.WARMUP_FACTOR", WRONG, -1.0, also=also)
    rows("SOLVER.WARMUP_FACTOR", TRAINS, -1.0, also={"SOLVER.SCHED": name})
STEPS = {"SOLVER.MAX_EPOCH": 3, "SOLVER.IMS_PER_BATCH": 32, "SOLVER.STEPS": [1]}
rows("SOLVER.GAMMA", TRAINS, 0.0, 10.0, also=STEPS)
rows("SOLVER.GAMMA", WRONG, -1.0, also=STEPS)
COSINE = {**STEPS, "SOLVER.SCHED": "CosineAnnealingLR"}
rows("SOLVER.ETA_MIN_LR", TRAINS, 0.0, 1e-3, also=COSINE)
rows("SOLVER.ETA_MIN_LR", WRONG, -1e-3, also=COSINE)
rows("SOLVER.CHECKPOINT_PERIOD", FAILS, 0)
rows("SOLVER.CHECKPOINT_PERIOD", TRAINS, -1, 1000)
ANY = {"DATALOADER.SAMPLER_TRAIN": "TrainingSampler"}
rows("SOLVER.IMS_PER_BATCH", FAILS, 0, -1, 1, also=ANY)
rows("SOLVER.IMS_PER_BATCH", TRAINS, 1, also={**ANY, "MODEL.HEADS.WITH_BNNECK": False})
rows("SOLVER.IMS_PER_BATCH", TRAINS, 3, also=ANY)
rows("SOLVER.IMS_PER_BATCH", TOLD, 1000, also=ANY)
rows("SOLVER.AMP.ENABLED", FAILS, True)
for kind in ("norm", "value"):
    clipped = on("SOLVER.CLIP_GRADIENTS", **{"SOLVER.CLIP_GRADIENTS.CLIP_TYPE": kind})
    rows("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", WRONG, 0.0, -1.0, also=clipped)
    rows("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", TRAINS, 1e9, also=clipped)
rows("TEST.IMS_PER_BATCH", FAILS, 0, -1)
rows("TEST.IMS_PER_BATCH", TRAINS, 1, 100000)
rows("TEST.AQE.QE_K", FAILS, 0, also=on("TEST.AQE"))
rows("TEST.AQE.QE_K", TRAINS, 1, 100000, also=on("TEST.AQE"))
rows("TEST.RERANK.K1", FAILS, 0, also=on("TEST.RERANK"))
rows("TEST.RERANK.K1", TRAINS, 1, 100000, also=on("TEST.RERANK"))
rows("TEST.RERANK.K2", WRONG, 0, also=on("TEST.RERANK"))
rows("TEST.RERANK.K2", TRAINS, 1, 100000, also=on("TEST.RERANK"))
PRECISE = on("TEST.PRECISE_BN", **{"TEST.PRECISE_BN.DATASET": "SyntheticReIDTiny"})
rows("TEST.PRECISE_BN.NUM_ITER", FAILS, 0, -1, also=PRECISE)
rows("TEST.PRECISE_BN.NUM_ITER", TRAINS, 1, 50, also=PRECISE)
rows("TEST.PRECISE_BN.NUM_ITER", TRAINS, 0)


def config(settings, folder):
    from fastreid.config import get_cfg

    settings = {**BASE, **settings, "OUTPUT_DIR": folder}
    cfg = get_cfg()
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    return cfg


def train(settings, answers):
    """Trains and evaluates, without the plugin's checks; sends "" or the error."""
    from fastreid.engine import DefaultTrainer
    from fastreid.utils.checkpoint import Checkpointer

    from fastreid_rib.integration import own_keys
    from fastreid_rib.integration.run import seeds

    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    own_keys.check_network = own_keys.check_identities = lambda *args: None
    Checkpointer.save = lambda *args, **kwargs: None
    answer = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            seeds.seed(0)
            trainer = DefaultTrainer(config(settings, folder))
            trainer.resume_or_load(resume=False)
            trainer.train()
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        answer = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    answers.send(answer[:2000])


def outcome(settings, patience=120):
    """What came of a training: "" or the error. In a process of its own, which may hang or die."""
    process = multiprocessing.get_context("fork")
    ours, theirs = process.Pipe(duplex=False)
    child = process.Process(target=train, args=(settings, theirs))
    child.start()
    theirs.close()
    try:
        answer = ours.recv().strip() if ours.poll(patience) else "hangs"
    except EOFError:
        answer = "dies"
    child.kill()
    child.join()
    return answer


def main(path):
    import fastreid_rib  # noqa: F401  arms the hook

    # isort: split
    import torch

    # Once, before the forks.
    for name in ("fastreid.engine", "fastreid.evaluation.rank", "torch.utils.tensorboard"):
        importlib.import_module(name)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = []
    for key, value, _, also in ROWS:
        report.append(outcome({**also, key: value}))
        print(key, value, also, "->", report[-1][:200], flush=True)
    with open(path, "w") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main(sys.argv[1])
