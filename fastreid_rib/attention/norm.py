"""Normalisation of what goes into a layer that starts at zero.

Where that is positive, as all is behind a ReLU, every image pushes the weights of a row of such a
layer the same way, and Adam moves each by the learning rate whatever the size of its gradient. What
is learnt first is then the same for every image: one vector added to all tokens (DCS), one scale
for each channel (channel attention), which tells nobody apart (docs/reports/attention.md).
Normalised over the batch each feature has mean 0, and that is gone. Ours. No weights of its own:
the layer behind it can do what they would.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.settings.attention import AttentionSettings
from fastreid_rib.settings.declaration import check


def build_norm(norm: str, features: int) -> nn.Module:
    """A normalisation of (..., D) tensors over all but the last dimension, or over the last.

    Args:
        norm: "batch": by batch statistics in training and by running ones in eval; "layer": by its
            own; "none": as it is.
        features: D, >= 1.

    Raises:
        ValueError: none of these.
    """
    check(AttentionSettings, norm=norm)
    if norm == "batch":
        return _BatchNorm(features)
    return nn.LayerNorm(features, elementwise_affine=False) if norm == "layer" else nn.Identity()


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (..., D) without weights.

    A lone row has no variance, and torch would refuse it: it gets the running statistics, as in
    eval.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        # Rows, not (B, D, N): compiled, torch's batch normalisation mistakes a transposed layout.
        rows = x.reshape(-1, x.shape[-1])
        if self.training and len(rows) > 1:
            rows = super().forward(rows)
        else:
            rows = F.batch_norm(rows, self.running_mean, self.running_var, eps=self.eps)
        return rows.reshape(x.shape)
