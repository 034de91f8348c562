"""The smallest training through FastReID, for scripts: OSNet x0.25 on eight drawn identities."""

import fastreid_rib  # noqa: F401  arms the hook

# isort: split
from fastreid.config import get_cfg

SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH": "x0_25",
    "MODEL.BACKBONE.FEAT_DIM": 128,
    "MODEL.BACKBONE.PRETRAIN": False,
    "INPUT.SIZE_TRAIN": [32, 16],
    "INPUT.SIZE_TEST": [32, 16],
    "DATASETS.NAMES": ("SyntheticReIDTiny",),
    "DATASETS.TESTS": ("SyntheticReIDTiny",),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 1,
}


def small_cfg(folder, changes):
    """A config of these settings, changed."""
    cfg = get_cfg()
    settings = {**SETTINGS, "OUTPUT_DIR": str(folder), **changes}
    cfg.merge_from_list([item for pair in settings.items() for item in pair])
    return cfg
