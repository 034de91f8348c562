"""What an identity looks like to other cameras: rows of the class table for each of its cameras.

An image is retrieved by those that other cameras took of its identity. So the row that it is
compared with, ``Q_v(a|y)``, is the mean soft assignment of the images of its identity y that were
not taken by its own camera v. Ours; docs/method.md has the bound. Identities that one camera alone
has seen keep the row of all their images.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, V cameras, M pairs of an
identity, seen by two cameras or more, and one of them; m entries kept of a row of Q.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.losses.class_table import (
    ClassTable,
    class_table,
    empty_table,
    join_shares,
    put_rows_,
    weighted_sum,
)
from fastreid_rib.losses.clustering import chunks
from fastreid_rib.ops import add_soft_assignments_
from fastreid_rib.ops.assignment import half_squared_norms
from fastreid_rib.ops.group_sum import group_sum
from fastreid_rib.settings.rib import RIBSettings


class CameraTable(NamedTuple):
    """A class table with rows of its own for the cameras of identities."""

    table: ClassTable
    """(C + M, ...): the rows of the identities, and behind them those of the pairs."""
    rows: Tensor
    """(C, V), int64: which row an image of an identity, from a camera, is compared with."""
    cameras: Tensor
    """(V,), int64: the cameras, sorted."""
    marginal: Tensor
    """(K,), float64: sum over images of the rows that they are compared with."""


def join_cameras(labels: Tensor, cameras: Optional[Tensor], num_classes: int) -> Tensor:
    """One number for identity and camera, (n,) int64; negative labels stay what they are.

    Args:
        labels: (n,), int64, < num_classes.
        cameras: (n,), int64, >= 0; None: not known, which is written as camera 0.
        num_classes: number of identities C.
    """
    if cameras is None:
        return labels
    return torch.where(labels < 0, labels, labels + num_classes * cameras.clamp(min=0))


def split_cameras(joined: Tensor, num_classes: int) -> Tuple[Tensor, Tensor]:
    """Identities and cameras of :func:`join_cameras`: (n,) and (n,), both -1 where negative."""
    known = joined >= 0
    none = torch.full_like(joined, -1)
    return (
        torch.where(known, joined % num_classes, none),
        torch.where(known, torch.div(joined, num_classes, rounding_mode="floor"), none),
    )


def row_of(labels: Tensor, cameras: Tensor, rows: Tensor, known: Tensor) -> Tensor:
    """The row of the table for each image, (n,) int64, without waiting for a GPU.

    Args:
        labels: (n,), int64; one that is negative or no identity gives -1.
        cameras: (n,), int64; one that is not known gives the row of the identity.
        rows: (C, V), int64, of :class:`CameraTable`.
        known: (V,), int64, its cameras.
    """
    identities = labels.clamp(0, len(rows) - 1)
    places = torch.searchsorted(known, cameras).clamp(max=len(known) - 1)
    found = torch.where(known[places] == cameras, rows[identities, places], identities)
    return torch.where(labels == identities, found, torch.full_like(found, -1))


def across_cameras(
    identities: ClassTable,
    rows: Tensor,
    labels: Tensor,
    cameras: Tensor,
    counts: Tensor,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Optional[CameraTable]:
    """Adds rows for pairs of identity and camera to a class table; None: there are none.

    Calls collectives: every rank calls it with the same arguments and gets the same result.

    Args:
        identities: the rows of the identities, (C, ...).
        rows: (N, D), as clustered.
        labels: (N,), int64, 0..C-1.
        cameras: (N,), int64.
        counts: (C,), int64: images behind the row of each identity.
        centroids: (K, D), float32.
        marginal: (K,), float32: what rows are smoothed with; None: they are not.
        settings: of the loss.
    """
    num_classes, num_clusters = len(counts), len(centroids)
    known, places = torch.unique(cameras, return_inverse=True)
    pairs, of_pair = torch.unique(labels * len(known) + places, return_inverse=True)
    owners = torch.div(pairs, len(known), rounding_mode="floor")
    several = torch.bincount(owners, minlength=num_classes) > 1
    kept = several[owners]
    if not bool(kept.any()):
        return None
    number = kept.cumsum(0) - 1  # of a pair among those that are kept
    pairs, owners = pairs[kept], owners[kept]
    usable = kept[of_pair]
    rows, of_pair = rows[usable], number[of_pair[usable]]
    images = torch.bincount(of_pair, minlength=len(pairs))

    made, total = _rows_of_pairs(
        rows, of_pair, owners, images, num_classes, centroids, marginal, settings
    )
    alone = torch.where(several, torch.zeros_like(counts), counts)
    total += weighted_sum(alone, identities, num_clusters)
    where = torch.arange(num_classes, device=labels.device)[:, None].repeat(1, len(known))
    where.view(-1)[pairs] = torch.arange(len(pairs), device=labels.device) + num_classes
    table = [None if a is None else torch.cat([a, b]) for a, b in zip(identities, made)]  # type: ignore[list-item]
    return CameraTable(ClassTable(*table), where, known, total)  # type: ignore[arg-type]


def _rows_of_pairs(
    rows: Tensor,
    of_pair: Tensor,
    owners: Tensor,
    images: Tensor,
    num_classes: int,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Tuple[ClassTable, Tensor]:
    """The rows of M pairs, and their sum weighted by ``images``; each rank makes its share.

    Args:
        rows: (N, D), of these pairs.
        of_pair: (N,), int64: the pair of each.
        owners: (M,), int64, sorted: the identity of each pair.
        images: (M,), int64: of each pair.
        num_classes: number of identities C.
        centroids: (K, D), float32.
        marginal: (K,), float32, or None.
        settings: of the loss.
    """
    num_clusters = len(centroids)
    order = of_pair.sort(stable=True).indices
    ends: List[int] = [0, *images.cumsum(0).tolist()]
    # A rank has all pairs of an identity: their sum is what each of them is taken off.
    of_owner = torch.bincount(owners, minlength=num_classes)
    begins: List[int] = [0, *of_owner.cumsum(0).tolist()]
    weights = group_sum((images + 1)[:, None].double(), owners, num_classes).squeeze(1).long()
    identities = ranks.own_share(weights + 1)
    own = slice(begins[identities.start], begins[identities.stop])

    size = own.stop - own.start
    table = empty_table(size, settings.table_entries, num_clusters, centroids.device)
    total = torch.zeros(num_clusters, dtype=torch.float64, device=centroids.device)
    norms = half_squared_norms(centroids)
    most = int(of_owner.max())
    for part in chunks(identities.stop - identities.start, num_clusters * most):
        first, last = identities.start + part.start, identities.start + part.stop
        block = slice(begins[first], begins[last])
        sums = centroids.new_zeros(block.stop - block.start, num_clusters)
        of_block = order[ends[block.start] : ends[block.stop]]
        for chunk in chunks(len(of_block), num_clusters):
            some = of_block[chunk]
            add_soft_assignments_(
                sums, rows[some].float(), centroids, of_pair[some] - block.start, settings.beta,
                half_norms=norms, deterministic=True, backend=settings.backend,
            )  # fmt: skip
        owner = owners[block] - first
        # In float64 what is left is exact, however small it is beside what is taken off.
        theirs, there = sums.double(), images[block][:, None].double()
        others = group_sum(theirs, owner, last - first)[owner] - theirs
        q = (others / (group_sum(there, owner, last - first)[owner] - there)).float()
        if marginal is not None:
            q.lerp_(marginal, settings.smoothing)
        made = class_table(q, settings.table_entries, settings.q_floor)
        total += weighted_sum(images[block], made, num_clusters)
        put_rows_(table, slice(block.start - own.start, block.stop - own.start), made)
    ranks.sum_over_ranks(total)
    return join_shares(table, len(owners), own), total
