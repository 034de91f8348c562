"""K-means over rows that every rank holds."""

import random
from typing import Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.ops.assignment import centroid_products, half_squared_norms
from fastreid_rib.ops.sums import chunks, group_sum

# Weight of a row that coincides with a seed: chosen only when nothing else is left.
_SMALLEST_WEIGHT = 1e-12


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
        sums = group_sum(own, index, len(centroids))
        counts = torch.bincount(index, minlength=len(centroids))
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
    """Starting centroids by k-means++, (K, D) float32: rows drawn by their squared distance.

    Beyond 64 clusters several are drawn a round (as k-means|| does, Bahmani et al. 2012), since one
    pass over the (N, D) rows per seed would read them K times. Beyond N clusters rows repeat.
    ``draw`` is in the same state on every rank. Calls collectives.
    """
    # Drawn on the host: the same rows on every device and every rank.
    generator = torch.Generator("cpu").manual_seed(draw.getrandbits(63))
    own = rows[ranks.own_slice(len(rows))].float()
    similarity = own.new_full((len(own),), -float("inf"))
    picked = torch.tensor([draw.randrange(len(rows))], device="cpu")
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
