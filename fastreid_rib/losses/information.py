"""Plug-in information measures of soft assignments, for reports and for tests of the bounds.

Legend: n images; F~ and X~ the random clusters of the feature (K of them) and of the input (K_x),
Y the identity (C of them); phi soft assignments; Q(a|y) the class table. All in nats.

Every measure follows from a few sums over images, the :class:`Tables`; they add up over chunks and
over ranks, so no (N, K) matrix needs to exist.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from fastreid_rib.ops.group_sum import group_sum


class Tables(NamedTuple):
    """Sums over images, float64. Without inputs K_x is 0."""

    images: Tensor
    """(): number of images."""
    labels_features: Tensor
    """(C, K): sum_i 1[y_i = y] phi(F_i, a)."""
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

    def __add__(self, other: "Tables") -> "Tables":  # type: ignore[override]
        """Tables of the images of both."""
        return Tables(*(mine + theirs for mine, theirs in zip(self, other)))


def tabulate(
    log_phi_features: Tensor,
    labels: Tensor,
    num_classes: int,
    log_phi_inputs: Optional[Tensor] = None,
) -> Tables:
    """Tables of a set of images.

    Args:
        log_phi_features: (n, K), logarithms of the soft assignments of the features. Logarithms,
            since a phi that underflowed to 0 has lost its own.
        labels: (n,), int64, 0..num_classes-1.
        num_classes: number of identities C.
        log_phi_inputs: (n, K_x), the same of the inputs; None: no inputs.
    """
    log_f = log_phi_features.double()
    log_x = log_f.new_empty(len(log_f), 0) if log_phi_inputs is None else log_phi_inputs.double()
    phi_f, phi_x = log_f.exp(), log_x.exp()
    return Tables(
        images=log_f.new_tensor(float(len(log_f))),
        labels_features=group_sum(phi_f, labels, num_classes),
        feature_negentropy=(phi_f * log_f).sum(),
        features_inputs=phi_f.t() @ phi_x,
        input_negentropy=(phi_x * log_x).sum(),
        inputs=phi_x.sum(dim=0),
        log_inputs=log_x.sum(dim=0),
    )


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
    return mutual_information(tables.labels_features)


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


def relevance_term(tables: Tables, log_q: Tensor) -> Tensor:
    """-mean_i sum_a phi(F_i,a) log Q(a|y_i): the second term of the paper's IBB.

    Args:
        tables: sums over the images.
        log_q: (C, K), natural logarithms of Q.
    """
    return -(tables.labels_features * log_q.double()).sum() / tables.images


def variational_bound(tables: Tables, log_q: Tensor) -> Tensor:
    """IBB, the paper's bound: compression plus relevance term. IB <= IBB - C0."""
    return compression_term(tables) + relevance_term(tables, log_q)


def bound_constant(tables: Tables) -> Tensor:
    """C0 = mean_i mean_j sum_b phi(X_i,b) log phi(X_j,b); depends on the inputs alone."""
    return (tables.inputs * tables.log_inputs).sum() / tables.images**2


def conditional_bound(tables: Tables, log_q: Tensor) -> Tensor:
    """KLB = mean_i KL(phi(F_i,.) || Q(.|y_i)): ours.

    Tighter than IBB - C0, without constant and without input clusters, and its compression part
    has a gradient (compare Fischer 2020, "The Conditional Entropy Bottleneck"). A Q that was
    floored and so sums to a little more than one lowers it by at most the excess.
    """
    return tables.feature_negentropy / tables.images + relevance_term(tables, log_q)


def image_information(tables: Tables) -> Tensor:
    """I(F~; i | Y): what the clusters tell about the image beyond its identity. IB <= it <= KLB."""
    sums = tables.labels_features
    rows = sums / sums.sum(dim=1, keepdim=True).clamp(min=1e-300)
    return (tables.feature_negentropy - torch.xlogy(sums, rows).sum()) / tables.images
