"""Channel attention by affinities, for (B, C, H, W) maps: CAM.

Legend: B images, C channels, H x W positions.
"""

import torch
from torch import Tensor, nn

from fastreid_rib.attention.attend import at_least_float32, attend, attention_weights
from fastreid_rib.attention.inputs import check_channels, check_positive
from fastreid_rib.ops.modes import full_precision


class CAM(nn.Module):
    """Channel affinity: each channel takes from those that differ most from it.

    ::

        A = softmax(max(X X^T) - X X^T)      (C, C), the maximum over each row
        x + gamma * A X                      X: (C, H * W)

    The channel attention module of DANet (Fu et al., "Dual Attention Network for Scene
    Segmentation", CVPR 2019), which ABD-Net brought to Re-ID (Chen et al., "ABD-Net: Attentive but
    Diverse Person Re-Identification", ICCV 2019). As published, with gamma starting at 0: the
    identity at step 0. Subtracting from the maximum changes no softmax, so softmax(-X X^T) is what
    is computed, in float32 under autocast: these sums over positions reach hundreds, and bfloat16
    would round them by whole nats. The C x C weights are never held as a whole.

    Args:
        channels: C, >= 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_positive(channels=channels)
        self.channels = channels
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """The map and what its channels take from each other.

        Args:
            x: (B, C, H, W), any floating dtype.

        Returns:
            Shape and dtype of ``x``.

        Raises:
            ValueError: not a map, or of other channels.
        """
        rows = self._rows(x)
        with full_precision(x.device):
            mixed = attend(rows, rows, rows, -1.0)
        return x + (self.gamma * mixed).to(x.dtype).reshape(x.shape)

    @torch.no_grad()
    def weights(self, x: Tensor) -> Tensor:
        """(B, C, C), at least float32: row i says how much of each channel goes into channel i.

        Args:
            x: as for ``forward``.
        """
        rows = self._rows(x)
        with full_precision(x.device):
            return attention_weights(rows, rows, -1.0)

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.channels}"

    def _rows(self, x: Tensor) -> Tensor:
        check_channels(self, x, self.channels)
        return at_least_float32(x.flatten(2))
