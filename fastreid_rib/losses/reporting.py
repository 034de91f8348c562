"""What a refresh tells of itself, in nats."""

from typing import Dict, Optional

import torch
from torch import Tensor

from fastreid_rib.base import ranks
from fastreid_rib.losses import information
from fastreid_rib.losses.clustering import chunks
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.ops import bound
from fastreid_rib.settings.rib import RIBSettings


def report_of(
    sums: information.Sums,
    gamma: float,
    log_p: Optional[Tensor],
    weight: Tensor,
    losses: Optional[Tensor],
    with_inputs: bool,
) -> Dict[str, float]:
    """The report of a refresh, see ``RIBLoss.start_epoch``.

    Args:
        sums: sums over the rows of the epoch.
        gamma: multiplier of the compression.
        log_p: (K,), log of the marginal, or None.
        weight: (), images behind the marginal.
        losses: (), the mean loss of the rows; None: it follows from the sums (form "clusters"
            without cameras).
        with_inputs: whether inputs came, whose own information is reported too.
    """
    label_information = information.label_information(sums)
    report = {
        "mutual_information": label_information,
        "klb": information.conditional_bound(sums),
    }
    # Of the embedding itself, whose own information nobody can count, or of rows that other cameras
    # made, which bound another information than that of the identity alone.
    if losses is not None:
        report["bound"] = losses
    else:
        report["bound"] = information.lagrangian_bound(sums, gamma, log_p)
        bounded = gamma * information.feature_information(sums) - label_information
        # P counts identities that these rows do not show: it is as much too small for those shown.
        absent = 0.0 if log_p is None else (weight / sums.images).log()
        report["slack"] = report["bound"] + absent - bounded
    if with_inputs:
        report["input_information"] = information.input_information(sums)
        report["ib"] = information.information_bottleneck(sums)
        report["ibb"] = information.variational_bound(sums)
        report["c0"] = information.bound_constant(sums)
    return {name: float(value) for name, value in report.items()}


def mean_loss(
    rows: Tensor, labels: Tensor, statistics: Statistics, settings: RIBSettings
) -> Tensor:
    """What the loss would be on the rows themselves, float64, the same on every rank.

    Args:
        rows: (N, D), as clustered.
        labels: (N,), int64: the row of the table for each.
        statistics: with the table.
        settings: of the loss.
    """
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
