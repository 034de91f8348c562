"""The bound of one image, with the gradient in closed form.

Legend: n images, D dimensions, K clusters, C identities; F embedding, phi soft assignment,
Q(a|y) mean soft assignment of identity y at the last refresh.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops.assignment import log_soft_assignment
from fastreid_rib.ops.precision import full_precision


def bound(
    embeddings: Tensor,
    centroids: Tensor,
    log_q: Tensor,
    labels: Tensor,
    beta: float,
    gamma: float = 0.0,
) -> Tensor:
    """Upper bound of the information bottleneck, image by image.

    ``loss_i = sum_a phi_ia (gamma log phi_ia - log Q(a | y_i))``. At gamma = 0 this is the
    relevance term of the paper's bound (arXiv 2505.08961), the only one with a gradient. At
    gamma = 1 its mean is KLB, ours. Equivalent plain PyTorch::

        log_phi = (-beta * torch.cdist(embeddings, centroids).square()).log_softmax(1)
        loss = (log_phi.exp() * (gamma * log_phi - log_q[labels])).sum(1)

    Args:
        embeddings: (n, D), float32 or float64, L2-normalised.
        centroids: (K, D), same dtype; a constant, gets no gradient.
        log_q: (C, K), same dtype, natural logarithms; a constant, gets no gradient.
        labels: (n,), int64. Rows with a label outside 0..C-1 give loss 0 and gradient 0; telling
            the two sides apart would synchronise a GPU, so callers that can afford it check.
        beta: sharpness of the soft assignment, > 0.
        gamma: weight of the entropy part, 0..1.

    Returns:
        (n,), dtype of ``embeddings``, nats. Differentiable once, with respect to ``embeddings``.
    """
    return _Bound.apply(embeddings, centroids, log_q, labels, beta, gamma)


class _Bound(torch.autograd.Function):
    """Keeps d loss_i / d logits instead of the softmax, so that backward is one product."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centroids: Tensor,
        log_q: Tensor,
        labels: Tensor,
        beta: float,
        gamma: float,
    ) -> Tensor:
        loss, grad_logits = _loss_and_grad_logits(embeddings, centroids, log_q, labels, beta, gamma)
        ctx.beta = beta
        ctx.save_for_backward(grad_logits, centroids, embeddings)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad_logits, centroids, embeddings = ctx.saved_tensors
        with torch.no_grad(), full_precision(grad_loss.device):
            grad = (2 * ctx.beta * grad_loss)[:, None] * (grad_logits @ centroids)
        # once_differentiable would let the second derivative with respect to the embeddings pass
        # as zero, since grad_loss does not depend on them.
        if torch.is_grad_enabled():
            grad = _DifferentiableOnce.apply(grad, embeddings, grad_loss)
        return grad, None, None, None, None, None


class _DifferentiableOnce(torch.autograd.Function):
    """Identity on the gradient that refuses to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, embeddings: Tensor, grad_loss: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        raise RuntimeError(
            "the RIB bound is differentiable once; for second derivatives (a gradient penalty, "
            "say) use rib_loss_reference"
        )


def _loss_and_grad_logits(
    embeddings: Tensor,
    centroids: Tensor,
    log_q: Tensor,
    labels: Tensor,
    beta: float,
    gamma: float,
) -> Tuple[Tensor, Tensor]:
    """``loss``: (n,) and ``d loss_i / d logits_ia = phi_ia (s_ia - loss_i)``: (n, K)."""
    known = ((labels >= 0) & (labels < log_q.shape[0]))[:, None]
    score = -log_q.index_select(0, labels.clamp(0, log_q.shape[0] - 1))
    log_phi = log_soft_assignment(embeddings, centroids, beta)
    phi = log_phi.exp()
    if gamma:
        score = score.add_(log_phi, alpha=gamma)
    loss = (phi * score).sum(dim=1, keepdim=True)
    # where, not a product with the mask: the row of an ignored image may be NaN.
    grad_logits = torch.where(known, phi * (score - loss), phi.new_zeros(()))
    return torch.where(known, loss, loss.new_zeros(())).squeeze(1), grad_logits
