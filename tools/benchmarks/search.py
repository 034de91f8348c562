"""A training step of a supernet against one of its widest network, and of the derived one."""

import statistics

from benchmarks.bot import make_step
from benchmarks.harness import seconds

BATCH, IDENTITIES = 32, 751
IMAGE_SIZE = [128, 64]
OFF = {"SOLVER.AMP.ENABLED": False, "INPUT.SIZE_TEST": IMAGE_SIZE}
BACKBONES = {
    "the paper's, DEPTH 0.25x": (
        {
            "MODEL.BACKBONE.NAME": "build_searched_backbone",
            "MODEL.BACKBONE.DEPTH": "0.25x",
            "MODEL.BACKBONE.FEAT_DIM": 512,
        },
        (20, 24, 88, 144),
    ),
    "MobileNetV2": (
        {
            "MODEL.BACKBONE.NAME": "build_mobilenetv2_backbone",
            "MODEL.BACKBONE.DEPTH": "1.0x",
            "MODEL.BACKBONE.FEAT_DIM": 1280,
        },
        (10, 16, 20, 40, 60, 100, 200),
    ),
    "ResNet-50": ({"MODEL.BACKBONE.DEPTH": "50x"}, (32, 64, 128, 256)),
}
"""Each with the widths of a network of about half of its multiply-adds."""


def measure(pairs):
    """Ratios to the widest network's step, in one dictionary; prints them."""
    results = {}
    for name, (backbone, widths) in BACKBONES.items():
        networks = {
            "widest": {},
            "supernet": {"MODEL.SEARCH.ENABLED": True, "MODEL.SEARCH.WARMUP_SHARE": 0.0},
            "half": {"MODEL.SEARCH.WIDTHS": widths},
        }
        steps = {
            network: make_step(BATCH, IDENTITIES, {**OFF, **backbone, **changes}, IMAGE_SIZE)
            for network, changes in networks.items()
        }
        for step in steps.values():
            step()
        rounds = [{network: seconds(step) for network, step in steps.items()} for _ in range(pairs)]
        results[name] = rounds
        for network in ("supernet", "half"):
            ratios = sorted(times[network] / times["widest"] for times in rounds)
            print(
                f"{name:26} step of {network:8} / widest: {statistics.median(ratios):.2f}"
                f"  ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds)"
            )
    return {"rounds": results}
