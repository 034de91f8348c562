"""What the loss compares with.

Legend: D dimensions, K clusters, C identities, m entries kept of a row of Q.
"""

from typing import NamedTuple, Optional

from torch import Tensor


class Statistics(NamedTuple):
    """What the loss compares with during an epoch; the same on every rank."""

    centroids: Tensor
    """(K, D), float32."""
    log_q: Tensor
    """(C, K), float32: log of the floored Q(a|y), nats; (C, m) if only m entries are kept."""
    log_q_index: Optional[Tensor]
    """(C, m), int32: the cluster of each entry; None: the table is whole. See ``class_table``."""
    log_q_floor: Optional[Tensor]
    """(C,), float32: log Q of the clusters that are not listed; None with ``log_q_index``."""
    log_p: Optional[Tensor]
    """(K,), float32: log of the marginal P(a) = sum_y p(y) Q(a|y), nats; None: not asked for."""
    mean: Optional[Tensor]
    """(D,), float32: what embeddings are centred by; None: they are not."""
    class_counts: Tensor
    """(C,), int64: rows behind the mean of each identity, when last seen; 0: never seen."""
    class_means: Tensor
    """(C, D), float32: mean (centred) embedding of each identity, when last seen."""
