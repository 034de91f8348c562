"""The bound written out from its definition, to check every implementation against."""

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
    reduction: str = "mean",
) -> Tensor:
    """What :func:`fastreid_rib.losses.rib_loss` computes: in float64, one image after the other.

    Shares no code with the implementations and uses explicit distances ``|F_i - C_a|^2``. Slow.
    Arguments and errors as ``rib_loss``; differentiable as often as wanted, with respect to
    centroids and ``log_q`` too.

    Returns:
        float64, nats: scalar for "mean" (over images with a label >= 0; 0 if there are none) and
        "sum", (n,) for "none".
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
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
        log_ratio = gamma * log_phi - log_q[label].double()
        losses.append((log_phi.exp() * log_ratio).sum())
    per_image = torch.stack(losses) if losses else embeddings.double().sum(dim=1)
    if reduction == "none":
        return per_image
    return per_image.sum() if reduction == "sum" else per_image.sum() / max(counted, 1)
