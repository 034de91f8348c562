"""The bound written out from its definition, to check every implementation against."""

from typing import Optional

import torch
from torch import Tensor


def rib_loss_reference(
    embeddings: Tensor,
    labels: Tensor,
    centroids: Tensor,
    log_q: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    form: str = "clusters",
    log_p: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """What :func:`fastreid_rib.losses.rib_loss` computes, in float64.

    Shares no code with the implementations and uses explicit distances ``|F_i - C_a|^2``: (n, K, D)
    numbers.
    Arguments as ``rib_loss``, without ``mean`` and ``backend``; ``form`` and ``reduction`` alone
    are checked. Differentiable as often as wanted, with respect to centroids, ``log_q`` and
    ``log_p`` too.

    Returns:
        float64, nats: scalar for "mean" (over images with a label >= 0; 0 if there are none) and
        "sum", (n,) for "none".
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if form not in ("clusters", "embedding"):
        raise ValueError(f"form must be 'clusters' or 'embedding', got {form!r}")
    known = (labels >= 0) & (embeddings != 0).any(dim=1)
    features = embeddings.double()[known]
    features = features / features.square().sum(dim=1, keepdim=True).sqrt()
    exponents = -beta * (features[:, None] - centroids.double()).square().sum(dim=2)
    log_phi = exponents - torch.logsumexp(exponents, dim=1, keepdim=True)
    marginal = torch.zeros_like(centroids[:, 0]) if log_p is None else log_p
    compression = (log_phi.exp() * (log_phi - marginal.double())).sum(dim=1)
    log_ratio = log_q.double()[labels[known]] - marginal.double()
    if form == "clusters":
        relevance = (log_phi.exp() * log_ratio).sum(dim=1)
    else:
        relevance = torch.logsumexp(log_phi + log_ratio, dim=1)
    losses = gamma * compression - relevance
    if reduction == "none":
        return losses.new_zeros(len(labels)).masked_scatter(known, losses)
    return losses.sum() if reduction == "sum" else losses.sum() / max(len(losses), 1)
