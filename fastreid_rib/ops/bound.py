"""The bound of one image, with the gradient in closed form.

Legend: n images, D dimensions, K clusters, C identities.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops import backends
from fastreid_rib.ops.assignment import centroid_products, half_squared_norms
from fastreid_rib.ops.modes import full_precision
from fastreid_rib.ops.rows import Clusters, Objective, bound_rows_


def bound(
    embeddings: Tensor, labels: Tensor, clusters: Clusters, objective: Objective
) -> Tuple[Tensor, Tensor]:
    """The bound of each image, as ``losses.rib_loss`` says, and its gradient.

    Args:
        embeddings: (n, D), floating point, L2-normalised. float16 and bfloat16 are computed in
            float32, float64 in float64 (by PyTorch).
        labels: (n,), int64. A row with a label < 0 has loss 0, one with a label >= C has loss NaN
            (looking at the labels would synchronise a GPU); both have gradient 0.
        clusters: what the images are compared with; the shapes are not checked.
        objective: which bound, and what computes it; the form is not checked.

    Returns:
        ``loss`` (n,) in nats, differentiable once with respect to ``embeddings``, and
        ``grad_logits`` (n, K), ``d loss_i / d logits_ia``, not differentiable. Both float32
        (float64 for float64 embeddings).

    Raises:
        ValueError: an unknown backend, or one that was asked for by name and cannot take these
            tensors.
        native.Unavailable: a backend that was asked for by name cannot be used.
    """
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    centroids, log_q, log_p, half_norms = clusters
    embeddings, centroids = _as(dtype, embeddings), _as(dtype, centroids)
    half_norms = half_squared_norms(centroids.detach()) if half_norms is None else half_norms
    clusters = Clusters(centroids, log_q, _as(dtype, log_p), _as(dtype, half_norms))
    return _Bound.apply(embeddings, labels, clusters, objective)


def _as(dtype: torch.dtype, tensor: Any) -> Any:
    # At a small batch each call into torch shows, so there are none that do nothing.
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


class _Bound(torch.autograd.Function):
    """A product into a buffer, a pass that makes it the gradient, and backward one product."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, clusters: Clusters, objective: Objective
    ) -> Tuple[Tensor, Tensor]:
        # First, so that a backend that cannot be used raises before anything is computed.
        kind = backends.choose(objective.backend, embeddings.device, embeddings.dtype)
        products = centroid_products(embeddings, clusters.centroids)
        loss = bound_rows_(kind, products, labels, clusters, objective)
        ctx.beta = objective.beta
        ctx.mark_non_differentiable(products)
        # Else backward would be handed a matrix of zeros for the gradient of grad_logits.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(products, clusters.centroids, embeddings)
        return loss, products

    @staticmethod
    def backward(ctx: Any, grad_loss: Optional[Tensor], _: Any) -> Tuple[Optional[Tensor], ...]:
        if grad_loss is None:
            return None, None, None, None
        grad_logits, centroids, embeddings = ctx.saved_tensors
        with torch.no_grad(), full_precision(grad_loss.device):
            # beta = 0: the first argument is not read; alpha saves an operation.
            grad = torch.addmm(embeddings, grad_logits, centroids, beta=0, alpha=2 * ctx.beta)
            grad.mul_(grad_loss.unsqueeze(1))
        # once_differentiable would let the second derivative with respect to the embeddings pass as
        # zero, since grad_loss does not depend on them.
        if torch.is_grad_enabled():
            grad = _DifferentiableOnce.apply(grad, embeddings, grad_loss)
        return grad, None, None, None


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
