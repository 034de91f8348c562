"""Plug-in information measures of soft assignments, for reports and for tests of the bounds.

Legend: n images; F~ and X~ the random clusters of the feature (K of them) and of the input (K_x),
Y the identity (C of them); phi soft assignments; Q(a|y) the class table. All in nats.

Every measure follows from a few sums, the :class:`Tables`; they add up over ranks, over chunks of
images and over blocks of identities, so neither an (N, K) nor a (C, K) matrix needs to exist.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from fastreid_rib.ops.group_sum import group_sum


class Tables(NamedTuple):
    """Sums over images and over identities, float64. Without inputs K_x is 0.

    With ``t_ya = sum_i 1[y_i = y] phi(F_i, a)``.
    """

    images: Tensor
    """(): number of images."""
    feature_negentropy: Tensor
    """(): sum_i sum_a phi(F_i, a) log phi(F_i, a)."""
    features_inputs: Tensor
    """(K, K_x): sum_i phi(F_i, a) phi(X_i, b)."""
    input_negentropy: Tensor
    """(): sum_i sum_b phi(X_i, b) log phi(X_i, b)."""
    inputs: Tensor
    """(K_x,): sum_i phi(X_i, b)."""
    log_inputs: Tensor
    """(K_x,): sum_i log phi(X_i, b)."""
    features: Tensor
    """(K,): sum_y t_ya."""
    label_negentropy: Tensor
    """(): sum_y n_y log n_y, with n_y = sum_a t_ya."""
    joint_negentropy: Tensor
    """(): sum_y sum_a t_ya log t_ya."""
    log_likelihood: Tensor
    """(): sum_y sum_a t_ya log Q(a|y)."""
    marginal: Tensor
    """(K,): sum_y w_y Q(a|y), with w_y the images of an identity when it was last seen."""


def empty_tables(features: int, inputs: int, device: torch.device) -> Tables:
    """Tables of nothing, for ``features`` = K clusters and ``inputs`` = K_x of them."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    return Tables(
        images=zeros(),
        feature_negentropy=zeros(),
        features_inputs=zeros(features, inputs),
        input_negentropy=zeros(),
        inputs=zeros(inputs),
        log_inputs=zeros(inputs),
        features=zeros(features),
        label_negentropy=zeros(),
        joint_negentropy=zeros(),
        log_likelihood=zeros(),
        marginal=zeros(features),
    )


def add_images_(
    tables: Tables, log_phi_features: Tensor, log_phi_inputs: Optional[Tensor] = None
) -> None:
    """Adds images to the tables, in place.

    Args:
        tables: changed in place.
        log_phi_features: (n, K), logarithms of the soft assignments of the features. Logarithms,
            since a phi that underflowed to 0 has lost its own.
        log_phi_inputs: (n, K_x), the same of the inputs; None: no inputs.
    """
    log_f = log_phi_features.double()
    log_x = log_f.new_empty(len(log_f), 0) if log_phi_inputs is None else log_phi_inputs.double()
    phi_f, phi_x = log_f.exp(), log_x.exp()
    tables.images.add_(len(log_f))
    tables.feature_negentropy.add_((phi_f * log_f).sum())
    tables.features_inputs.add_(phi_f.t() @ phi_x)
    tables.input_negentropy.add_((phi_x * log_x).sum())
    tables.inputs.add_(phi_x.sum(dim=0))
    tables.log_inputs.add_(log_x.sum(dim=0))


def add_identities_(tables: Tables, sums: Tensor, log_likelihood: Tensor, marginal: Tensor) -> None:
    """Adds identities to the tables, in place, each with all of its images.

    Args:
        tables: changed in place.
        sums: (identities, K), floating point: t_ya.
        log_likelihood: (): sum_y sum_a t_ya log Q(a|y) of these identities.
        marginal: (K,): sum_y w_y Q(a|y) of these identities.
    """
    sums = sums.double()
    images = sums.sum(dim=1)
    tables.features.add_(sums.sum(dim=0))
    tables.label_negentropy.add_(_negentropy(images))
    tables.joint_negentropy.add_(_negentropy(sums))
    tables.log_likelihood.add_(log_likelihood)
    tables.marginal.add_(marginal)


def tabulate(
    log_phi_features: Tensor,
    labels: Tensor,
    log_q: Tensor,
    log_phi_inputs: Optional[Tensor] = None,
) -> Tables:
    """Tables of a set of images, at once.

    Args:
        log_phi_features: (n, K); see :func:`add_images_`.
        labels: (n,), int64, 0..C-1.
        log_q: (C, K), natural logarithms of Q.
        log_phi_inputs: (n, K_x), or None.
    """
    columns = 0 if log_phi_inputs is None else log_phi_inputs.shape[1]
    tables = empty_tables(log_phi_features.shape[1], columns, labels.device)
    add_images_(tables, log_phi_features, log_phi_inputs)
    sums = group_sum(log_phi_features.double().exp(), labels, len(log_q))
    log_q = log_q.double()
    add_identities_(tables, sums, (sums * log_q).sum(), sums.sum(dim=1) @ log_q.exp())
    return tables


def _negentropy(weights: Tensor) -> Tensor:
    """sum w log w of weights >= 0, which need not sum to one."""
    # The least normal number: 0 log 0 counts as 0. (torch.xlogy is several times slower.)
    return (weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum()


def mutual_information(joint: Tensor) -> Tensor:
    """Mutual information of a joint table of non-negative weights, in nats.

    Args:
        joint: (A, B), floating point; need not sum to one.
    """
    joint = joint / joint.sum()
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    # xlogy gives the empty cells their limit 0, whatever stands in the denominator.
    return torch.xlogy(joint, joint).sum() - torch.xlogy(joint, independent).sum()


def label_information(tables: Tables) -> Tensor:
    """I(F~; Y): what the clusters tell about the identity."""
    images = tables.features.sum()
    of_both = tables.label_negentropy + _negentropy(tables.features) - _negentropy(images)
    return (tables.joint_negentropy - of_both) / images


def input_information(tables: Tables) -> Tensor:
    """I(F~; X~): what the clusters keep of the input."""
    return mutual_information(tables.features_inputs)


def information_bottleneck(tables: Tables) -> Tensor:
    """IB = I(F~; X~) - I(F~; Y), the quantity that the paper bounds."""
    return input_information(tables) - label_information(tables)


def compression_term(tables: Tables) -> Tensor:
    """mean_i sum_b phi(X_i,b) log phi(X_i,b): the first term of the paper's IBB.

    The published code sums phi(F_i,a) phi(X_i,b) log phi(X_i,b) over a and b. Since phi(F_i,.) sums
    to one, that is this: it does not depend on the feature and has no gradient.
    """
    return tables.input_negentropy / tables.images


def relevance_term(tables: Tables) -> Tensor:
    """-mean_i sum_a phi(F_i,a) log Q(a|y_i): the second term of the paper's IBB."""
    return -tables.log_likelihood / tables.images


def feature_information(tables: Tables) -> Tensor:
    """I(F~; i): what the clusters keep of which image it is; at least I(F~; X~)."""
    entropy = _negentropy(tables.images) - _negentropy(tables.features)
    return (tables.feature_negentropy + entropy) / tables.images


def lagrangian_bound(tables: Tables, gamma: float, log_p: Optional[Tensor] = None) -> Tensor:
    """mean_i sum_a phi(F_i,a) (gamma log phi(F_i,a) - log Q(a|y_i) + (1 - gamma) log P(a)).

    Ours. At least ``gamma I(F~;i) - I(F~;Y)``, and so at least ``gamma I(F~;X~) - I(F~;Y)``, for
    every gamma >= 0 if P(a) >= sum_y p(y) Q(a|y); without P for 0 <= gamma <= 1.

    Args:
        tables: sums over the images.
        gamma: multiplier of the compression, >= 0.
        log_p: (K,), log P in nats; None: P = 1.
    """
    of_marginal = 0 if log_p is None else (1 - gamma) * (tables.features @ log_p.double())
    summed = gamma * tables.feature_negentropy - tables.log_likelihood + of_marginal
    return summed / tables.images


def variational_bound(tables: Tables) -> Tensor:
    """IBB, the paper's bound: compression plus relevance term. IB <= IBB - C0."""
    return compression_term(tables) + relevance_term(tables)


def bound_constant(tables: Tables) -> Tensor:
    """C0 = mean_i mean_j sum_b phi(X_i,b) log phi(X_j,b); depends on the inputs alone."""
    return (tables.inputs * tables.log_inputs).sum() / tables.images**2


def conditional_bound(tables: Tables) -> Tensor:
    """KLB = mean_i KL(phi(F_i,.) || Q(.|y_i)): ours.

    Tighter than IBB - C0, without constant and without input clusters, and its compression part
    has a gradient (compare Fischer 2020, "The Conditional Entropy Bottleneck"). A Q that was
    floored and so sums to a little more than one lowers it by at most the excess.
    """
    return tables.feature_negentropy / tables.images + relevance_term(tables)


def image_information(tables: Tables) -> Tensor:
    """I(F~; i | Y): what the clusters tell about the image beyond its identity. IB <= it <= KLB."""
    conditional = tables.joint_negentropy - tables.label_negentropy
    return (tables.feature_negentropy - conditional) / tables.images
