"""The RIB loss of a batch against given statistics: Wang, Jojic, Yang, arXiv 2505.08961.

Legend: n images of a batch, D dimensions, K clusters, C identities.
"""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from fastreid_rib.ops import Clusters, Objective, bound
from fastreid_rib.ops.modes import uncompiled
from fastreid_rib.settings.declaration import declared
from fastreid_rib.settings.rib import RIBSettings

_BETA, _GAMMA, _FORM = (declared(RIBSettings)[name].range for name in ("beta", "gamma", "form"))
_REDUCTIONS = ("mean", "sum", "none")
_NO_TENSOR = {  # and what to write
    "embeddings": "give the one that the retrieval uses",
    "labels": "write torch.as_tensor(labels)",
    "cameras": "write torch.as_tensor(cameras), or None. RIB takes whole batches: give the indices "
    "that a miner chose to the other loss only",
}


@uncompiled
def rib_loss(
    embeddings: Tensor,
    labels: Tensor,
    centroids: Tensor,
    log_q: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    form: str = "clusters",
    log_p: Optional[Tensor] = None,
    mean: Optional[Tensor] = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Bound of the information bottleneck against given statistics.

    With P = ``log_p.exp()`` the marginal of the clusters, or P = 1 without ``log_p``::

        "clusters":   loss_i = sum_a phi_ia (gamma log phi_ia - log Q(a|y_i) + (1 - gamma) log P_a)
        "embedding":  loss_i = gamma sum_a phi_ia (log phi_ia - log P_a)
                               - log sum_a phi_ia Q(a|y_i) / P_a

    The mean of the first is at least ``gamma I(F~;X~) - I(F~;Y)``, of the second at least ``gamma
    I(F~;X~) - I(F;Y)`` (ours; docs/understand/derivations.md has the proof). The first at gamma = 0
    without P has the gradient of the paper's bound (arXiv 2505.08961); gamma = 1, KLB, is ours.
    Equivalent plain PyTorch::

        features = F.normalize(embeddings, dim=1)
        if mean is not None:
            features = F.normalize(features - mean, dim=1)
        log_phi = (-beta * torch.cdist(features, centroids).square()).log_softmax(1)
        log_ratio = log_q[labels] - log_p
        loss = gamma * (log_phi.exp() * (log_phi - log_p)).sum(1)
        if form == "clusters":
            loss = loss - (log_phi.exp() * log_ratio).sum(1)
        else:
            loss = loss - (log_phi + log_ratio).logsumexp(1)

    Args:
        embeddings: (n, D), any floating dtype, not normalised.
        labels: (n,), int64, < C. Images with a negative label, or with an embedding of zeros, are
            ignored.
        centroids: (K, D), constant.
        log_q: (C, K), natural logarithms, constant.
        beta: sharpness of the soft assignment, > 0. Squared distances lie in 0..4.
        gamma: multiplier of the compression, >= 0; without ``log_p`` at most 1 (beyond it bounds
            nothing).
        form: "clusters" bounds -I(F~;Y), "embedding" -I(F;Y).
        log_p: (K,), log of the clusters' marginal P(a), nats, constant; None: P = 1.
        mean: (D,), constant: subtracted from the normalised embeddings. None: nothing is.
        reduction: "mean" (over the images that are not ignored), "sum" or "none".
        backend: "auto", "cuda", "cpu" or "torch": which kernels, see ``ops.backends.choose``.

    Returns:
        Nats, float32 (float64 for float64 embeddings), whatever autocast says. Scalar, or (n,) for
        "none". Differentiable once, with respect to ``embeddings``. ``torch.compile``
        calls it as it is (which ``fullgraph=True`` refuses).

    Raises:
        TypeError: ``embeddings`` or ``labels`` is no tensor.
        ValueError: a shape, dtype or value is out of its range. On a GPU a label >= C makes the
            loss NaN instead: looking at it would make the host wait.
        native.Unavailable: a backend that was asked for by name cannot be used.
    """
    settings = (("beta", beta, _BETA), ("gamma", gamma, _GAMMA), ("form", form, _FORM))
    for setting, given, values in settings:
        if not values.holds(given):
            raise ValueError(f"{setting} must be {values.text}, got {given!r}")
    if log_p is None and gamma > 1:
        raise ValueError(f"gamma must be in 0..1 (without log_p more bounds nothing), got {gamma}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    check_batch(embeddings, labels, len(log_q))
    shapes = (  # another one might broadcast
        ("centroids", centroids, (len(centroids), embeddings.shape[1])),
        ("log_q", log_q, (len(log_q), len(centroids))),
        ("log_p", log_p, (len(centroids),)),
        ("mean", mean, (embeddings.shape[1],)),
    )
    for name, value, shape in shapes:
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"{name} must be {shape}, as embeddings are {tuple(embeddings.shape)} and "
                f"centroids {tuple(centroids.shape)}, got {tuple(value.shape)}"
            )
    clusters, objective = Clusters(centroids, log_q, log_p), Objective(beta, gamma, form, backend)
    return checked_rib_loss(embeddings, labels, clusters, objective, mean, reduction)


def checked_rib_loss(
    embeddings: Tensor,
    labels: Tensor,
    clusters: Clusters,
    objective: Objective,
    mean: Optional[Tensor],
    reduction: str = "mean",
) -> Tensor:
    """As :func:`rib_loss`, of arguments that have been checked: ``RIBLoss`` does it once a step."""
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    labels = labels.masked_fill(~embeddings.detach().bool().any(dim=1), -1)  # zeros tell nothing
    known = (labels >= 0) & (labels < len(clusters.log_q))
    # Filled before the normalisation: a NaN there would come back as NaN times zero.
    embeddings = embeddings.to(dtype).masked_fill(~known[:, None], 0)
    features = F.normalize(embeddings, dim=1)
    if mean is not None:
        features = F.normalize(features - mean.to(dtype), dim=1)
    losses, _ = bound(features, labels, clusters, objective)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / known.sum().clamp(min=1)


def check_batch(embeddings: Tensor, labels: Tensor, num_classes: int, cameras: Any = None) -> None:
    """Checks what a step brings, without waiting for a GPU: raises TypeError or ValueError."""
    for name, value in (("embeddings", embeddings), ("labels", labels), ("cameras", cameras)):
        if value is None and name == "cameras":
            continue
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise TypeError(f"{name} must be a tensor, got a {kind}; {_NO_TENSOR[name]}")
        if name == "embeddings":
            if value.dim() != 2 or not value.is_floating_point():
                shape = "[None]" if value.dim() < 2 else ".flatten(1)" if value.dim() > 2 else ""
                dtype = "" if value.is_floating_point() else ".float()"
                raise ValueError(
                    f"embeddings must be (n, D) floating point, got {tuple(value.shape)} "
                    f"{value.dtype}; write embeddings{shape}{dtype}"
                )
        elif value.dtype != torch.int64 or value.shape != embeddings.shape[:1]:
            shape = ".flatten()" if value.dim() > 1 and len(value) == value.numel() else ""
            dtype = "" if value.dtype == torch.int64 else ".long()"
            raise ValueError(
                f"{name} must be ({len(embeddings)},) int64, one for each embedding, got "
                f"{tuple(value.shape)} {value.dtype}"
                + (f"; write {name}{shape}{dtype}" if shape or dtype else "")
            )
        elif value.device != embeddings.device:
            raise ValueError(
                f"{name} must be on {embeddings.device} as the embeddings are, got "
                f"{value.device}; write {name}.to(embeddings.device)"
            )
    if labels.device.type != "cpu":  # the host would wait for it
        return
    if max(labels.tolist(), default=-1) >= num_classes:
        raise ValueError(
            f"labels must be < {num_classes}, the number of identities, got {int(labels.max())}; "
            "set num_classes to the number of identities"
        )
    if cameras is not None and min(cameras.tolist(), default=0) < 0:
        raise ValueError(f"cameras must be >= 0, got {int(cameras.min())}; number them from 0")
