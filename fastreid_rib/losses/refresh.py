"""New centroids and class table from the embeddings of an epoch, and a report of them.

Legend: N rows in the reservoir, n of them, D dimensions, K clusters, C identities.
"""

import logging
import math
import random
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.base import ranks
from fastreid_rib.losses import table
from fastreid_rib.losses.clustering import kmeans, spread_seeds
from fastreid_rib.losses.noise import between_cameras
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.losses.table import Identities, Pairs, Rows
from fastreid_rib.ops import Objective, bound
from fastreid_rib.ops.assignment import centroid_products, half_squared_norms
from fastreid_rib.ops.sums import chunks, group_sum, mutual_information, negentropy
from fastreid_rib.settings.rib import RIBSettings

logger = logging.getLogger(__name__)

# Below this share of log(identities) the soft assignment is as good as uniform. Runs in which RIB
# collapsed fell under it within three refreshes; in runs that gained by it it was above 0.08.
_LEAST_SHARE = 0.02
_FALL = 0.8  # of what the refresh before told
_RISE = 1.5  # of what the one before that told: less is no progress


def refresh(
    rows: Rows,
    previous: Optional[Statistics],
    settings: RIBSettings,
    num_classes: int,
    draw: random.Random,
) -> Tuple[Statistics, Dict[str, float]]:
    """Clusters the rows, and builds Q from them under the new centroids.

    Calls collectives: every rank calls it with the same arguments and gets the same result.

    Args:
        rows: of the epoch, not yet centred.
        previous: statistics of the last refresh, from which K-means starts; None: the first time.
        settings: of the loss, which number its clusters.
        num_classes: C.
        draw: source of all chance, in the same state on every rank.

    Returns:
        The statistics, and a report, see ``RIBLoss.start_epoch``.
    """
    mean, pairs, given = None, rows.pairs(), rows
    if settings.center:
        mean = _mean_of_rows(rows.embeddings)
        rows = rows._replace(embeddings=center_rows(rows.embeddings, mean))
    identities = counts, means = _seen(rows, num_classes, previous)
    start = _start(rows, identities, previous, settings.num_clusters, draw)
    centroids = kmeans(rows.embeddings, start, settings.kmeans_iterations)

    smoothed, beta = settings.smoothing > 0, settings.beta
    marginal = table.marginal_of(rows, identities, centroids, beta) if smoothed else None
    joint, of_images = table.sums_of_labels(rows, num_classes, centroids, beta)
    log_q = table.class_table(joint, identities, centroids, marginal, settings)
    weights, of_rows, known = counts, None, None
    crossed = table.across_cameras(
        rows.embeddings, pairs, log_q, counts, centroids, marginal, settings
    )
    if crossed is not None:
        log_q, of_rows, known, weights = crossed
    log_p = None
    if settings.relevance == "full":
        parts = chunks(len(log_q), len(centroids))
        total = sum(weights[part].double() @ log_q[part].double().exp() for part in parts)
        log_p = (total / counts.sum()).clamp(min=settings.q_floor).log().float()
    mistakes = _mistakes(rows, identities, pairs)
    differences = between_cameras(given, pairs, draw) if settings.camera_noise else None
    statistics = Statistics(
        centroids, log_q, log_p, mean, counts, means, of_rows, known, _compression(*mistakes),
        differences,
    )  # fmt: skip
    report = _report(rows, joint, of_images, statistics, settings)
    report["error"] = 1.0
    for name, (wrong, judged) in zip(("error", "error_across"), mistakes):
        if judged:
            report[name] = wrong / judged
    return statistics.prepared(), report


def center_rows(rows: Tensor, mean: Tensor) -> Tensor:
    """Rows as they are clustered: their mean subtracted, L2-normalised, in their own dtype.

    Embeddings that were pooled after a ReLU lie in a narrow cone. Its width changes with backbone,
    stride, learning rate and epoch, and with it what one beta means; centred they spread over the
    sphere, whatever the cone.
    """
    centred = torch.empty_like(rows)
    for chunk in chunks(len(rows), rows.shape[1]):
        centred[chunk] = F.normalize(rows[chunk].float() - mean, dim=1).to(rows.dtype)
    return centred


def _mean_of_rows(rows: Tensor) -> Tensor:
    """(N, D) -> (D,) float32, without a copy of the rows in float32; the same on every rank."""
    total = rows[ranks.own_slice(len(rows))].sum(dim=0, dtype=torch.float32)
    ranks.sum_over_ranks(total)
    return ranks.copy_from_first(total / len(rows))


def _seen(rows: Rows, num_classes: int, previous: Optional[Statistics]) -> Identities:
    """Counts and means; an identity that is not in the rows keeps its previous ones."""
    own = ranks.own_slice(len(rows.labels))
    sums = group_sum(rows.embeddings[own].float(), rows.labels[own], num_classes)
    ranks.sum_over_ranks(sums)
    counts = torch.bincount(rows.labels, minlength=num_classes)
    means = ranks.copy_from_first(sums / counts.clamp(min=1)[:, None])
    if previous is not None:
        absent = counts == 0
        counts = torch.where(absent, previous.class_counts, counts)
        means = torch.where(absent[:, None], previous.class_means.to(means.dtype), means)
    return Identities(counts, means)


def _start(
    rows: Rows,
    identities: Identities,
    previous: Optional[Statistics],
    num_clusters: int,
    draw: random.Random,
) -> Tensor:
    """Where K-means starts, (K, D): at the last centroids, at the identities' means, or drawn."""
    if previous is not None:
        return previous.centroids
    if num_clusters != len(identities.counts):
        return spread_seeds(rows.embeddings, num_clusters, draw)
    start = identities.means.clone()
    missing = (identities.counts == 0).nonzero().squeeze(1)
    picked = [draw.randrange(len(rows.labels)) for _ in range(len(missing))]
    start[missing] = rows.embeddings[
        torch.tensor(picked, dtype=torch.int64, device="cpu").to(start.device)
    ].float()
    return start


def _mistakes(
    rows: Rows, identities: Identities, pairs: Optional[Pairs]
) -> List[Tuple[float, float]]:
    """How many rows lie nearer to the mean of another identity than to their own, of how many.

    First without themselves in their own mean. Then, where cameras are known, without what their
    own camera saw of their identity, of the rows to which it showed it more than once.
    """
    counts, means = identities
    every = torch.arange(len(rows.labels), device=means.device)
    kinds = [(every, rows.embeddings, torch.ones_like(every))]
    own = ranks.own_slice(len(every))
    if pairs is not None:
        sums = group_sum(rows.embeddings[own].float(), pairs.of_rows[own], len(pairs.codes))
        ranks.sum_over_ranks(sums)
        kinds.append((pairs.of_rows, sums, torch.bincount(pairs.of_rows)))
    norms = half_squared_norms(means).masked_fill(counts == 0, math.inf)
    found = torch.zeros(len(kinds), 2, device=means.device, dtype=torch.float64)
    for chunk in chunks(own.stop - own.start, len(means)):
        part = slice(own.start + chunk.start, own.start + chunk.stop)
        row, label = rows.embeddings[part].float(), rows.labels[part]
        scores = centroid_products(row, means).sub_(norms).scatter_(1, label[:, None], -math.inf)
        nearest = scores.max(dim=1).values
        for kind, (groups, left_out, sizes) in enumerate(kinds):
            group = groups[part]
            others = (counts[label] - sizes[group])[:, None]
            mean = means[label] * counts[label][:, None] - left_out[group].float()
            mean /= others.clamp(min=1)
            judged = (others.squeeze(1) > 0) & (sizes[group] > kind)
            nearness = (row * mean).sum(dim=1) - half_squared_norms(mean)
            wrong = (nearest >= nearness) & judged
            found[kind] += torch.stack([wrong.sum(), judged.sum()])
    ranks.sum_over_ranks(found)
    return found.tolist()


def _compression(alone: Tuple[float, float], across: Tuple[float, float] = (0, 0)) -> float:
    """What the compression counts, 0..1, from :func:`_mistakes`: an odds ratio, ours.

    Of odds, since their ratio hardly moves while a network learns, and that of shares falls; half a
    mistake more on either side keeps them finite (Haldane 1956). Without cameras the share itself.
    """
    if not across[1]:
        return alone[0] / alone[1] if alone[1] else 1.0
    ours, theirs = ((wrong + 0.5) / (judged - wrong + 0.5) for wrong, judged in (alone, across))
    return min(1.0, ours / theirs)


def _report(
    rows: Rows, joint: Tensor, of_images: Tensor, statistics: Statistics, settings: RIBSettings
) -> Dict[str, float]:
    """The report of a refresh, see ``RIBLoss.start_epoch``, from what ``sums_of_labels`` gave."""
    gamma = settings.gamma * statistics.compression
    log_p, images = statistics.log_p, len(rows.labels)
    told = mutual_information(joint)
    likelihood = (joint * statistics.log_q[: len(joint)]).sum(dtype=torch.float64)
    # KLB = mean_i KL(phi(F_i,.) || Q(.|y_i)), ours (compare Fischer 2020, "The CEB").
    klb = (of_images - likelihood) / images
    report = {"mutual_information": told, "klb": klb}
    # Of the embedding itself, whose own information nobody can count, or of rows that other cameras
    # made, which bound another information than that of the identity alone.
    if settings.form == "embedding" or statistics.camera_rows is not None:
        objective = Objective(settings.beta, gamma, settings.form, settings.backend)
        report["bound"] = _mean_loss(rows, statistics, objective)
    else:
        clusters = joint.sum(dim=0, dtype=torch.float64)
        of_marginal = 0 if log_p is None else (1 - gamma) * (clusters @ log_p.double())
        report["bound"] = (gamma * of_images - likelihood + of_marginal) / images
        # I(F~;i): what the clusters keep of which image it is.
        kept = (of_images - negentropy(clusters)) / images + math.log(images)
        # P counts identities that these rows do not show: it is as much too small for those shown.
        weight = 1.0 if log_p is None else float(statistics.class_counts.sum()) / images
        report["slack"] = report["bound"] + math.log(weight) - (gamma * kept - told)
    return {**{name: float(value) for name, value in report.items()}, "gamma": gamma}


def _mean_loss(rows: Rows, statistics: Statistics, objective: Objective) -> Tensor:
    """What the loss would be on the rows themselves, float64, the same on every rank."""
    embeddings, labels, cameras = rows
    if cameras is not None and statistics.camera_rows is not None:
        assert statistics.cameras is not None
        labels = table.row_of(labels, cameras, statistics.camera_rows, statistics.cameras)
    total = torch.zeros((), dtype=torch.float64, device=embeddings.device)
    share = ranks.own_slice(len(embeddings))
    for chunk in chunks(share.stop - share.start, len(statistics.centroids)):
        part = slice(share.start + chunk.start, share.start + chunk.stop)
        losses, _ = bound(embeddings[part].float(), labels[part], statistics.clusters, objective)
        total += losses.double().sum()
    ranks.sum_over_ranks(total)
    return total / len(embeddings)


def warn_of_collapse(told: Sequence[float], most: float, epoch: int) -> None:
    """Says so if the clusters tell next to nothing, and this is getting no better.

    Those of a network that has only begun to learn tell little, too, and more with each epoch.
    ``told`` is I(F~; Y) at the last refreshes, in nats, ``most`` what it could be.
    """
    *before, now = told[-3:]
    fell = before and now < _FALL * before[-1]
    stays = len(before) == 2 and now < _RISE * before[0]
    if now < _LEAST_SHARE * most and (fell or stays):
        logger.warning(
            "RIB at epoch %d: the clusters tell %.3f of %.3f nats about the identity, %.3f at "
            "the refresh before, so the loss has next to no gradient. The embeddings lie too "
            "close together for this beta: raise beta, start later (warmup_epochs), or look "
            "why they do", epoch, now, most, before[-1],
        )  # fmt: skip
