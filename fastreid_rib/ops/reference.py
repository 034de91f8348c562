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
    """What :func:`fastreid_rib.losses.rib_loss` computes: in float64, one image after the other.

    Shares no code with the implementations and uses explicit distances ``|F_i - C_a|^2``. Slow.
    Arguments and errors as ``rib_loss``, ``form`` and ``log_p`` as :func:`fastreid_rib.ops.bound`;
    differentiable as often as wanted, with respect to centroids, ``log_q`` and ``log_p`` too.

    Returns:
        float64, nats: scalar for "mean" (over images with a label >= 0; 0 if there are none) and
        "sum", (n,) for "none".
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if form not in ("clusters", "embedding"):
        raise ValueError(f"form must be 'clusters' or 'embedding', got {form!r}")
    marginal = torch.zeros_like(centroids[:, 0]) if log_p is None else log_p
    losses = []
    counted = 0
    for embedding, label in zip(embeddings.double(), labels.tolist()):
        if label < 0:
            losses.append(torch.zeros((), dtype=torch.float64, device=embedding.device))
            continue
        counted += 1
        feature = embedding / embedding.square().sum().sqrt()
        exponents = -beta * (feature - centroids.double()).square().sum(dim=1)
        log_phi = exponents - torch.logsumexp(exponents, dim=0)
        compression = (log_phi.exp() * (log_phi - marginal.double())).sum()
        log_ratio = log_q[label].double() - marginal.double()
        if form == "clusters":
            relevance = (log_phi.exp() * log_ratio).sum()
        else:
            relevance = torch.logsumexp(log_phi + log_ratio, dim=0)
        losses.append(gamma * compression - relevance)
    per_image = torch.stack(losses) if losses else embeddings.double().sum(dim=1)
    if reduction == "none":
        return per_image
    return per_image.sum() if reduction == "sum" else per_image.sum() / max(counted, 1)
