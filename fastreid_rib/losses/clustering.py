"""K-means over rows that every rank holds, its work divided over the ranks."""

import random
from typing import Iterator, Tuple

import torch
from torch import Tensor

from fastreid_rib.losses import ranks
from fastreid_rib.ops.group_sum import group_sum
from fastreid_rib.ops.precision import full_precision

# Elements of the largest temporary, (rows of a chunk, clusters): 16 MiB in float32.
_CHUNK_ELEMENTS = 2**22
# Weight of a row that coincides with a seed: chosen only when nothing else is left.
_SMALLEST_WEIGHT = 1e-12


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` rows such that a (chunk, columns) matrix stays small."""
    step = max(1, min(_CHUNK_ELEMENTS // max(columns, 1), 8192))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def kmeans(rows: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm from given centroids, for a fixed number of iterations.

    A cluster that lost all rows moves to the row farthest from its centroid (the second empty one
    to the second farthest row, and so on), so the result does not depend on a generator. Calls
    collectives: every rank must call it, with the same arguments.

    Args:
        rows: (N, D), N >= 1, floating point; the products are in float32.
        centroids: (K, D), the start; K may exceed N.
        iterations: >= 0.

    Returns:
        (K, D) float32, the same bits on every rank.
    """
    centroids = centroids.float()
    for _ in range(iterations):
        sums, counts, distances = _assign(rows, centroids)
        empty = (counts == 0).nonzero().squeeze(1)
        centroids = sums / counts.clamp(min=1)[:, None]
        if len(empty):
            farthest = ranks.join_slices(distances, len(rows)).sort(descending=True, stable=True)
            order = torch.arange(len(empty), device=rows.device) % len(rows)
            centroids[empty] = rows[farthest.indices[order]].float()
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
    chosen = torch.tensor([draw.randrange(len(rows))])
    distances = _squared_distances(rows, rows[chosen.to(rows.device)])
    per_round = -(-clusters // 64)
    while len(chosen) < clusters:
        size = min(per_round, clusters - len(chosen))
        weights = distances.double().clamp(min=_SMALLEST_WEIGHT).cpu()
        picked = torch.multinomial(weights, size, size > len(rows), generator=generator)
        chosen = torch.cat([chosen, picked])
        new = _squared_distances(rows, rows[picked.to(rows.device)])
        distances = torch.minimum(distances, new)
    return rows[chosen.to(rows.device)].float()


def _squared_distances(rows: Tensor, centroids: Tensor) -> Tensor:
    """(N,) float32: squared distance of each row to its nearest centroid."""
    centroids = centroids.float()
    half_norms = -0.5 * centroids.square().sum(dim=1)
    own = rows[ranks.own_slice(len(rows))]
    parts = [own.new_empty(0, dtype=torch.float32)]
    for chunk in chunks(len(own), len(centroids)):
        parts.append(_nearest(own[chunk].float(), centroids, half_norms)[1])
    return ranks.join_slices(torch.cat(parts), len(rows))


def _nearest(rows: Tensor, centroids: Tensor, half_norms: Tensor) -> Tuple[Tensor, Tensor]:
    """Index of each row's nearest centroid (ties: the first) and the squared distance to it."""
    with full_precision(rows.device):
        similarity = torch.addmm(half_norms, rows, centroids.t())
    best, index = similarity.max(dim=1)
    return index, (rows.square().sum(dim=1) - 2 * best).clamp(min=0)


def _assign(rows: Tensor, centroids: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Sums (K, D) and counts (K,) of all ranks' rows, and the squared distances of the own rows."""
    half_norms = -0.5 * centroids.square().sum(dim=1)
    sums, counts = torch.zeros_like(centroids), torch.zeros_like(half_norms)
    own = rows[ranks.own_slice(len(rows))]
    parts = [half_norms.new_empty(0)]
    for chunk in chunks(len(own), len(centroids)):
        part = own[chunk].float()
        index, distance = _nearest(part, centroids, half_norms)
        sums += group_sum(part, index, len(centroids))
        counts += group_sum(torch.ones_like(distance)[:, None], index, len(centroids))[:, 0]
        parts.append(distance)
    ranks.sum_over_ranks(sums, counts)
    return sums, counts, torch.cat(parts)
