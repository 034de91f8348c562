"""The bound of one image, with the gradient in closed form.

Legend: n images, D dimensions, K clusters, C identities; F embedding, phi soft assignment, Q(a|y)
mean soft assignment of identity y at the last refresh.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from fastreid_rib.ops import backends
from fastreid_rib.ops.assignment import centroid_products, half_squared_norms
from fastreid_rib.ops.modes import full_precision, is_compiling
from fastreid_rib.ops.rows import Clusters, Objective, bound_rows_, empty_rows


def bound(
    embeddings: Tensor, labels: Tensor, clusters: Clusters, objective: Objective
) -> Tuple[Tensor, Tensor]:
    """Upper bound of the information bottleneck, image by image.

    With P = ``log_p.exp()`` the marginal of the clusters, or P = 1 without ``log_p``::

        "clusters":   loss_i = sum_a phi_ia (gamma log phi_ia - log Q(a|y_i) + (1 - gamma) log P_a)
        "embedding":  loss_i = gamma sum_a phi_ia (log phi_ia - log P_a)
                               - log sum_a phi_ia Q(a|y_i) / P_a

    The mean of the first is at least ``gamma I(F~;X~) - I(F~;Y)``, of the second at least ``gamma
    I(F~;X~) - I(F;Y)`` (ours; docs/understand/derivations.md has the proof). The first at gamma = 0
    without P is the relevance term of the paper's bound (arXiv 2505.08961), and at gamma = 1 it is
    KLB, ours.
    Equivalent plain PyTorch::

        logits = -beta * torch.cdist(embeddings, centroids).square()
        log_phi = logits.log_softmax(1)
        log_ratio = log_q[labels] - log_p
        loss = gamma * (log_phi.exp() * (log_phi - log_p)).sum(1)
        if form == "clusters":
            loss = loss - (log_phi.exp() * log_ratio).sum(1)
        else:
            loss = loss - (log_phi + log_ratio).logsumexp(1)
        grad_logits = torch.autograd.grad(loss.sum(), logits)

    Inside: one matrix product into a buffer of its own, and one pass over it that writes the loss
    and turns the buffer into the gradient, so that backward is one matrix product. The largest
    temporary is that (n, K) buffer.

    Args:
        embeddings: (n, D), floating point, L2-normalised. float16 and bfloat16 are computed in
            float32, float64 in float64 (by PyTorch).
        labels: (n,), int64. A row with a label < 0 has loss 0, one with a label >= C has loss NaN
            (looking at the labels would synchronise a GPU); both have gradient 0.
        clusters: what the images are compared with.
        objective: which bound, and what computes it.

    Returns:
        ``loss`` (n,) in nats, differentiable once with respect to ``embeddings``, and
        ``grad_logits`` (n, K), ``d loss_i / d logits_ia``, not differentiable. Both float32
        (float64 for float64 embeddings).

    Shapes and the form are not checked here, but in ``rib_loss`` and ``RIBLoss``.

    Raises:
        ValueError: an unknown backend, or one that was asked for by name and cannot take these
            tensors.
        native.Unavailable: a backend that was asked for by name cannot be used.
    """
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    centroids, log_q, log_p, half_norms = clusters
    beta, gamma, form, backend = objective
    embeddings, centroids = _as(dtype, embeddings), _as(dtype, centroids)
    half_norms = half_squared_norms(centroids.detach()) if half_norms is None else half_norms
    operation = _custom_op if _traced(embeddings) else _Bound.apply
    return operation(
        embeddings, labels, centroids, log_q, _as(dtype, log_p), _as(dtype, half_norms),
        float(beta), float(gamma), form, backend,
    )  # fmt: skip


def _as(dtype: torch.dtype, tensor: Any) -> Any:
    # At a small batch each call into torch shows, so there are none that do nothing.
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _forward(embeddings: Tensor, labels: Tensor, *constants: Any) -> Tuple[Tensor, Tensor]:
    """``constants``: the members of a :class:`Clusters`, then those of an :class:`Objective`."""
    clusters, objective = Clusters(*constants[:4]), Objective(*constants[4:])
    # First, so that a backend that cannot be used raises before anything is computed.
    kind = backends.choose(objective.backend, embeddings.device, embeddings.dtype)
    products = centroid_products(embeddings, clusters.centroids)
    return bound_rows_(kind, products, labels, clusters, objective), products


def _setup_context(ctx: Any, inputs: Tuple[Any, ...], output: Tuple[Tensor, Tensor]) -> None:
    embeddings, centroids = inputs[0], inputs[2]
    ctx.beta = inputs[6]
    ctx.mark_non_differentiable(output[1])
    # Else backward would be handed a matrix of zeros for the gradient of grad_logits.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], centroids, embeddings)


def _backward(ctx: Any, grad_loss: Optional[Tensor], _: Any) -> Tuple[Optional[Tensor], ...]:
    if grad_loss is None:
        return (None,) * 10
    grad_logits, centroids, embeddings = ctx.saved_tensors
    with torch.no_grad(), full_precision(grad_loss.device):
        # beta = 0: the first argument is not read; alpha saves an operation.
        grad = torch.addmm(embeddings, grad_logits, centroids, beta=0, alpha=2 * ctx.beta)
        grad.mul_(grad_loss.unsqueeze(1))
    # once_differentiable would let the second derivative with respect to the embeddings pass as
    # zero, since grad_loss does not depend on them.
    if torch.is_grad_enabled():
        grad = _DifferentiableOnce.apply(grad, embeddings, grad_loss)
    return (grad,) + (None,) * 9


class _Bound(torch.autograd.Function):
    """Keeps d loss_i / d logits instead of the softmax, so that backward is one product."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tuple[Tensor, Tensor]:
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tuple[Optional[Tensor], ...]:
        return _backward(ctx, *grads)


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


def _register() -> Any:
    """The operation as torch.compile sees it: one node. None before torch 2.4.

    Outside a trace the autograd function is called directly: it costs 40 microseconds a step less.
    """
    if not hasattr(torch.library, "custom_op"):
        return None
    schema = (
        "(Tensor embeddings, Tensor labels, Tensor centroids, Tensor log_q, Tensor? log_p, "
        "Tensor half_norms, float beta, float gamma, str form, str backend) -> (Tensor, Tensor)"
    )
    operation = torch.library.custom_op(
        "fastreid_rib::bound", _forward, mutates_args=(), schema=schema
    )

    @operation.register_fake
    def _(embeddings: Tensor, labels: Tensor, centroids: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
        n = embeddings.shape[0]
        return embeddings.new_empty(n), empty_rows(embeddings, n, centroids.shape[0])

    operation.register_autograd(_backward, setup_context=_setup_context)
    return operation


_custom_op = _register()


def _traced(embeddings: Tensor) -> bool:
    """Whether this call is being compiled or traced, and is not to touch any memory."""
    if _custom_op is None:
        return False
    return is_compiling() or type(embeddings) not in (Tensor, torch.nn.Parameter)
