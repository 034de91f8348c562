"""New centroids and class table from the embeddings of an epoch.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, P input values an image.
"""

import random
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.losses.cameras import across_cameras, row_of
from fastreid_rib.losses.centering import center_rows, mean_of_rows
from fastreid_rib.losses.clustering import kmeans, spread_seeds
from fastreid_rib.losses.reporting import mean_loss, report_of
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.losses.tabulating import build_table, marginal_of
from fastreid_rib.ops.group_sum import group_sum
from fastreid_rib.settings.rib import RIBSettings


def refresh(
    rows: Tensor,
    labels: Tensor,
    inputs: Optional[Tensor],
    previous: Optional[Statistics],
    settings: RIBSettings,
    *,
    num_classes: int,
    draw: random.Random,
    cameras: Optional[Tensor] = None,
) -> Tuple[Statistics, Dict[str, float]]:
    """Clusters the rows, and builds Q from them under the new centroids.

    Calls collectives: every rank calls it with the same arguments and gets the same result.

    Args:
        rows: (N, D), N >= 1, float16 or float32, L2-normalised.
        labels: (N,), int64, 0..C-1.
        inputs: (N, P), centred and L2-normalised, or None.
        previous: statistics of the last refresh, from which K-means starts; None: the first time.
        settings: of the loss.
        num_classes: number of identities C.
        draw: source of all chance, in the same state on every rank.
        cameras: (N,), int64, >= 0; None: not known, or of no interest.

    Returns:
        The statistics, and a report in nats, see ``RIBLoss.start_epoch``.
    """
    num_clusters, beta = settings.num_clusters or num_classes, settings.beta
    mean = None
    if settings.center:
        mean = mean_of_rows(rows)
        rows = center_rows(rows, mean)
    counts, means = _class_means(rows, labels, num_classes, previous)
    if previous is not None:
        start = previous.centroids
    elif num_clusters == num_classes:
        start = means.clone()
        missing = (counts == 0).nonzero().squeeze(1)
        picked = [draw.randrange(len(rows)) for _ in range(len(missing))]
        start[missing] = rows[torch.tensor(picked, dtype=torch.int64, device=rows.device)].float()
    else:
        start = spread_seeds(rows, num_clusters, draw)
    centroids = kmeans(rows, start, settings.kmeans_iterations)

    input_centroids = None
    if inputs is not None:
        # From scratch each time: the inputs do not drift, and the checkpoint stays smaller.
        spread = spread_seeds(inputs, num_clusters, draw)
        input_centroids = kmeans(inputs, spread, settings.kmeans_iterations)

    marginal = None
    if settings.smoothing:
        marginal = marginal_of(rows, labels, counts, means, centroids, beta)
    table, sums = build_table(
        rows, labels, inputs, counts, means, centroids, input_centroids, marginal, settings
    )
    of_cameras = None
    if cameras is not None:
        of_cameras = across_cameras(
            table, rows, labels, cameras, counts, centroids, marginal, settings
        )
    total, of_rows, known = sums.marginal, None, None
    if of_cameras is not None:
        table, of_rows, known, total = of_cameras
    log_p = None
    if settings.relevance == "full":
        log_p = (total / counts.sum()).clamp(min=settings.q_floor).log().float()
    statistics = Statistics(centroids, *table, log_p, mean, counts, means, of_rows, known)
    losses = None
    if cameras is not None and of_rows is not None and known is not None:
        labels = row_of(labels, cameras, of_rows, known)
    if settings.form == "embedding" or of_rows is not None:
        losses = mean_loss(rows, labels, statistics, settings)
    with_inputs = inputs is not None
    report = report_of(sums, settings.gamma, log_p, counts.sum(), losses, with_inputs=with_inputs)
    return statistics, report


def _class_means(
    rows: Tensor, labels: Tensor, num_classes: int, previous: Optional[Statistics]
) -> Tuple[Tensor, Tensor]:
    """Counts and means; an identity that is not in the rows keeps its previous ones."""
    own = ranks.own_slice(len(rows))
    sums = group_sum(rows[own].float(), labels[own], num_classes)
    ranks.sum_over_ranks(sums)
    counts = torch.bincount(labels, minlength=num_classes)
    means = ranks.copy_from_first(sums / counts.clamp(min=1)[:, None])
    if previous is not None:
        absent = counts == 0
        counts = torch.where(absent, previous.class_counts, counts)
        means = torch.where(absent[:, None], previous.class_means, means)
    return counts, means
