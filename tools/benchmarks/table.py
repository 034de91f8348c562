"""What is lost by keeping m entries of each row of Q: loss, gradient and bound against all of it.

Simulated embeddings of 1000 identities: apart, as late in training, overlapping, as early on, and
the latter at a low beta, at which an image belongs to many clusters. The statistics come from one
epoch, the loss and its gradient are those of fresh images. Nothing is timed.
"""

import random

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
import torch
from torch.nn import functional as F

from fastreid_rib.losses import rib_loss
from fastreid_rib.losses.refresh import refresh
from fastreid_rib.settings import RIBSettings

IDENTITIES, IMAGES, DIMENSIONS, FRESH = 1000, 16000, 256, 1024
# The distance of images from their identity, which has length 1, and beta.
CASES = (("apart", 1.6, 60.0), ("overlapping", 3.0, 60.0), ("soft", 3.0, 15.0))
ENTRIES = (0, 1, 4, 16, 64, 256)


def gradient(embeddings, labels, statistics, beta):
    """The loss of fresh images and its gradient."""
    embeddings = embeddings.clone().requires_grad_()
    loss = rib_loss(
        embeddings, labels, statistics.centroids, statistics.log_q, beta=beta,
        index=statistics.log_q_index, floor=statistics.log_q_floor,
    )  # fmt: skip
    loss.backward()
    return loss.item(), embeddings.grad


def compare(name, beta, rows, labels, fresh, fresh_labels):
    """One table row for each m, against the whole table.

    Args:
        name: of the embeddings.
        beta: sharpness of the soft assignment.
        rows: (N, D), L2-normalised, with ``labels`` (N,): what the statistics come from.
        labels: 0..C-1, each there.
        fresh: (n, D), with ``fresh_labels`` (n,): what the loss is computed for.
        fresh_labels: 0..C-1.
    """
    results = []
    classes = int(labels.max()) + 1
    for entries in ENTRIES:
        statistics, report = refresh(
            rows, labels, None, None,
            RIBSettings(
                beta=beta, center=False, relevance="paper", smoothing=0.0, table_entries=entries,
                kmeans_iterations=3,
            ),
            num_classes=classes, draw=random.Random(0),
        )  # fmt: skip
        loss, found = gradient(fresh, fresh_labels, statistics, beta)
        if not entries:
            whole_loss, whole, told = loss, found, report["mutual_information"]
            whole_bound = report["bound"]
            print(f"\n{name}: I(F;Y) {told:.3f}, bound {whole_bound:.3f}, loss {loss:.3f} nats")
            print("| m | bound | loss | gradient: difference | cosine |")
            print("| --- | --- | --- | --- | --- |")
            continue
        assert report["mutual_information"] == told  # it does not depend on Q
        result = {
            "entries": entries,
            "bound": report["bound"] - whole_bound,
            "loss": loss - whole_loss,
            "difference": ((found - whole).norm() / whole.norm()).item(),
            "cosine": F.cosine_similarity(found.flatten(), whole.flatten(), dim=0).item(),
        }
        results.append(result)
        print(
            f"| {entries} | {result['bound']:+.4f} | {result['loss']:+.4f} "
            f"| {result['difference']:.4f} | {result['cosine']:.4f} |",
            flush=True,
        )
    return results


def simulated(noise):
    """Rows and labels of an epoch, and fresh ones, of identities at the same places."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(IDENTITIES, DIMENSIONS, generator=generator), dim=1)

    def draw(labels):
        spread = torch.randn(len(labels), DIMENSIONS, generator=generator) / DIMENSIONS**0.5
        return F.normalize(centres[labels] + noise * spread, dim=1), labels

    rows, labels = draw(torch.arange(IMAGES) % IDENTITIES)
    return (rows.half(), labels, *draw(torch.randint(IDENTITIES, (FRESH,), generator=generator)))


def measure():
    """All cases, in one dictionary; prints tables."""
    return {
        f"{name}, beta {beta:g}": compare(f"{name}, beta {beta:g}", beta, *simulated(noise))
        for name, noise, beta in CASES
    }
