"""The class table: what identities look like in the clusters, and to other cameras.

An image is retrieved by those that other cameras took of its identity. So where cameras are known,
the row that it is compared with, ``Q_v(a|y)``, is the mean soft assignment of the images of its
identity y that were not taken by its own camera v. Ours; docs/method.md has the bound. Identities
that one camera alone has seen keep the row of all their images.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, V cameras, M pairs of an
identity, seen by two cameras or more, and one of them.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.losses.clustering import Sums, add_identities_, chunks, empty_sums
from fastreid_rib.ops import add_soft_assignments_
from fastreid_rib.ops.assignment import soft_assignment
from fastreid_rib.ops.sums import group_sum
from fastreid_rib.settings.rib import RIBSettings


class Rows(NamedTuple):
    """Embeddings of an epoch as they are clustered; every rank holds all of them."""

    embeddings: Tensor
    """(N, D), N >= 1, float16 or float32, L2-normalised."""
    labels: Tensor
    """(N,), int64, 0..C-1."""
    cameras: Optional[Tensor]
    """(N,), int64, >= 0; None: not known, or of no interest."""


class Identities(NamedTuple):
    """What was last seen of the identities."""

    counts: Tensor
    """(C,), int64: rows behind each mean; 0: never seen."""
    means: Tensor
    """(C, D), float32."""


class CameraTable(NamedTuple):
    """A class table with rows of its own for the cameras of identities."""

    log_q: Tensor
    """(C + M, K): the rows of the identities, and behind them those of the pairs."""
    rows: Tensor
    """(C, V), int64: which row an image of an identity, from a camera, is compared with."""
    cameras: Tensor
    """(V,), int64: the cameras, sorted."""
    marginal: Tensor
    """(K,), float64: sum over images of the rows that they are compared with."""


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


def marginal_of(rows: Rows, identities: Identities, centroids: Tensor, beta: float) -> Tensor:
    """P(a) = sum_y p(y) Q(a|y) of rows of Q that are not smoothed: (K,), sums to one.

    A pass of its own in front of the table's: no matrix of identities by clusters is kept.
    """
    embeddings, (counts, means) = rows.embeddings, identities
    total = torch.zeros(len(centroids), dtype=torch.float64, device=embeddings.device)
    share = ranks.own_slice(len(embeddings))
    for chunk in chunks(share.stop - share.start, len(centroids)):
        part = embeddings[share.start + chunk.start : share.start + chunk.stop].float()
        total += soft_assignment(part, centroids, beta).double().sum(dim=0)
    ranks.sum_over_ranks(total)
    shown = torch.bincount(rows.labels, minlength=len(counts)) > 0
    absent = (~shown & (counts > 0)).nonzero().squeeze(1)
    for chunk in chunks(len(absent), len(centroids)):
        some = absent[chunk]
        total += counts[some].double() @ soft_assignment(means[some], centroids, beta).double()
    return (total / counts.sum()).float()


def build_table(
    rows: Rows,
    identities: Identities,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Tuple[Tensor, Sums]:
    """log Q, (C, K) float32, and the sums for the report.

    Block by block of identities, each rank its share of them. Calls collectives.

    Args:
        rows: of the epoch.
        identities: with those that the rows lack.
        centroids: (K, D), float32.
        marginal: (K,), float32: what Q is smoothed with; None: it is not.
        settings: of the loss.
    """
    counts, means = identities
    in_rows = torch.bincount(rows.labels, minlength=len(counts))
    order = rows.labels.sort(stable=True).indices
    ends: List[int] = [0, *in_rows.cumsum(0).tolist()]
    # An identity costs its images, and its row of the table.
    share = ranks.own_share(in_rows + 1)

    own = share.stop - share.start
    log_q = torch.zeros(own, len(centroids), device=centroids.device)
    sums = empty_sums(len(centroids), centroids.device)
    for part in chunks(own, len(centroids)):
        block = slice(share.start + part.start, share.start + part.stop)
        of_block = order[ends[block.start] : ends[block.stop]]
        of_identities, negentropy = _sums_of_block(rows, of_block, block, centroids, settings)
        sums.images.add_(len(of_block))
        sums.feature_negentropy.add_(negentropy)
        q = _rows_of_block(of_identities, counts[block], means[block], centroids, settings.beta)
        made = log_q[part] = _log_rows(q, marginal, settings)
        add_identities_(sums, of_identities, made, counts[block])
    ranks.sum_over_ranks(*sums)
    return ranks.join_slices(log_q, len(counts), share), sums


def across_cameras(
    rows: Rows,
    log_q: Tensor,
    counts: Tensor,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Optional[CameraTable]:
    """Adds rows for pairs of identity and camera to a class table; None: there are none.

    Args:
        rows: of the epoch.
        log_q: (C, K): the rows of the identities.
        counts: (C,), int64: images behind the row of each identity.
        centroids: (K, D), float32.
        marginal: (K,), float32: what rows are smoothed with; None: they are not.
        settings: of the loss.
    """
    if rows.cameras is None:
        return None
    known, places = torch.unique(rows.cameras, return_inverse=True)
    pairs, of_pair = torch.unique(rows.labels * len(known) + places, return_inverse=True)
    owners = torch.div(pairs, len(known), rounding_mode="floor")
    several = torch.bincount(owners, minlength=len(counts)) > 1
    kept = several[owners]
    if not bool(kept.any()):
        return None
    number = kept.cumsum(0) - 1  # of a pair among those that are kept
    pairs, owners, usable = pairs[kept], owners[kept], kept[of_pair]
    of_pairs = Rows(rows.embeddings[usable], number[of_pair[usable]], None)
    made, total = _rows_of_pairs(of_pairs, owners, len(counts), centroids, marginal, settings)
    alone = torch.where(several, torch.zeros_like(counts), counts)
    total += alone.double() @ log_q.double().exp()
    where = torch.arange(len(counts), device=owners.device)[:, None].repeat(1, len(known))
    where.view(-1)[pairs] = torch.arange(len(pairs), device=owners.device) + len(counts)
    return CameraTable(torch.cat([log_q, made]), where, known, total)


def _rows_of_pairs(
    rows: Rows,
    owners: Tensor,
    num_classes: int,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Tuple[Tensor, Tensor]:
    """log Q of M pairs, (M, K), and the sum over their images, (K,); each rank makes its share.

    ``rows`` are those of the pairs, which are their labels; ``owners``, (M,), sorted, the
    identities of the pairs. The rest is as for :func:`across_cameras`.
    """
    images = torch.bincount(rows.labels, minlength=len(owners))
    order = rows.labels.sort(stable=True).indices
    ends: List[int] = [0, *images.cumsum(0).tolist()]
    # A rank has all pairs of an identity: their sum is what each of them is subtracted from.
    of_owner = torch.bincount(owners, minlength=num_classes)
    begins: List[int] = [0, *of_owner.cumsum(0).tolist()]
    weights = group_sum((images + 1)[:, None].double(), owners, num_classes).squeeze(1).long()
    identities = ranks.own_share(weights + 1)
    own = slice(begins[identities.start], begins[identities.stop])

    log_q = torch.zeros(own.stop - own.start, len(centroids), device=centroids.device)
    total = torch.zeros(len(centroids), dtype=torch.float64, device=centroids.device)
    most = int(of_owner.max())
    for part in chunks(identities.stop - identities.start, len(centroids) * most):
        first, last = identities.start + part.start, identities.start + part.stop
        block = slice(begins[first], begins[last])
        of_block = order[ends[block.start] : ends[block.stop]]
        sums, _ = _sums_of_block(rows, of_block, block, centroids, settings)
        owner = owners[block] - first
        # In float64 what is left is exact, however small it is beside what is subtracted.
        theirs, there = sums.double(), images[block][:, None].double()
        others = group_sum(theirs, owner, last - first)[owner] - theirs
        q = (others / (group_sum(there, owner, last - first)[owner] - there)).float()
        made = _log_rows(q, marginal, settings)
        total += images[block].double() @ made.double().exp()
        log_q[block.start - own.start : block.stop - own.start] = made
    ranks.sum_over_ranks(total)
    return ranks.join_slices(log_q, len(owners), own), total


def _sums_of_block(
    rows: Rows, of_block: Tensor, block: slice, centroids: Tensor, settings: RIBSettings
) -> Tuple[Tensor, Tensor]:
    """Sums of phi of a block of labels, (labels, K), and the sum of its phi log phi, float64.

    ``of_block``, (n,), int64: the rows whose labels these are.
    """
    sums = centroids.new_zeros(block.stop - block.start, len(centroids))
    negentropy = torch.zeros((), dtype=torch.float64, device=centroids.device)
    for chunk in chunks(len(of_block), len(centroids)):
        some = of_block[chunk]
        negentropy += add_soft_assignments_(
            sums, rows.embeddings[some].float(), centroids, rows.labels[some] - block.start,
            settings.beta, settings.backend,
        ).double().sum()  # fmt: skip
    return sums, negentropy


def _rows_of_block(
    of_identities: Tensor, counts: Tensor, means: Tensor, centroids: Tensor, beta: float
) -> Tensor:
    """Q of a block of identities, (identities, K) float32, from its sums of phi."""
    images = of_identities.sum(dim=1, keepdim=True)
    q = of_identities / images.clamp(min=torch.finfo(of_identities.dtype).tiny)
    # One that the epoch did not show is expressed in the new clusters by its last mean.
    absent = ((images.squeeze(1) == 0) & (counts > 0)).nonzero().squeeze(1)
    if len(absent):
        q[absent] = soft_assignment(means[absent], centroids, beta)
    return q.masked_fill_((counts == 0)[:, None], 1 / len(centroids))


def _log_rows(q: Tensor, marginal: Optional[Tensor], settings: RIBSettings) -> Tensor:
    """Rows of Q smoothed, raised to the floor, and their logarithms: (rows, K) float32."""
    if marginal is not None:
        q.lerp_(marginal, settings.smoothing)
    return q.clamp(min=settings.q_floor).log().float()
