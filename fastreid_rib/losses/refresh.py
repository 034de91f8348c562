"""New centroids and class table from the embeddings of an epoch.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, P input values an image.
"""

import random
from typing import Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.losses import information, ranks
from fastreid_rib.losses.clustering import chunks, kmeans, spread_seeds
from fastreid_rib.ops import add_soft_assignments_
from fastreid_rib.ops.assignment import log_soft_assignment, soft_assignment
from fastreid_rib.ops.group_sum import group_sum


class Statistics(NamedTuple):
    """What the loss compares with during an epoch; the same on every rank."""

    centroids: Tensor
    """(K, D), float32."""
    log_q: Tensor
    """(C, K), float32: log of the floored Q(a|y), nats."""
    class_counts: Tensor
    """(C,), int64: rows behind the mean of each identity, when last seen; 0: never seen."""
    class_means: Tensor
    """(C, D), float32: mean embedding of each identity, when last seen."""


def refresh(
    rows: Tensor,
    labels: Tensor,
    inputs: Optional[Tensor],
    previous: Optional[Statistics],
    *,
    num_classes: int,
    num_clusters: int,
    beta: float,
    gamma: float,
    q_floor: float,
    iterations: int,
    backend: str,
    draw: random.Random,
) -> Tuple[Statistics, Dict[str, float]]:
    """Cluster the rows, and build Q from them under the new centroids.

    Calls collectives: every rank calls it with the same arguments and gets the same result.

    Args:
        rows: (N, D), N >= 1, float16 or float32, L2-normalised.
        labels: (N,), int64, 0..C-1.
        inputs: (N, P), centred and L2-normalised, or None.
        previous: statistics of the last refresh, from which K-means starts; None: the first time.
        num_classes: number of identities C.
        num_clusters: number of clusters K.
        beta: sharpness of the soft assignment.
        gamma: weight of the entropy part of the bound.
        q_floor: least value in Q.
        iterations: of K-means.
        backend: of the class table, see ``ops.backends.choose``.
        draw: source of all chance, in the same state on every rank.

    Returns:
        The statistics, and a report in nats, see ``RIBLoss.start_epoch``.
    """
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
    centroids = kmeans(rows, start, iterations)

    input_centroids = None
    if inputs is not None:
        # From scratch each time: the inputs do not drift, and the checkpoint stays smaller.
        input_centroids = kmeans(inputs, spread_seeds(inputs, num_clusters, draw), iterations)

    tables = _tabulate(rows, labels, inputs, centroids, input_centroids, num_classes, beta, backend)
    log_q = _class_table(tables, counts, means, centroids, beta, q_floor)
    report = _report(tables, log_q, gamma, with_inputs=inputs is not None)
    return Statistics(centroids, ranks.copy_from_first(log_q), counts, means), report


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


def _tabulate(
    rows: Tensor,
    labels: Tensor,
    inputs: Optional[Tensor],
    centroids: Tensor,
    input_centroids: Optional[Tensor],
    num_classes: int,
    beta: float,
    backend: str,
) -> information.Tables:
    """Tables of all rows, chunk by chunk, each rank its share."""
    own = ranks.own_slice(len(rows))
    rows, labels = rows[own], labels[own]
    inputs = None if inputs is None else inputs[own]
    # Zeros: a rank may have no rows at all.
    tables = information.tabulate(
        centroids.new_empty(0, len(centroids)),
        labels[:0],
        num_classes,
        None if input_centroids is None else centroids.new_empty(0, len(input_centroids)),
    )
    sums = centroids.new_zeros(num_classes, len(centroids))
    for chunk in chunks(len(rows), max(len(centroids), num_classes)):
        embeddings = rows[chunk].float()
        if inputs is not None and input_centroids is not None:
            # The joint table needs the soft assignments themselves.
            log_phi = log_soft_assignment(embeddings, centroids, beta)
            log_phi_x = log_soft_assignment(inputs[chunk].float(), input_centroids, beta)
            tables = tables + information.tabulate(log_phi, labels[chunk], num_classes, log_phi_x)
            continue
        negentropy = add_soft_assignments_(
            sums, embeddings, centroids, labels[chunk], beta, deterministic=True, backend=backend
        )
        tables.feature_negentropy.add_(negentropy.double().sum())
        tables.images.add_(len(embeddings))
    tables.labels_features.add_(sums)
    ranks.sum_over_ranks(*tables)
    return tables


def _class_table(
    tables: information.Tables,
    counts: Tensor,
    means: Tensor,
    centroids: Tensor,
    beta: float,
    q_floor: float,
) -> Tensor:
    """log Q: (C, K) float32."""
    sums = tables.labels_features
    present = sums.sum(dim=1) > 0
    # An identity that the epoch did not show is expressed in the new clusters by its last mean.
    q = soft_assignment(means, centroids, beta).double()
    q[present] = sums[present] / sums[present].sum(dim=1, keepdim=True)
    q[counts == 0] = 1 / len(centroids)
    return q.clamp(min=q_floor).log().float()


def _report(
    tables: information.Tables, log_q: Tensor, gamma: float, with_inputs: bool
) -> Dict[str, float]:
    klb = information.conditional_bound(tables, log_q)
    relevance = information.relevance_term(tables, log_q)
    report = {
        "mutual_information": information.label_information(tables),
        "klb": klb,
        "bound": relevance + gamma * (klb - relevance),
    }
    if with_inputs:
        report["input_information"] = information.input_information(tables)
        report["ib"] = information.information_bottleneck(tables)
        report["ibb"] = information.variational_bound(tables, log_q)
        report["c0"] = information.bound_constant(tables)
    return {name: float(value) for name, value in report.items()}


def centred(inputs: Tensor) -> Tensor:
    """Input features as they are clustered: each image's mean taken off, then L2-normalised.

    Squared distances then lie in 0..4 as those of the embeddings do, so one beta serves both. (The
    mean is that of the image, not of the data: without it brightness alone would set the clusters.)

    Args:
        inputs: (n, P), any floating dtype.

    Returns:
        (n, P) float32.
    """
    inputs = inputs.float()
    return F.normalize(inputs - inputs.mean(dim=1, keepdim=True), dim=1)
