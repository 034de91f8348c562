"""K-means over rows that every rank holds, and what its clusters tell, in nats.

Legend: N rows, D dimensions; F~ and X~ the random clusters of the feature (K of them) and of the
input, Y the identity; phi soft assignments; Q(a|y) the class table.

The plug-in measures of a refresh follow from a few sums, the :class:`Sums`; they add up over ranks
and over blocks of identities, so no (N, K) matrix needs to exist.
"""

import random
from typing import Iterator, NamedTuple, Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.ops.assignment import centroid_products, half_squared_norms
from fastreid_rib.ops.sums import group_sum

# Elements of the largest temporary, (rows of a chunk, clusters): 16 MiB in float32.
_CHUNK_ELEMENTS = 2**22
# Weight of a row that coincides with a seed: chosen only when nothing else is left.
_SMALLEST_WEIGHT = 1e-12


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` rows such that a (chunk, columns) matrix stays small."""
    step = max(1, min(_CHUNK_ELEMENTS // max(columns, 1), 8192))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm from given centroids, until nothing moves or the iterations are used up.

    A cluster that lost all rows moves to the row farthest from its centroid (the second empty one
    to the second farthest row, and so on), so the result does not depend on a generator. Calls
    collectives: every rank must call it, with the same arguments.

    Args:
        rows: (N, D), N >= 1, floating point; the products are in float32.
        centroids: (K, D), the start; K may exceed N.
        iterations: most iterations, >= 0.

    Returns:
        (K, D) float32, the same bits on every rank.
    """
    own = rows[ranks.own_slice(len(rows))].float()
    centroids = centroids.float()
    index = own.new_full((len(own),), -1, dtype=torch.int64)
    for _ in range(iterations):
        before = index
        index, similarity = _nearest(own, centroids)
        sums, counts = _sums_and_counts(own, index, len(centroids))
        moved = (index != before).sum()
        ranks.sum_over_ranks(sums, counts, moved)
        empty = (counts == 0).nonzero().squeeze(1)
        if not moved and not len(empty):
            break  # the means of the same rows are the centroids that are there already
        centroids = sums / counts.clamp(min=1)[:, None]
        if len(empty):
            distances = ranks.join_slices(_squared_distances(own, similarity), len(rows))
            farthest = distances.sort(descending=True, stable=True).indices
            order = torch.arange(len(empty), device=rows.device) % len(rows)
            centroids[empty] = rows[farthest[order]].float()
    return ranks.copy_from_first(centroids.contiguous().clone())


def spread_seeds(rows: Tensor, clusters: int, draw: random.Random) -> Tensor:
    """Starting centroids by k-means++: rows drawn in proportion to their squared distance.

    Beyond 64 clusters several seeds are drawn a round (as k-means|| does, Bahmani et al. 2012),
    since one pass over the rows per seed would read N x D numbers K times. Calls collectives.

    Args:
        rows: (N, D), N >= 1.
        clusters: number of seeds K >= 1; beyond N rows repeat.
        draw: source of all chance, in the same state on every rank.

    Returns:
        (K, D) float32.
    """
    # Drawn on the host: the same rows on every device and every rank.
    generator = torch.Generator().manual_seed(draw.getrandbits(63))
    own = rows[ranks.own_slice(len(rows))].float()
    similarity = own.new_full((len(own),), -float("inf"))
    picked = torch.tensor([draw.randrange(len(rows))])
    chosen = picked
    while len(chosen) < clusters:
        seeds = rows[picked.to(rows.device)].float()
        similarity = torch.maximum(similarity, _nearest(own, seeds)[1])
        distances = ranks.join_slices(_squared_distances(own, similarity), len(rows))
        weights = distances.double().clamp(min=_SMALLEST_WEIGHT).cpu()
        size = min(-(-clusters // 64), clusters - len(chosen))
        picked = torch.multinomial(weights, size, size > len(rows), generator=generator)
        chosen = torch.cat([chosen, picked])
    return rows[chosen.to(rows.device)].float()


def _squared_distances(rows: Tensor, similarity: Tensor) -> Tensor:
    """(N,): squared distance to the nearest centroid, from what :func:`_nearest` gives."""
    return (rows.square().sum(dim=1) - 2 * similarity).clamp(min=0)


def _nearest(rows: Tensor, centroids: Tensor) -> Tuple[Tensor, Tensor]:
    """Nearest centroid of each row (ties: the first), and ``F.C - |C|^2 / 2`` for it: (N,) both."""
    norms = half_squared_norms(centroids)
    index = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    similarity = rows.new_empty(len(rows))
    for chunk in chunks(len(rows), len(centroids)):
        scores = centroid_products(rows[chunk], centroids).sub_(norms)
        similarity[chunk], index[chunk] = scores.max(dim=1)
    return index, similarity


def _sums_and_counts(rows: Tensor, index: Tensor, clusters: int) -> Tuple[Tensor, Tensor]:
    """Sums (K, D) and counts (K,) of the rows assigned to each cluster, both float32."""
    ones = rows.new_ones(len(rows), 1)
    return group_sum(rows, index, clusters), group_sum(ones, index, clusters).squeeze(1)


class Sums(NamedTuple):
    """Sums over images and over identities, float64, with t_ya = sum_i 1[y_i = y] phi(F_i, a)."""

    images: Tensor
    """(): number of images."""
    feature_negentropy: Tensor
    """(): sum_i sum_a phi(F_i, a) log phi(F_i, a)."""
    features: Tensor
    """(K,): sum_y t_ya."""
    label_negentropy: Tensor
    """(): sum_y n_y log n_y, with n_y = sum_a t_ya."""
    joint_negentropy: Tensor
    """(): sum_y sum_a t_ya log t_ya."""
    log_likelihood: Tensor
    """(): sum_y sum_a t_ya log Q(a|y)."""
    marginal: Tensor
    """(K,): sum_y w_y Q(a|y), with w_y the images of an identity when it was last seen."""


def empty_sums(clusters: int, device: torch.device) -> Sums:
    """Sums of nothing, for K clusters."""
    sizes = ((clusters,) if name in ("features", "marginal") else () for name in Sums._fields)
    return Sums(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))


def add_identities_(sums: Sums, of_identities: Tensor, log_q: Tensor, counts: Tensor) -> None:
    """Adds identities to the sums, in place, each with all of its images.

    Args:
        sums: changed in place, but for those over images.
        of_identities: (identities, K), floating point: t_ya.
        log_q: (identities, K): their rows of the table.
        counts: (identities,): images of each when it was last seen.
    """
    log_likelihood = (of_identities * log_q).sum(dtype=torch.float64)
    of_identities = of_identities.double()
    sums.features.add_(of_identities.sum(dim=0))
    sums.label_negentropy.add_(negentropy(of_identities.sum(dim=1)))
    sums.joint_negentropy.add_(negentropy(of_identities))
    sums.log_likelihood.add_(log_likelihood)
    sums.marginal.add_(counts.double() @ log_q.double().exp())


def negentropy(weights: Tensor) -> Tensor:
    """sum w log w of weights >= 0, which need not sum to one."""
    # The least normal number: 0 log 0 counts as 0. (torch.xlogy is several times slower.)
    return (weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum()


def label_information(sums: Sums) -> Tensor:
    """I(F~; Y): what the clusters tell about the identity."""
    images = sums.features.sum()
    of_both = sums.label_negentropy + negentropy(sums.features) - negentropy(images)
    return (sums.joint_negentropy - of_both) / images


def conditional_bound(sums: Sums) -> Tensor:
    """KLB = mean_i KL(phi(F_i,.) || Q(.|y_i)): ours (compare Fischer 2020, "The CEB").

    Tighter than the paper's bound, and needs neither its constant nor its input clusters. A Q that
    was floored and so sums to a little more than one lowers it by at most the excess.
    """
    return sums.feature_negentropy / sums.images - sums.log_likelihood / sums.images
