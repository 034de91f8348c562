"""The sums of a set of images at once, and a measure that only the tests of the bounds need."""

from typing import Optional

from torch import Tensor

from fastreid_rib.losses.information import Sums, add_identities_, add_images_, empty_sums
from fastreid_rib.ops.group_sum import group_sum


def sums_of(
    log_phi_features: Tensor,
    labels: Tensor,
    log_q: Tensor,
    log_phi_inputs: Optional[Tensor] = None,
) -> Sums:
    """Sums of a set of images, at once.

    Args:
        log_phi_features: (n, K); see :func:`add_images_`.
        labels: (n,), int64, 0..C-1.
        log_q: (C, K), natural logarithms of Q.
        log_phi_inputs: (n, K_x), or None.
    """
    columns = 0 if log_phi_inputs is None else log_phi_inputs.shape[1]
    made = empty_sums(log_phi_features.shape[1], columns, labels.device)
    add_images_(made, log_phi_features, log_phi_inputs)
    of_identities = group_sum(log_phi_features.double().exp(), labels, len(log_q))
    log_q = log_q.double()
    add_identities_(
        made, of_identities, (of_identities * log_q).sum(), of_identities.sum(dim=1) @ log_q.exp()
    )
    return made


def image_information(sums: Sums) -> Tensor:
    """I(F~; i | Y): what the clusters tell about the image beyond its identity. IB <= it <= KLB."""
    conditional = sums.joint_negentropy - sums.label_negentropy
    return (sums.feature_negentropy - conditional) / sums.images
