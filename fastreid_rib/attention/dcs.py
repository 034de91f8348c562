"""DCS-Attention: differentiable channel selection in self-attention.

Wang, Jojic, Yang, "Learning Informative Attention Weights for Person Re-Identification", arXiv
2505.08961. What goes beyond the paper's public summaries says so.

Legend: B images, N tokens (for a map N = H * W), D channels of a token.
"""

import torch
from torch import Tensor, nn

from fastreid_rib.attention.inputs import at_least_float32, check_channels
from fastreid_rib.attention.self_attention import SelfAttention, constant_linear
from fastreid_rib.settings.attention import AttentionSettings

# Keeps the noise finite: torch.rand gives 0 once in 2^24 draws.
_LEAST_CHANCE = 1e-7


class DCSMask(nn.Module):
    """Picks, for each token, the channels that may take part in the affinity.

    ::

        theta = X W + b
        M = 1[sigmoid((theta + e1 - e2) / temperature) > 1/2]     e1, e2 Gumbel noise in training
        M = 1[theta > 0]                                          in eval, without noise

    M is binary going forward, and has the gradient of the sigmoid going backward: the
    straight-through binary Gumbel-Softmax (Maddison et al. 2017, Jang et al. 2017). In training a
    channel is kept with probability sigmoid(theta) at every temperature; a lower temperature
    makes the gradient steeper near the threshold and smaller away from it.

    ``W`` starts at zero (ours), so at first a channel is kept with probability
    sigmoid(``mask_bias``) whatever the token. In eval all channels are then kept if ``mask_bias``
    is positive (a pretrained transformer with such masks evaluates as it did without), else none.

    ``torch.manual_seed`` determines the noise. It and the sigmoid are in float32 under autocast;
    bfloat16 has no sigmoid between 0.996 and 1.

    Args:
        channels: D, >= 1.
        temperature: > 0, at the start of the training.
        final_temperature: > 0, at its end; in between it falls geometrically, see
            ``set_progress``. The same number as ``temperature`` keeps it constant.
        mask_bias: where b starts, -20..20.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        channels: int,
        *,
        temperature: float = AttentionSettings.temperature,
        final_temperature: float = AttentionSettings.final_temperature,
        mask_bias: float = AttentionSettings.mask_bias,
    ) -> None:
        super().__init__()
        check_channels(channels)
        AttentionSettings(
            temperature=temperature,
            final_temperature=final_temperature,
            mask_bias=mask_bias,
        )
        self.logits = constant_linear(channels, channels, mask_bias)
        self.first_temperature = float(temperature)
        self.final_temperature = float(final_temperature)
        # A plain number, not a buffer: it follows from the epoch, so checkpoints stay without it.
        self.temperature = float(temperature)

    def set_progress(self, fraction: float) -> None:
        """Sets the temperature for a point of the training; costs nothing.

        Args:
            fraction: 0 at the start of the training, 1 at its end.

        Raises:
            ValueError: outside 0..1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in 0..1, got {fraction}")
        fall = self.final_temperature / self.first_temperature
        self.temperature = self.first_temperature * fall ** float(fraction)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mask of tokens.

        Args:
            tokens: (..., D), any floating dtype.

        Returns:
            (..., D), dtype of ``tokens``, each entry exactly 0 or 1.
        """
        logits = at_least_float32(self.logits(tokens))
        if self.training:
            # The difference of two Gumbel variables is a logistic one, so one draw is enough.
            logits = logits + torch.rand_like(logits).logit(eps=_LEAST_CHANCE)
        hard = (logits > 0).to(logits.dtype)
        soft = torch.sigmoid(logits / self.temperature)
        # In this order the difference is exactly zero; (hard + soft) - soft would be rounded.
        return (hard + (soft - soft.detach())).to(tokens.dtype)

    def extra_repr(self) -> str:
        """The schedule of the temperature."""
        return f"temperature={self.first_temperature:g}..{self.final_temperature:g}"


class DCSAttention(SelfAttention):
    """Self-attention in which each token's affinity sees only the channels that a mask keeps.

    ::

        Z = norm(X)  (width 0)  or  norm(X W_r)         (N, D)
        M = mask of Z, see DCSMask                      (N, D)
        A = factor * cos(Z*M, Z*M)                      (N, N)
        X + softmax(A) Z W_p + b_p                      (N, C)

    Works on tokens and on maps; the identity at step 0, see :class:`SelfAttention`, which this is
    without the mask. ``width`` (ours) moves mask, affinity and values into fewer channels: at 2048
    channels the mask's layer alone holds 4.2 million weights. With ``scale`` "sqrt" A is
    (Z*M) (Z*M)^T / sqrt(D), and D counts all channels: a mask makes that attention flatter.

    Args:
        channels: C, >= 1.
        width: D, 0..C; 0: as many as C, as in the paper.
        temperature: see :class:`DCSMask`, as are the next two.
        final_temperature: > 0.
        mask_bias: where the mask's bias starts; sigmoid(mask_bias) is the share kept. Adam moves it
            by at most the learning rate a step, so that a short training from 1 closes no channel.
        scale: see :class:`SelfAttention`, as are the next two.
        cosine_factor: > 0.
        norm: "batch", "layer" or "none".

    Raises:
        ValueError: an argument is out of its range.
    """

    mask: DCSMask

    def __init__(
        self,
        channels: int,
        *,
        width: int = AttentionSettings.width,
        temperature: float = AttentionSettings.temperature,
        final_temperature: float = AttentionSettings.final_temperature,
        mask_bias: float = AttentionSettings.mask_bias,
        scale: str = AttentionSettings.scale,
        cosine_factor: float = AttentionSettings.cosine_factor,
        norm: str = AttentionSettings.norm,
    ) -> None:
        super().__init__(channels, width=width, scale=scale, cosine_factor=cosine_factor, norm=norm)
        self.mask = DCSMask(
            self.width,
            temperature=temperature,
            final_temperature=final_temperature,
            mask_bias=mask_bias,
        )

    def set_progress(self, fraction: float) -> None:
        """Sets the temperature for a point of the training, see :meth:`DCSMask.set_progress`."""
        self.mask.set_progress(fraction)
