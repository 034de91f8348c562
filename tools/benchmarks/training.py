"""The training step with RIB against the step without, and the refresh against an epoch.

The model is BoT (ResNet-50, 256 x 128, batch 64) on the CPU with random images; the refresh is at
the size of Market-1501 (12936 images, 751 identities, 2048 dimensions).
"""

import functools
import statistics

import fastreid_rib

# isort: split
import torch
from benchmarks.bot import make_step
from benchmarks.harness import seconds

IMAGES, IDENTITIES, DIMENSIONS, BATCH = 12936, 751, 2048, 64
STEPS_PER_EPOCH = IMAGES // BATCH


def measure_steps(pairs):
    """Seconds of a step without and with RIB in force, pair by pair."""
    rib = {
        "MODEL.LOSSES.NAME": ("CrossEntropy", "Triplet", "RIB"),
        "MODEL.LOSSES.RIB.WARMUP_EPOCHS": 1,
    }
    without, with_rib = (make_step(BATCH, IDENTITIES, changes) for changes in ({}, rib))
    without(0), with_rib(0)  # fills the bank
    without(1), with_rib(1)  # the first refresh, and a warm-up
    results = []
    for _ in range(pairs):
        results.append((seconds(lambda: without(1)), seconds(lambda: with_rib(1))))
    return results


def measure_refreshes(repeats):
    """Seconds of a refresh from the previous epoch's centroids, at Market-1501's size."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(IDENTITIES, DIMENSIONS, generator=generator)
    rib = fastreid_rib.RIBLoss(IDENTITIES, bank_size=IMAGES, warmup_epochs=1)
    results = []
    for epoch in range(repeats + 2):
        if epoch < 2:  # the first refresh has no previous centroids
            rib.start_epoch(epoch)
        else:
            results.append(seconds(functools.partial(rib.start_epoch, epoch)))
        centres += 0.1 * torch.randn(centres.shape, generator=generator)
        for labels in torch.randint(IDENTITIES, (IMAGES,), generator=generator).split(1024):
            # So much that the identities overlap: K-means would stop early on easy data.
            noise = 8 * torch.randn(len(labels), DIMENSIONS, generator=generator)
            with torch.enable_grad():
                rib(centres[labels] + noise, labels)
    return results


def measure(pairs):
    """Both, in one dictionary; prints them."""
    steps = measure_steps(pairs)
    refreshes = measure_refreshes(3)
    ratios = sorted(b / a for a, b in steps)
    epoch = statistics.median(a for a, _ in steps) * STEPS_PER_EPOCH
    refresh = statistics.median(refreshes)
    print(
        f"\nstep with RIB / without:    {statistics.median(ratios):.3f}"
        f"  ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs)"
    )
    print(
        f"refresh / epoch of {STEPS_PER_EPOCH} steps: {refresh / epoch:.4f}"
        f"  ({refresh:.2f} s of {epoch:.0f} s)"
    )
    return {"steps_without_and_with": steps, "refreshes": refreshes}
