"""Statistics that follow the embeddings from batch to batch, between two refreshes.

Legend: n rows of a batch, D dimensions, K clusters, C identities, m entries kept of a row of Q.
"""

from typing import Tuple

import torch
from torch import Tensor

from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.ops.assignment import log_soft_assignment
from fastreid_rib.ops.precision import full_precision
from fastreid_rib.settings.rib import RIBSettings


@torch.no_grad()
def move(statistics: Statistics, rows: Tensor, labels: Tensor, settings: RIBSettings) -> Statistics:
    """Moves centroids, class table and marginal towards a batch: exponential averages.

    A centroid moves towards the mean of the rows that are nearest to it (online K-means), the row
    of an identity in Q towards the mean soft assignment of its rows; ``k`` rows count as ``k``
    single ones would: by ``1 - (1 - momentum)^k``. P follows exactly, so that it stays the marginal
    of Q, and the bound a bound. What the batch does not show stays as it is.

    Deterministic, without a synchronisation: whatever repeats in the batch is written as often,
    with the same value.

    Args:
        statistics: left as they are, but for ``log_q`` and ``log_q_floor``, which change in place
            (autograd keeps the centroids of the step, and not the table).
        rows: (n, D), float32, as clustered: centred if there is a mean, L2-normalised.
        labels: (n,), int64, < C; rows with a negative label are left out.
        settings: of the loss; its momentum is above 0.

    Returns:
        The statistics after the batch.
    """
    if not len(rows):
        return statistics
    known = labels >= 0
    rows = rows.masked_fill(~known[:, None], 0)
    centroids = statistics.centroids
    log_phi = log_soft_assignment(rows, centroids, settings.beta)

    nearest = log_phi.argmax(dim=1)
    mean, step, _ = _of_group(nearest, known, rows, settings.momentum)
    moved = torch.lerp(centroids[nearest], mean, step)
    centroids = centroids.index_copy(0, nearest, moved)

    identities = labels.clamp(min=0)
    mean, step, share = _of_group(identities, known, log_phi.exp(), settings.momentum)
    if settings.smoothing:
        assert statistics.log_p is not None
        mean = mean.lerp(statistics.log_p.exp(), settings.smoothing)
    log_q, index, floor = statistics.log_q, statistics.log_q_index, statistics.log_q_floor
    if index is None or floor is None:
        before = log_q[identities].exp()
        after = torch.lerp(before, mean, step).clamp_(min=settings.q_floor)
        log_q.index_copy_(0, identities, after.log())
    else:
        # The listed clusters stay the same ones; the others go on sharing what is left of the row.
        columns = index[identities].long()
        shared = floor[identities].exp()[:, None]
        before = shared.expand_as(mean).scatter(1, columns, log_q[identities].exp())
        listed = torch.lerp(before.gather(1, columns), mean.gather(1, columns), step)
        rest = (1 - listed.sum(dim=1, keepdim=True)) / (mean.shape[1] - columns.shape[1])
        listed, rest = listed.clamp_(min=settings.q_floor), rest.clamp_(min=settings.q_floor)
        after = rest.expand_as(mean).scatter(1, columns, listed)
        log_q.index_copy_(0, identities, listed.log())
        floor.index_copy_(0, identities, rest.squeeze(1).log())

    log_p = statistics.log_p
    if log_p is not None:
        counts = statistics.class_counts
        weights = counts[identities] / counts.sum().clamp(min=1) * share
        log_p = (log_p.exp() + weights @ (after - before)).clamp_(min=settings.q_floor).log()
    return statistics._replace(centroids=centroids, log_p=log_p)


def _of_group(
    groups: Tensor, known: Tensor, values: Tensor, momentum: float
) -> Tuple[Tensor, Tensor, Tensor]:
    """For each row the mean of its group, how far the group moves, and the row's share of it.

    Args:
        groups: (n,), int64.
        known: (n,), bool: the rows that count.
        values: (n, d), finite.
        momentum: in (0, 1).

    Returns:
        (n, d), (n, 1) and (n,); the shares of a group sum to one.
    """
    together = groups[:, None] == groups
    counts = (together & known).sum(dim=1, keepdim=True)
    weights = (together & known).to(values.dtype) / counts.clamp(min=1)
    with full_precision(values.device):
        mean = weights @ values
    step = 1 - (1 - momentum) ** counts.to(values.dtype)
    return mean, step, 1 / together.sum(dim=1).to(values.dtype)
