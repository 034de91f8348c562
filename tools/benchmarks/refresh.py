"""The refresh at Market-1501's size against faiss: K-means from scratch, and from our start.

Embeddings look like identities that have moved a little since the epoch before. Identities and what
differs between images of one lie in the same few directions, as learned embeddings do; in 2048
directions K-means would be done after two iterations. In one case identities lie apart, as late in
training, in the other they overlap, as early on. All start from the centroids
of the epoch before, but for faiss from scratch: 60 iterations and 3 restarts, as the authors'
sister code calls it. One thread, and seconds of the processor, not of the clock: what else runs on
the machine counts less.
"""

import random
import statistics
import time

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
import torch
from torch.nn import functional as F

from fastreid_rib.losses.clustering import kmeans
from fastreid_rib.losses.refresh import refresh
from fastreid_rib.losses.table import Rows
from fastreid_rib.ops.sums import chunks
from fastreid_rib.settings import RIBSettings

IMAGES, DIMENSIONS, IDENTITIES = 12936, 2048, 751
ITERATIONS, EPOCHS = 10, 4  # of our K-means in a refresh; before the refresh that is measured
BETA = 60.0
DIRECTIONS = 64
NOISE = {"apart": 0.6, "overlapping": 1.2}


class Epochs:
    """Embeddings of one epoch after the other, and RIB's refresh after each."""

    def __init__(self, noise):
        """Draws the identities; images lie ``noise`` from their identity, which has length 1."""
        self.generator = torch.Generator().manual_seed(0)
        self.directions = self._randn(DIRECTIONS, DIMENSIONS)
        self.centres = F.normalize(self._randn(IDENTITIES, DIRECTIONS), dim=1)
        self.noise, self.statistics = noise, None

    def _randn(self, *shape):
        return torch.randn(shape, generator=self.generator) / shape[1] ** 0.5

    def next_rows(self):
        """Moves the identities a little, and draws an epoch's embeddings: rows and labels."""
        moved = self.centres + 0.1 * self._randn(IDENTITIES, DIRECTIONS)
        self.centres = F.normalize(moved, dim=1)
        labels = torch.randint(IDENTITIES, (IMAGES,), generator=self.generator)
        images = self.centres[labels] + self.noise * self._randn(IMAGES, DIRECTIONS)
        rows = images @ self.directions + 0.1 * self._randn(IMAGES, DIMENSIONS)
        return F.normalize(rows, dim=1).half(), labels

    def refreshed(self, rows, labels):
        """Statistics and report after these rows."""
        return refresh(
            Rows(rows, labels, None), self.statistics,
            RIBSettings(
                beta=BETA, center=False, kmeans_iterations=ITERATIONS, num_clusters=IDENTITIES
            ),
            IDENTITIES, random.Random(0),
        )  # fmt: skip


def inertia(rows, centroids):
    """Mean squared distance of the rows to their nearest centroid."""
    total = 0.0
    for chunk in chunks(len(rows), len(centroids)):
        distances = torch.cdist(rows[chunk], centroids, compute_mode="use_mm_for_euclid_dist")
        total += distances.min(dim=1).values.square().sum(dtype=torch.float64).item()
    return total / len(rows)


def faiss_kmeans(rows, iterations, restarts=1, start=None):
    """Centroids of faiss."""
    import faiss

    faiss.omp_set_num_threads(1)
    found = faiss.Kmeans(
        DIMENSIONS, IDENTITIES, niter=iterations, nredo=restarts, seed=0,
        min_points_per_centroid=1, max_points_per_centroid=len(rows),
    )  # fmt: skip
    found.train(rows.numpy(), init_centroids=None if start is None else start.numpy())
    return torch.from_numpy(found.centroids)


def measure(repeats):
    """Both cases, in one dictionary; prints tables."""
    torch.set_num_threads(1)
    return {name: measure_case(name, noise, repeats) for name, noise in NOISE.items()}


def measure_case(name, noise, repeats):
    """Seconds, inertia; prints a table. From scratch once, the others in turn."""
    epochs = Epochs(noise)
    for _ in range(EPOCHS):
        epochs.statistics, _ = epochs.refreshed(*epochs.next_rows())
    rows, labels = epochs.next_rows()
    start, whole = epochs.statistics.centroids, rows.float()
    cases = {
        "K-means of the refresh": lambda: kmeans(rows, start, ITERATIONS),
        "whole refresh": lambda: epochs.refreshed(rows, labels)[0].centroids,
        "faiss, same start": lambda: faiss_kmeans(whole, ITERATIONS, start=start),
        "faiss from scratch": lambda: faiss_kmeans(whole, 60, restarts=3),
    }
    results = {way: {"seconds": []} for way in cases}
    for turn in range(repeats):
        for way, function in cases.items():
            if way == "faiss from scratch" and turn:
                continue
            begin = time.process_time()
            centroids = function()
            results[way]["seconds"].append(time.process_time() - begin)
            results[way]["inertia"] = inertia(whole, centroids)
    scratch = results["faiss from scratch"]
    begun = inertia(whole, start) / scratch["inertia"]
    print(f"\nidentities {name}; inertia of the start / from scratch: {begun:.4f}")
    print("| | seconds of a processor | from scratch / it | inertia / from scratch |")
    print("| --- | --- | --- | --- |")
    for way, result in results.items():
        median = statistics.median(result["seconds"])
        print(
            f"| {way} | {median:.1f} | {scratch['seconds'][0] / median:.1f} "
            f"| {result['inertia'] / scratch['inertia']:.4f} |"
        )
    return results
