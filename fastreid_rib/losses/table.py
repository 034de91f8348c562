"""The class table: what identities look like in the clusters, and to other cameras.

An image is retrieved by those that other cameras took of its identity. So where cameras are known,
the row that it is compared with, ``Q_v(a|y)``, is the mean soft assignment of the images of its
identity y that were not taken by its own camera v. Ours; docs/understand/derivations.md has the
bound. Identities that one camera alone has seen keep the row of all their images.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, V cameras, M pairs of an
identity, seen by two cameras or more, and one of them.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.ops.assignment import soft_assignment
from fastreid_rib.ops.sums import chunks, group_sum, negentropy
from fastreid_rib.settings.rib import RIBSettings


class Rows(NamedTuple):
    """Embeddings of an epoch as they are clustered; every rank holds all of them."""

    embeddings: Tensor
    """(N, D), N >= 1, float16 or float32, L2-normalised."""
    labels: Tensor
    """(N,), int64, 0..C-1."""
    cameras: Optional[Tensor]
    """(N,), int64, >= 0; None: not known, or of no interest."""

    def pairs(self) -> "Optional[Pairs]":
        """The pairs of identity and camera in the rows; None: cameras are not known."""
        if self.cameras is None:
            return None
        known, places = torch.unique(self.cameras, return_inverse=True)
        return Pairs(known, *torch.unique(self.labels * len(known) + places, return_inverse=True))


class Pairs(NamedTuple):
    """The pairs of an identity and a camera that saw it."""

    cameras: Tensor
    """(V,), int64, sorted."""
    codes: Tensor
    """(P,), int64, sorted: ``y * V + v``, v the place of the camera."""
    of_rows: Tensor
    """(N,), int64: the place of each row's pair."""


class Identities(NamedTuple):
    """What was last seen of the identities."""

    counts: Tensor
    """(C,), int64: rows in each mean; 0: never seen."""
    means: Tensor
    """(C, D), float32."""


class CameraTable(NamedTuple):
    """A class table with rows of its own for the cameras of identities."""

    log_q: Tensor
    """(C + M, K): the rows of the identities, and after them those of the pairs."""
    rows: Tensor
    """(C, V), int64: which row an image of an identity, from a camera, is compared with."""
    cameras: Tensor
    """(V,), int64: the cameras, sorted."""
    weights: Tensor
    """(C + M,), int64: images that are compared with each row."""


def row_of(labels: Tensor, cameras: Tensor, rows: Tensor, known: Tensor) -> Tensor:
    """The row of the table for each image, (n,) int64, without waiting for a GPU.

    A label that is no identity gives -1, a camera that is not ``known`` the row of the identity;
    ``rows`` and ``known`` are those of :class:`CameraTable`.
    """
    identities = labels.clamp(0, len(rows) - 1)
    places = torch.searchsorted(known, cameras).clamp(max=len(known) - 1)
    found = torch.where(known[places] == cameras, rows[identities, places], identities)
    return torch.where(labels == identities, found, torch.full_like(found, -1))


def marginal_of(rows: Rows, identities: Identities, centroids: Tensor, beta: float) -> Tensor:
    """P(a) = sum_y p(y) Q(a|y) of rows of Q that are not smoothed: (K,), sums to one."""
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


def sums_of_labels(
    rows: Rows, num_labels: int, centroids: Tensor, beta: float
) -> Tuple[Tensor, Tensor]:
    """Sums of phi by label, (labels, K) float32, and the sum of all phi log phi, float64.

    Each rank makes its share of the labels, in their order, so that every run gives the same bits.
    Calls collectives.
    """
    counts = torch.bincount(rows.labels, minlength=num_labels)
    order = rows.labels.sort(stable=True).indices
    ends: List[int] = [0, *counts.cumsum(0).tolist()]
    share = ranks.own_share(counts + 1)  # a label costs its images, and its row
    of_share = order[ends[share.start] : ends[share.stop]]

    sums = centroids.new_zeros(share.stop - share.start, len(centroids))
    of_images = torch.zeros((), dtype=torch.float64, device=centroids.device)
    for chunk in chunks(len(of_share), len(centroids)):
        some = of_share[chunk]
        phi = soft_assignment(rows.embeddings[some].float(), centroids, beta)
        of_images += negentropy(phi)
        shown, groups = torch.unique_consecutive(rows.labels[some], return_inverse=True)
        sums[shown - share.start] += group_sum(phi, groups, len(shown))
    ranks.sum_over_ranks(of_images)
    return ranks.join_slices(sums, num_labels, share), of_images


def class_table(
    joint: Tensor,
    identities: Identities,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Tensor:
    """log Q(a|y) of the identities, (C, K), float32, from ``joint``: the sums of phi by identity.

    ``marginal``, (K,), is what Q is smoothed with; None: it is not.
    """
    counts, means = identities
    images = joint.sum(dim=1, keepdim=True)
    q = joint / images.clamp(min=torch.finfo(joint.dtype).tiny)
    # One that the epoch did not show is expressed in the new clusters by its last mean.
    absent = ((images.squeeze(1) == 0) & (counts > 0)).nonzero().squeeze(1)
    for chunk in chunks(len(absent), len(centroids)):
        q[absent[chunk]] = soft_assignment(means[absent[chunk]], centroids, settings.beta)
    q.masked_fill_((counts == 0)[:, None], 1 / len(centroids))
    return ranks.copy_from_first(_logarithms(q, marginal, settings))


def across_cameras(
    embeddings: Tensor,
    seen: Optional[Pairs],
    log_q: Tensor,
    counts: Tensor,
    centroids: Tensor,
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Optional[CameraTable]:
    """Adds rows for pairs of identity and camera to a class table; None: there are none.

    ``seen`` are the pairs of the embeddings, ``counts``, (C,), the images in each row of ``log_q``;
    the others as in `class_table`.
    """
    if seen is None:
        return None
    known, pairs, of_pair = seen
    owners = torch.div(pairs, len(known), rounding_mode="floor")
    several = torch.bincount(owners, minlength=len(counts)) > 1
    kept = several[owners]
    if not bool(kept.any()):
        return None
    number = kept.cumsum(0) - 1  # of a pair among those that are kept
    pairs, owners, usable = pairs[kept], owners[kept], kept[of_pair]
    rows = Rows(embeddings[usable], number[of_pair[usable]], None)

    sums, _ = sums_of_labels(rows, len(pairs), centroids, settings.beta)
    images = torch.bincount(rows.labels, minlength=len(pairs))
    # In float64 what is left is exact, however small it is beside what is subtracted.
    of_owners = group_sum(sums.double(), owners, len(counts))
    others = group_sum(images[:, None].double(), owners, len(counts))[owners] - images[:, None]
    for part in chunks(len(pairs), len(centroids)):
        sums[part] = (of_owners[owners[part]] - sums[part].double()) / others[part]
    made = ranks.copy_from_first(_logarithms(sums, marginal, settings))

    where = torch.arange(len(counts), device=owners.device)[:, None].repeat(1, len(known))
    where.view(-1)[pairs] = torch.arange(len(pairs), device=owners.device) + len(counts)
    alone = torch.where(several, torch.zeros_like(counts), counts)
    return CameraTable(torch.cat([log_q, made]), where, known, torch.cat([alone, images]))


def _logarithms(q: Tensor, marginal: Optional[Tensor], settings: RIBSettings) -> Tensor:
    """Rows of Q smoothed, raised to the floor, and their logarithms; changes ``q``."""
    if marginal is not None:
        q.lerp_(marginal, settings.smoothing)
    return q.clamp_(min=settings.q_floor).log_()
