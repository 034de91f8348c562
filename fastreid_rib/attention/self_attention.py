"""Self-attention over the positions of a map, or over tokens, added to its input.

Legend: B images, N tokens (for a map N = H * W, row by row), C channels, D channels inside.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.attention.attend import attend, attention_weights
from fastreid_rib.attention.inputs import check_channels, check_positive
from fastreid_rib.attention.linear import build_linear
from fastreid_rib.attention.norm import build_norm
from fastreid_rib.settings.attention import AttentionSettings
from fastreid_rib.settings.declaration import check

# The least norm that a token is divided by. A mask can leave a token empty; its gradient is then
# multiplied by at most a thousand (times the number), and not by the 1e12 of torch's default.
_LEAST_NORM = 1e-3


class Explanation(NamedTuple):
    """What an attention module did with a batch, for pictures. No gradients.

    Attributes:
        weights: (B, N, N), float32 (float64 for float64 input): row i says how much of each token
            goes into token i; rows sum to 1.
        mask: (B, N, D), bool: the channels that took part in each token's affinity, or None for a
            module without a mask.
        kept: (B, N), float32, 0..1: share of channels kept, or None for a module without a mask.
    """

    weights: Tensor
    mask: Optional[Tensor]
    kept: Optional[Tensor]


class SelfAttention(nn.Module):
    """Dense self-attention: DCS-Attention without the mask, for ablations.

    ::

        Z = norm(X)  (width 0)  or  norm(X W_r)         (N, D)
        X + softmax(factor * cos(Z, Z)) Z W_p + b_p     (N, C)

    ``norm`` is ours, see :mod:`fastreid_rib.attention.norm`.

    The affinity is symmetric, as in the paper (arXiv 2505.08961), rather than one of separate
    queries and keys. A map of values of its own would be lost in the projection that follows it: a
    product of two matrices with nothing between them is one matrix.

    ``W_p`` and ``b_p`` start at zero, so at step 0 the module is the identity. They get a gradient
    in that step; the parameters before them get exact zeros in it, because their gradient passes
    through ``W_p``, but they are in the graph (DDP needs no ``find_unused_parameters``), and get
    a gradient from the step on that follows the first update.

    Under autocast the products are in its dtype, the softmax of the affinities in float32. On a
    GPU the backward pass of torch's fused attention may add in another order in each run;
    ``torch.use_deterministic_algorithms(True)`` makes it the same.

    Args:
        channels: C, >= 1.
        width: D, 0..C; 0: as many as C, as in the paper, and no ``W_r``.
        scale: "cosine": cosine similarities times ``cosine_factor`` (ours); "sqrt": dot products
            over sqrt(D), which is no attention with a ``norm``: a normalised token's product with
            itself is about D, so it keeps e^sqrt(D) to one for itself (docs/reports/attention.md).
        cosine_factor: > 0.
        norm: "batch": each channel over the tokens of the batch, by running statistics in eval;
            "layer": each token over its channels; "none".
        rank: 0..D; ``W_p`` is a product of two matrices of this many columns and rows; 0: full.
        groups: a divisor of C and D; ``W_p`` has this many blocks on its diagonal; 1: full. See
            :mod:`fastreid_rib.attention.linear` (ours).
        depthwise: X, inside, is first convolved over the map, 3 x 3 in each channel (ours), so
            that affinities compare neighbourhoods. Not behind the affinity: pooled by a mean, that
            would do little more than scale channels. The convolution starts as one that changes
            nothing.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = AttentionSettings.width,
        scale: str = AttentionSettings.scale,
        cosine_factor: float = AttentionSettings.cosine_factor,
        norm: str = AttentionSettings.norm,
        rank: int = AttentionSettings.rank,
        groups: int = AttentionSettings.groups,
        depthwise: bool = AttentionSettings.depthwise,
    ) -> None:
        super().__init__()
        check_positive(channels=channels)
        check(AttentionSettings, scale=scale, cosine_factor=cosine_factor)
        if not 0 <= width <= channels:
            raise ValueError(f"width must be in 0..{channels}, the channels (0: all), got {width}")
        self.channels = channels
        self.width = width or channels
        self.scale = scale
        self.cosine_factor = float(cosine_factor)
        self.depthwise = _depthwise(channels) if depthwise else nn.Identity()
        # Without a bias: one added to all tokens alike would shift the affinities, and
        # b_p does what it would do to the values.
        self.reduce = nn.Linear(channels, width, bias=False) if width else nn.Identity()
        self.norm = build_norm(norm, self.width)
        self.project = build_linear(self.width, channels, rank=rank, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what its tokens take from each other.

        Args:
            x: (B, N, C) tokens or (B, C, H, W) map, any floating dtype; with ``depthwise`` a map.

        Returns:
            Shape and dtype of ``x``.

        Raises:
            ValueError: neither tokens nor a map, or of other channels.
        """
        values = self._values(x)
        keys, factor, _ = self._affinity(values)
        change = self.project(attend(keys, keys, values, factor)).to(x.dtype)
        if x.dim() == 4:
            change = change.transpose(1, 2).reshape(x.shape)
        return x + change

    @torch.no_grad()
    def explain(self, x: Tensor) -> Explanation:
        """Attention weights and mask; the whole (B, N, N), so for a few images at a time.

        In training mode the mask is a random draw, as it is in ``forward``.

        Args:
            x: as for ``forward``.
        """
        keys, factor, mask = self._affinity(self._values(x))
        weights = attention_weights(keys, keys, factor)
        if mask is None:
            return Explanation(weights, None, None)
        return Explanation(weights, mask > 0.5, mask.float().mean(dim=2))

    def extra_repr(self) -> str:
        """Settings that the submodules do not show."""
        factor = f" x {self.cosine_factor:g}" if self.scale == "cosine" else ""
        return f"{self.channels}, width={self.width}, scale={self.scale}{factor}"

    def mask_of(self, tokens: Tensor) -> Optional[Tensor]:
        """(B, N, D) mask of the channels that take part in the affinity; None: all of them.

        Args:
            tokens: (B, N, D).
        """
        return None

    def _affinity(self, tokens: Tensor) -> Tuple[Tensor, float, Optional[Tensor]]:
        """Keys (B, N, D), the factor of their dot products, and the mask."""
        mask = self.mask_of(tokens)
        keys = tokens if mask is None else tokens * mask
        if self.scale == "sqrt":
            return keys, self.width**-0.5, mask
        return F.normalize(keys, dim=2, eps=_LEAST_NORM), self.cosine_factor, mask

    def _values(self, x: Tensor) -> Tensor:
        """(B, N, D): what the tokens are inside."""
        check_channels(self, x, self.channels, tokens=isinstance(self.depthwise, nn.Identity))
        x = self.depthwise(x)
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        return self.norm(self.reduce(tokens))


def _depthwise(channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution of each channel by itself that gives the map back at first."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    nn.init.dirac_(layer.weight, groups=channels)
    return layer
