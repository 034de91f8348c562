"""Plug-in information measures of soft assignments, as reports have them.

Legend: n images; F~ and X~ the random clusters of the feature (K of them) and of the input (K_x),
Y the identity (C of them); phi soft assignments; Q(a|y) the class table. All in nats.

Every measure follows from a few sums, the :class:`Sums`; they add up over ranks, over chunks of
images and over blocks of identities, so neither an (N, K) nor a (C, K) matrix needs to exist.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor


class Sums(NamedTuple):
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


def empty_sums(features: int, inputs: int, device: torch.device) -> Sums:
    """Sums of nothing, for ``features`` = K clusters and ``inputs`` = K_x of them."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=device)

    return Sums(
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
    sums: Sums, log_phi_features: Tensor, log_phi_inputs: Optional[Tensor] = None
) -> None:
    """Adds images to the sums, in place.

    Args:
        sums: changed in place.
        log_phi_features: (n, K), logarithms of the soft assignments of the features. Logarithms,
            since a phi that underflowed to 0 has lost its own.
        log_phi_inputs: (n, K_x), the same of the inputs; None: no inputs.
    """
    log_f = log_phi_features.double()
    log_x = log_f.new_empty(len(log_f), 0) if log_phi_inputs is None else log_phi_inputs.double()
    phi_f, phi_x = log_f.exp(), log_x.exp()
    sums.images.add_(len(log_f))
    sums.feature_negentropy.add_((phi_f * log_f).sum())
    sums.features_inputs.add_(phi_f.t() @ phi_x)
    sums.input_negentropy.add_((phi_x * log_x).sum())
    sums.inputs.add_(phi_x.sum(dim=0))
    sums.log_inputs.add_(log_x.sum(dim=0))


def add_identities_(
    sums: Sums, of_identities: Tensor, log_likelihood: Tensor, marginal: Tensor
) -> None:
    """Adds identities to the sums, in place, each with all of its images.

    Args:
        sums: changed in place.
        of_identities: (identities, K), floating point: t_ya.
        log_likelihood: (): sum_y sum_a t_ya log Q(a|y) of these identities.
        marginal: (K,): sum_y w_y Q(a|y) of these identities.
    """
    of_identities = of_identities.double()
    images = of_identities.sum(dim=1)
    sums.features.add_(of_identities.sum(dim=0))
    sums.label_negentropy.add_(_negentropy(images))
    sums.joint_negentropy.add_(_negentropy(of_identities))
    sums.log_likelihood.add_(log_likelihood)
    sums.marginal.add_(marginal)


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


def label_information(sums: Sums) -> Tensor:
    """I(F~; Y): what the clusters tell about the identity."""
    images = sums.features.sum()
    of_both = sums.label_negentropy + _negentropy(sums.features) - _negentropy(images)
    return (sums.joint_negentropy - of_both) / images


def input_information(sums: Sums) -> Tensor:
    """I(F~; X~): what the clusters keep of the input."""
    return mutual_information(sums.features_inputs)


def information_bottleneck(sums: Sums) -> Tensor:
    """IB = I(F~; X~) - I(F~; Y), the quantity that the paper bounds."""
    return input_information(sums) - label_information(sums)


def compression_term(sums: Sums) -> Tensor:
    """mean_i sum_b phi(X_i,b) log phi(X_i,b): the first term of the paper's IBB.

    The published code sums phi(F_i,a) phi(X_i,b) log phi(X_i,b) over a and b. Since phi(F_i,.) sums
    to one, that is this: it does not depend on the feature and has no gradient.
    """
    return sums.input_negentropy / sums.images


def relevance_term(sums: Sums) -> Tensor:
    """-mean_i sum_a phi(F_i,a) log Q(a|y_i): the second term of the paper's IBB."""
    return -sums.log_likelihood / sums.images


def feature_information(sums: Sums) -> Tensor:
    """I(F~; i): what the clusters keep of which image it is; at least I(F~; X~)."""
    entropy = _negentropy(sums.images) - _negentropy(sums.features)
    return (sums.feature_negentropy + entropy) / sums.images


def lagrangian_bound(sums: Sums, gamma: float, log_p: Optional[Tensor] = None) -> Tensor:
    """mean_i sum_a phi(F_i,a) (gamma log phi(F_i,a) - log Q(a|y_i) + (1 - gamma) log P(a)).

    Ours. At least ``gamma I(F~;i) - I(F~;Y)``, and so at least ``gamma I(F~;X~) - I(F~;Y)``, for
    every gamma >= 0 if P(a) >= sum_y p(y) Q(a|y); without P for 0 <= gamma <= 1.

    Args:
        sums: sums over the images.
        gamma: multiplier of the compression, >= 0.
        log_p: (K,), log P in nats; None: P = 1.
    """
    of_marginal = 0 if log_p is None else (1 - gamma) * (sums.features @ log_p.double())
    summed = gamma * sums.feature_negentropy - sums.log_likelihood + of_marginal
    return summed / sums.images


def variational_bound(sums: Sums) -> Tensor:
    """IBB, the paper's bound: compression plus relevance term. IB <= IBB - C0."""
    return compression_term(sums) + relevance_term(sums)


def bound_constant(sums: Sums) -> Tensor:
    """C0 = mean_i mean_j sum_b phi(X_i,b) log phi(X_j,b); depends on the inputs alone."""
    return (sums.inputs * sums.log_inputs).sum() / sums.images**2


def conditional_bound(sums: Sums) -> Tensor:
    """KLB = mean_i KL(phi(F_i,.) || Q(.|y_i)): ours.

    Tighter than IBB - C0, without constant and without input clusters, and its compression part
    has a gradient (compare Fischer 2020, "The Conditional Entropy Bottleneck"). A Q that was
    floored and so sums to a little more than one lowers it by at most the excess.
    """
    return sums.feature_negentropy / sums.images + relevance_term(sums)
