"""New centroids and class table from the embeddings of an epoch.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, P input values an image.
"""

import random
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.base import ranks
from fastreid_rib.losses import information
from fastreid_rib.losses.clustering import chunks, kmeans, spread_seeds
from fastreid_rib.losses.q_table import (
    QTable,
    kept_entries,
    q_table,
    sum_of_logs,
    weighted_sum,
)
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.ops import add_soft_assignments_, bound
from fastreid_rib.ops.assignment import half_squared_norms, log_soft_assignment, soft_assignment
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
) -> Tuple[Statistics, Dict[str, float]]:
    """Cluster the rows, and build Q from them under the new centroids.

    Calls collectives: every rank calls it with the same arguments and gets the same result.

    Args:
        rows: (N, D), N >= 1, float16 or float32, L2-normalised.
        labels: (N,), int64, 0..C-1.
        inputs: (N, P), centred and L2-normalised, or None.
        previous: statistics of the last refresh, from which K-means starts; None: the first time.
        settings: of the loss.
        num_classes: number of identities C.
        draw: source of all chance, in the same state on every rank.

    Returns:
        The statistics, and a report in nats, see ``RIBLoss.start_epoch``.
    """
    num_clusters, beta = settings.num_clusters or num_classes, settings.beta
    mean = None
    if settings.center:
        mean = _mean(rows)
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
        marginal = _marginal(rows, labels, counts, means, centroids, beta)
    table, tables = _class_table(
        rows, labels, inputs, counts, means, centroids, input_centroids, marginal, settings
    )
    log_p = None
    if settings.relevance == "full":
        log_p = (tables.marginal / counts.sum()).clamp(min=settings.q_floor).log().float()
    statistics = Statistics(centroids, *table, log_p, mean, counts, means)
    losses = None
    if settings.form == "embedding":
        losses = _losses(rows, labels, statistics, settings)
    with_inputs = inputs is not None
    report = _report(tables, settings.gamma, log_p, counts.sum(), losses, with_inputs=with_inputs)
    return statistics, report


def center_rows(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows as they are clustered: their mean taken off, L2-normalised, in their own dtype.

    Embeddings that were pooled behind a ReLU lie in a narrow cone. Its width changes with backbone,
    stride, learning rate and epoch, and with it what one beta means; centred they spread over the
    sphere, whatever the cone.

    Args:
        rows: (n, D), floating point, L2-normalised.
        mean: (D,), float32.
    """
    centred = torch.empty_like(rows)
    for chunk in chunks(len(rows), rows.shape[1]):
        centred[chunk] = F.normalize(rows[chunk].float() - mean, dim=1).to(rows.dtype)
    return centred


def _mean(rows: Tensor) -> Tensor:
    # Without a copy of the rows in float32.
    total = rows[ranks.own_slice(len(rows))].sum(dim=0, dtype=torch.float32)
    ranks.sum_over_ranks(total)
    return ranks.copy_from_first(total / len(rows))


def _marginal(
    rows: Tensor, labels: Tensor, counts: Tensor, means: Tensor, centroids: Tensor, beta: float
) -> Tensor:
    """P(a) = sum_y p(y) Q(a|y) of rows of Q that are not smoothed: (K,), sums to one.

    A pass of its own in front of the table's: no matrix of identities by clusters is kept.
    """
    total = torch.zeros(len(centroids), dtype=torch.float64, device=rows.device)
    share = ranks.own_slice(len(rows))
    for chunk in chunks(share.stop - share.start, len(centroids)):
        part = rows[share.start + chunk.start : share.start + chunk.stop].float()
        total += soft_assignment(part, centroids, beta).double().sum(dim=0)
    ranks.sum_over_ranks(total)
    shown = torch.bincount(labels, minlength=len(counts)) > 0
    absent = (~shown & (counts > 0)).nonzero().squeeze(1)
    for chunk in chunks(len(absent), len(centroids)):
        some = absent[chunk]
        total += counts[some].double() @ soft_assignment(means[some], centroids, beta).double()
    return (total / counts.sum()).float()


def _losses(rows: Tensor, labels: Tensor, statistics: Statistics, settings: RIBSettings) -> Tensor:
    """What the loss would be on the rows themselves, float64, the same on every rank."""
    total = torch.zeros((), dtype=torch.float64, device=rows.device)
    share = ranks.own_slice(len(rows))
    for chunk in chunks(share.stop - share.start, len(statistics.centroids)):
        part = slice(share.start + chunk.start, share.start + chunk.stop)
        losses, _ = bound(
            rows[part].float(), statistics.centroids, statistics.log_q, labels[part],
            settings.beta, settings.gamma, form=settings.form, log_p=statistics.log_p,
            index=statistics.log_q_index, floor=statistics.log_q_floor, backend=settings.backend,
        )  # fmt: skip
        total += losses.double().sum()
    ranks.sum_over_ranks(total)
    return total / len(rows)


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


def _class_table(
    rows: Tensor,
    labels: Tensor,
    inputs: Optional[Tensor],
    counts: Tensor,
    means: Tensor,
    centroids: Tensor,
    input_centroids: Optional[Tensor],
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Tuple[QTable, information.Tables]:
    """Q and the sums for the report: block by block of identities, each rank its share of them.

    Only one block at a time has a row of K numbers for each identity.
    """
    num_classes, num_clusters, beta = len(counts), len(centroids), settings.beta
    in_rows = torch.bincount(labels, minlength=num_classes)
    order = labels.sort(stable=True).indices
    ends: List[int] = in_rows.cumsum(0).tolist()
    # An identity costs its images, and its row of the table.
    share = ranks.own_share(in_rows + 1)

    width = kept_entries(settings.table_entries, num_clusters)
    own = share.stop - share.start
    table = QTable(centroids.new_zeros(own, width), None, None)
    if width < num_clusters:
        index = torch.zeros(own, width, dtype=torch.int32, device=centroids.device)
        table = QTable(table.log_q, index, centroids.new_zeros(own))
    tables = information.empty_tables(
        num_clusters, 0 if input_centroids is None else len(input_centroids), centroids.device
    )
    norms = half_squared_norms(centroids)
    for part in chunks(own, num_clusters):
        block = slice(share.start + part.start, share.start + part.stop)
        begin = ends[block.start - 1] if block.start else 0
        of_block = order[begin : ends[block.stop - 1]]
        sums = centroids.new_zeros(part.stop - part.start, num_clusters)
        for chunk in chunks(len(of_block), num_clusters):
            images = of_block[chunk]
            embeddings, identities = rows[images].float(), labels[images] - block.start
            if inputs is not None and input_centroids is not None:
                # The joint table needs the soft assignments themselves.
                log_phi = log_soft_assignment(embeddings, centroids, beta)
                log_phi_x = log_soft_assignment(inputs[images].float(), input_centroids, beta)
                information.add_images_(tables, log_phi, log_phi_x)
                sums += group_sum(log_phi.exp(), identities, len(sums))
                continue
            negentropy = add_soft_assignments_(
                sums, embeddings, centroids, identities, beta,
                half_norms=norms, deterministic=True, backend=settings.backend,
            )  # fmt: skip
            tables.images.add_(len(images))
            tables.feature_negentropy.add_(negentropy.double().sum())
        q = _class_rows(sums, counts[block], means[block], centroids, beta)
        if marginal is not None:
            q.lerp_(marginal, settings.smoothing)
        made = q_table(q, settings.table_entries, settings.q_floor)
        information.add_identities_(
            tables, sums, sum_of_logs(sums, made), weighted_sum(counts[block], made, num_clusters)
        )
        for target, source in zip(table, made):
            if target is not None and source is not None:
                target[part] = source
    ranks.sum_over_ranks(*tables)
    joined = [None if t is None else ranks.join_slices(t, num_classes, share) for t in table]
    return QTable(*joined), tables  # type: ignore[arg-type]


def _class_rows(
    sums: Tensor, counts: Tensor, means: Tensor, centroids: Tensor, beta: float
) -> Tensor:
    """Q of a block of identities, (identities, K) float32, from the sums of soft assignments."""
    images = sums.sum(dim=1, keepdim=True)
    q = sums / images.clamp(min=torch.finfo(sums.dtype).tiny)
    # One that the epoch did not show is expressed in the new clusters by its last mean.
    absent = ((images.squeeze(1) == 0) & (counts > 0)).nonzero().squeeze(1)
    if len(absent):
        q[absent] = soft_assignment(means[absent], centroids, beta)
    return q.masked_fill_((counts == 0)[:, None], 1 / len(centroids))


def _report(
    tables: information.Tables,
    gamma: float,
    log_p: Optional[Tensor],
    weight: Tensor,
    losses: Optional[Tensor],
    with_inputs: bool,
) -> Dict[str, float]:
    label_information = information.label_information(tables)
    report = {
        "mutual_information": label_information,
        "klb": information.conditional_bound(tables),
    }
    if losses is not None:  # of the embedding itself, whose own information nobody can count
        report["bound"] = losses
    else:
        report["bound"] = information.lagrangian_bound(tables, gamma, log_p)
        bounded = gamma * information.feature_information(tables) - label_information
        # P counts identities that these rows do not show: it is as much too small for those shown.
        absent = 0.0 if log_p is None else (weight / tables.images).log()
        report["slack"] = report["bound"] + absent - bounded
    if with_inputs:
        report["input_information"] = information.input_information(tables)
        report["ib"] = information.information_bottleneck(tables)
        report["ibb"] = information.variational_bound(tables)
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
