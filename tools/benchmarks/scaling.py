"""Step, refresh and memory as identities and embeddings grow: C = 1e3 .. 1e5, N = 1e4 .. 1e6.

Each size is a short training of a linear layer on simulated images in a process of its own: an
epoch that fills the reservoir, the refresh, then steps with RIB in force. One thread, and seconds
of the processor, not of the clock. Sizes at which a refresh would take more operations than asked
for are extrapolated from the others.
"""

import multiprocessing
import resource
import statistics
import time

import fastreid_rib

# isort: split
import torch
from torch import nn

from fastreid_rib.losses import clustering
from fastreid_rib.settings.rib import MOST_CLUSTERS

DIMENSIONS, ITERATIONS, BATCH, STEPS = 256, 10, 64, 10
IDENTITIES, IMAGES = (10**3, 10**4, 10**5), (10**4, 10**5, 10**6)


def clusters(identities):
    """As many as RIB takes by itself."""
    return min(identities, MOST_CLUSTERS)


def operations(identities, images, iterations=ITERATIONS):
    """Multiplications and additions of a refresh: K-means and two products for the table."""
    return 2 * clusters(identities) * images * DIMENSIONS * (iterations + 2)


def formula(identities, images):
    """Bytes that the statistics take between refreshes: reservoir, centroids and means, table."""
    reservoir = images * (2 * DIMENSIONS + 8)
    centroids_and_means = 4 * (identities + clusters(identities)) * DIMENSIONS + 8 * identities
    return reservoir + centroids_and_means + 4 * identities * clusters(identities)


def peak():
    """The most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(identities, images):
    """Seconds of a refresh and of a step, bytes, and the loss before and after the steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    centres = torch.randn(identities, DIMENSIONS)
    layer = nn.Linear(DIMENSIONS, DIMENSIONS)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    rib = fastreid_rib.RIBLoss(
        identities, beta=10.0, bank_size=images, warmup_epochs=1,
        kmeans_iterations=ITERATIONS,
    )  # fmt: skip

    def batch(size):
        # At random: at N < C most never appear.
        labels = torch.randint(identities, (size,))
        return layer(centres[labels] + 0.7 * torch.randn(size, DIMENSIONS)), labels

    passes, nearest = [], clustering._nearest
    clustering._nearest = lambda *args: passes.append(1) or nearest(*args)
    before = peak()
    rib.start_epoch(0)
    for size in [1000] * (images // 1000):
        rib(*batch(size))
    begin = time.process_time()
    report = rib.start_epoch(1)
    refresh = time.process_time() - begin
    clustering._nearest = nearest
    steps, losses = [], []
    for _ in range(STEPS):
        embeddings, labels = batch(BATCH)
        detached = embeddings.detach().requires_grad_()
        begin = time.process_time()
        loss = rib(detached, labels)
        loss.backward()
        steps.append(time.process_time() - begin)
        optimizer.zero_grad()
        embeddings.backward(detached.grad)
        optimizer.step()
        losses.append(loss.item())
    return {
        "identities": identities,
        "images": images,
        "iterations": len(passes),
        "refresh": refresh,
        "step": statistics.median(steps[1:]),
        "peak": peak() - before,
        "report": report,
        "losses": losses,
    }


def growth(results):
    """Seconds an operation of the products, and seconds an entry of the whole C x K table."""
    rows = [
        [
            operations(r["identities"], r["images"], r["iterations"]),
            r["identities"] * clusters(r["identities"]),
        ]
        for r in results
    ]
    # Relative errors: the large sizes would drown the small ones.
    scaled = torch.tensor(rows, dtype=torch.float64)
    scaled = scaled / torch.tensor([r["refresh"] for r in results]).double()[:, None]
    solution = torch.linalg.lstsq(scaled, torch.ones(len(rows), 1, dtype=torch.float64)).solution
    return [max(value, 0.0) for value in solution.flatten().tolist()]


def measure(most):
    """All sizes, in one dictionary; prints a table."""
    spawn = multiprocessing.get_context("spawn")
    results = []
    print("\n| C | N | refresh, s | iterations | step, ms | peak, MB | statistics, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    sizes = sorted((operations(c, n), c, n) for c in IDENTITIES for n in IMAGES)
    for cost, identities, images in sizes:
        if cost > most:
            continue
        with spawn.Pool(1) as pool:
            result = pool.apply(train, (identities, images))
        results.append(result)
        print(
            f"| {identities} | {images} | {result['refresh']:.1f} | {result['iterations']} "
            f"| {1e3 * result['step']:.1f} | {result['peak'] / 1e6:.0f} "
            f"| {formula(identities, images) / 1e6:.0f} |",
            flush=True,
        )
    per_operation, per_entry = growth(results)
    extrapolated = []
    for cost, identities, images in sizes:
        if cost > most:
            seconds = cost * per_operation + identities * clusters(identities) * per_entry
            extrapolated.append({"identities": identities, "images": images, "refresh": seconds})
            print(
                f"| {identities} | {images} | {seconds:.0f}, extrapolated "
                f"| {ITERATIONS} | | | {formula(identities, images) / 1e6:.0f} |"
            )
    print(
        f"\nrefresh = {per_operation * 1e12:.1f} s for 1e12 operations "
        f"+ {per_entry * 1e9:.1f} s for 1e9 entries of the whole table"
    )
    return {
        "measured": results,
        "extrapolated": extrapolated,
        "seconds_per_operation": per_operation,
        "seconds_per_entry": per_entry,
    }
