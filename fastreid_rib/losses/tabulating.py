"""The class table of an epoch's rows under new centroids, built block by block of identities.

Legend: N rows in the reservoir, D dimensions, K clusters, C identities, P input values an image.
"""

from typing import List, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.losses import information
from fastreid_rib.losses.class_table import (
    ClassTable,
    class_table,
    empty_table,
    join_shares,
    put_rows_,
    sum_of_logs,
    weighted_sum,
)
from fastreid_rib.losses.clustering import chunks
from fastreid_rib.ops import add_soft_assignments_
from fastreid_rib.ops.assignment import half_squared_norms, log_soft_assignment, soft_assignment
from fastreid_rib.ops.group_sum import group_sum
from fastreid_rib.settings.rib import RIBSettings


def build_table(
    rows: Tensor,
    labels: Tensor,
    inputs: Optional[Tensor],
    counts: Tensor,
    means: Tensor,
    centroids: Tensor,
    input_centroids: Optional[Tensor],
    marginal: Optional[Tensor],
    settings: RIBSettings,
) -> Tuple[ClassTable, information.Sums]:
    """Q and the sums for the report: block by block of identities, each rank its share of them.

    Only one block at a time has a row of K numbers for each identity. Calls collectives.

    Args:
        rows: (N, D), as clustered.
        labels: (N,), int64, 0..C-1.
        inputs: (N, P), or None.
        counts: (C,), int64: rows behind each mean.
        means: (C, D), float32: of identities that the rows may lack.
        centroids: (K, D), float32.
        input_centroids: (K, P), float32, with ``inputs``.
        marginal: (K,), float32: what Q is smoothed with; None: it is not.
        settings: of the loss.
    """
    num_classes, num_clusters, beta = len(counts), len(centroids), settings.beta
    in_rows = torch.bincount(labels, minlength=num_classes)
    order = labels.sort(stable=True).indices
    ends: List[int] = in_rows.cumsum(0).tolist()
    # An identity costs its images, and its row of the table.
    share = ranks.own_share(in_rows + 1)

    own = share.stop - share.start
    table = empty_table(own, settings.table_entries, num_clusters, centroids.device)
    sums = information.empty_sums(
        num_clusters, 0 if input_centroids is None else len(input_centroids), centroids.device
    )
    norms = half_squared_norms(centroids)
    for part in chunks(own, num_clusters):
        block = slice(share.start + part.start, share.start + part.stop)
        begin = ends[block.start - 1] if block.start else 0
        of_block = order[begin : ends[block.stop - 1]]
        of_identities = centroids.new_zeros(part.stop - part.start, num_clusters)
        for chunk in chunks(len(of_block), num_clusters):
            images = of_block[chunk]
            embeddings, identities = rows[images].float(), labels[images] - block.start
            if inputs is not None and input_centroids is not None:
                # The joint table needs the soft assignments themselves.
                log_phi = log_soft_assignment(embeddings, centroids, beta)
                log_phi_x = log_soft_assignment(inputs[images].float(), input_centroids, beta)
                information.add_images_(sums, log_phi, log_phi_x)
                of_identities += group_sum(log_phi.exp(), identities, len(of_identities))
                continue
            negentropy = add_soft_assignments_(
                of_identities, embeddings, centroids, identities, beta,
                half_norms=norms, deterministic=True, backend=settings.backend,
            )  # fmt: skip
            sums.images.add_(len(images))
            sums.feature_negentropy.add_(negentropy.double().sum())
        q = _rows_of_block(of_identities, counts[block], means[block], centroids, beta)
        if marginal is not None:
            q.lerp_(marginal, settings.smoothing)
        made = class_table(q, settings.table_entries, settings.q_floor)
        information.add_identities_(
            sums,
            of_identities,
            sum_of_logs(of_identities, made),
            weighted_sum(counts[block], made, num_clusters),
        )
        put_rows_(table, part, made)
    ranks.sum_over_ranks(*sums)
    return join_shares(table, num_classes, share), sums


def marginal_of(
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
