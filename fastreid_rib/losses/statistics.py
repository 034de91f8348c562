"""What the loss compares with.

Legend: D dimensions, K clusters, C identities, V cameras, M pairs of an identity and a camera, m
entries kept of a row of Q. M is 0 where no cameras are given.
"""

from typing import NamedTuple, Optional

from torch import Tensor


class Statistics(NamedTuple):
    """What the loss compares with during an epoch; the same on every rank."""

    centroids: Tensor
    """(K, D), float32."""
    log_q: Tensor
    """(C + M, K), float32: log of the floored Q(a|y), nats; (C + M, m) if only m are kept."""
    log_q_index: Optional[Tensor]
    """(C + M, m), int32: the cluster of each; None: the table is whole. See ``class_table``."""
    log_q_floor: Optional[Tensor]
    """(C + M,), float32: log Q of the clusters not listed; None with ``log_q_index``."""
    log_p: Optional[Tensor]
    """(K,), float32: log of the marginal P(a) of the rows, nats; None: not asked for."""
    mean: Optional[Tensor]
    """(D,), float32: what embeddings are centred by; None: they are not."""
    class_counts: Tensor
    """(C,), int64: rows behind the mean of each identity, when last seen; 0: never seen."""
    class_means: Tensor
    """(C, D), float32: mean (centred) embedding of each identity, when last seen."""
    camera_rows: Optional[Tensor] = None
    """(C, V), int64: the row of ``log_q`` for an identity and a camera; None: no cameras."""
    cameras: Optional[Tensor] = None
    """(V,), int64, sorted; None with ``camera_rows``."""
