"""Self-attention over the positions of a map, or over tokens, added to its input.

Legend: B images, N tokens (for a map N = H * W, row by row), C channels, D channels inside.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.attention import inputs
from fastreid_rib.settings.attention import AttentionSettings

# The least norm that a token is divided by. A mask can leave a token empty; its gradient is then
# multiplied by at most a thousand (times the number), and not by the 1e12 of torch's default.
_LEAST_NORM = 1e-3

_FUSED = hasattr(F, "scaled_dot_product_attention")


class Explanation(NamedTuple):
    """What an attention module did with a batch, for pictures. No gradients."""

    weights: Tensor
    """(B, N, N), float32 (float64 for float64 input): row i says how much of each token goes into
    token i; rows sum to 1."""
    mask: Optional[Tensor]
    """(B, N, D), bool: the channels in each token's affinity; None: there is no mask."""
    kept: Optional[Tensor]
    """(B, N), float32, 0..1: share of channels kept; None: there is no mask."""


class SelfAttention(nn.Module):
    """Dense self-attention: DCS-Attention without the mask, for ablations.

    ::

        Z = norm(X)  (width 0)  or  norm(X W_r)         (N, D)
        X + softmax(factor * cos(Z, Z)) Z W_p + b_p     (N, C)

    ``norm`` is ours, see :mod:`fastreid_rib.attention.inputs`. The affinity is symmetric, as in the
    paper (arXiv 2505.08961), and has no separate queries and keys. A map of values of its own would
    be lost in the projection that follows: a product of two matrices is one matrix.

    ``W_p`` and ``b_p`` start at zero, so at step 0 the module is the identity, and the gradients of
    the parameters before them are exact zeros. These are in the graph all the same: DDP needs no
    ``find_unused_parameters``.

    Under autocast the products are in its dtype, the softmax of the affinities in float32. On a
    GPU the backward pass of torch's fused attention may add in another order in each run;
    ``torch.use_deterministic_algorithms(True)`` makes it the same.

    Args:
        channels: C, >= 1.
        width: D, 0..C; 0: as many as C, as in the paper, and no ``W_r``.
        scale: "cosine": cosine similarities times ``cosine_factor`` (ours); "sqrt": dot products
            over sqrt(D), which with a ``norm`` leave each token to itself, e^sqrt(D) to one.
        cosine_factor: > 0.
        norm: "batch": each channel over the tokens of the batch, by running statistics in eval;
            "layer": each token over its channels; "none".

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
    ) -> None:
        super().__init__()
        inputs.check_channels(channels)
        AttentionSettings(scale=scale, cosine_factor=cosine_factor)  # checks them
        if not 0 <= width <= channels:
            raise ValueError(f"width must be in 0..{channels}, the channels (0: all), got {width}")
        self.channels = channels
        self.width = width or channels
        self.scale = scale
        self.cosine_factor = float(cosine_factor)
        self.mask: Optional[nn.Module] = None  # gives (B, N, D), binary, see DCSAttention
        # Without a bias: one added to all tokens alike would shift the affinities, and
        # b_p does what it would do to the values.
        self.reduce = nn.Linear(channels, width, bias=False) if width else nn.Identity()
        self.norm = inputs.build_norm(norm, self.width)
        self.project = constant_linear(self.width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what its tokens take from each other.

        Args:
            x: (B, N, C) tokens or (B, C, H, W) map, any floating dtype.

        Returns:
            Shape and dtype of ``x``.

        Raises:
            ValueError: neither tokens nor a map, or of other channels.
        """
        values, keys, factor, _ = self._inside(x)
        change = self.project(attend(keys, values, factor)).to(x.dtype)
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
        _, keys, factor, mask = self._inside(x)
        weights = attention_weights(keys, factor)
        if mask is None:
            return Explanation(weights, None, None)
        return Explanation(weights, mask > 0.5, mask.float().mean(dim=2))

    def extra_repr(self) -> str:
        """Settings that the submodules do not show."""
        factor = f" x {self.cosine_factor:g}" if self.scale == "cosine" else ""
        return f"{self.channels}, width={self.width}, scale={self.scale}{factor}"

    def _inside(self, x: Tensor) -> Tuple[Tensor, Tensor, float, Optional[Tensor]]:
        """Values and keys (B, N, D), the factor of the keys' dot products, and the mask."""
        inputs.check_shape(self, x, self.channels, tokens=True)
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        values = self.norm(self.reduce(tokens))
        mask = None if self.mask is None else self.mask(values)
        keys = values if mask is None else values * mask
        if self.scale == "sqrt":
            return values, keys, self.width**-0.5, mask
        return values, F.normalize(keys, dim=2, eps=_LEAST_NORM), self.cosine_factor, mask


def constant_linear(inputs: int, outputs: int, bias: float = 0.0) -> nn.Linear:
    """A layer that at first gives ``bias``, whatever it is given."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def attend(keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """``softmax(scale * keys @ keys^T) @ values``.

    Where the weights would be larger than the keys, N > D, torch's ``scaled_dot_product_attention``
    (torch >= 2.0) does without them; else, and before torch 2.0, by plain products.

    Args:
        keys: (B, N, D), floating point.
        values: (B, N, E), same dtype.
        scale: factor of the dot products.

    Returns:
        (B, N, E), dtype of ``values``; under autocast the dtype of its matrix products.
    """
    # For ONNX, as plain products export and load with every opset; and where there is no memory to
    # be saved, as a map of 2048 channels and 128 positions takes two thirds of the time by them.
    if torch.jit.is_tracing() or keys.shape[1] <= keys.shape[2] or not _FUSED:
        return attention_weights(keys, scale).to(values.dtype) @ values
    # torch 2.0 has no argument for the scale, so what differs from 1/sqrt(D) goes in before.
    queries = keys * (scale * keys.shape[2] ** 0.5)
    # Four dimensions: three would never reach the fused kernels.
    mixed = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])
    return mixed[:, 0]


def attention_weights(keys: Tensor, scale: float) -> Tensor:
    """(B, N, N): the weights that :func:`attend` mixes values with.

    At least float32, also under autocast; rows sum to 1.
    """
    return (inputs.at_least_float32(keys @ keys.transpose(1, 2)) * scale).softmax(dim=2)
