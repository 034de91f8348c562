"""One group's choice of a width: logits, the Gumbel-Softmax over them, and the nested mask."""

from typing import Any, Dict, Optional, Sequence

import torch
from torch import Tensor, nn


class WidthChoice(nn.Module):
    """A learnable choice of one width.

    With widths c_1 > ... > c_H and logits theta, a step draws the gates
    ``g = softmax((theta + Gumbel noise) / tau)``. The mask of channel j is the sum of g_h over the
    widths with c_h > j, so that the sum of the mask is the effective width ``sum_h g_h c_h``, and a
    one-hot g keeps the first c_h channels (FBNetV2, arXiv 2004.05565, section 3.1; the paper of RIB
    searches its backbones so). In evaluation g is the one-hot of the most probable width.

    Args:
        widths: channels of each option, the widest first.
    """

    options: Tensor
    covers: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.logits = nn.Parameter(torch.zeros(len(widths)))
        options = torch.tensor(widths, dtype=torch.float32)
        self.register_buffer("options", options, persistent=False)
        # (H, c_1): whether an option keeps a channel.
        covers = (torch.arange(widths[0]) < options[:, None]).float()
        self.register_buffer("covers", covers, persistent=False)
        self._drawn: Optional[Tensor] = None

    def draw(self, noise: Tensor, temperature: float) -> None:
        """Draws the gates of a training step.

        Args:
            noise: (H,) Gumbel noise.
            temperature: tau > 0.
        """
        noise = noise.to(self.logits.device, non_blocking=True)
        self._drawn = torch.softmax((self.logits + noise) / temperature, dim=0)

    @property
    def gates(self) -> Tensor:
        """(H,) float32: what was drawn last in training mode.

        Else the one-hot of the most probable width, the widest of equals.
        """
        if self.training and self._drawn is not None:
            return self._drawn
        best = torch.argmax(self.logits.detach())
        return torch.zeros_like(self.options).scatter_(0, best[None], 1.0)

    def probabilities(self) -> Tensor:
        """(H,) softmax of the logits, detached."""
        return torch.softmax(self.logits.detach(), dim=0)

    def effective_width(self) -> Tensor:
        """``sum_h g_h c_h``, a scalar; it passes gradients to the logits in training mode."""
        return torch.dot(self.gates, self.options)

    def mask(self, times: int = 1) -> Tensor:
        """The mask of ``times`` channels for each of the group.

        Returns:
            (times * c_1,) float32, in [0, 1], falling; its sum is ``times`` effective widths.
        """
        return torch.repeat_interleave(self.gates @ self.covers, times)

    def __getstate__(self) -> Dict[str, Any]:
        """Without what was drawn: torch does not copy what has a gradient's history."""
        return {**self.__dict__, "_drawn": None}


def gumbel(count: int, generator: torch.Generator) -> Tensor:
    """(count,) standard Gumbel noise, float32, from a generator of the CPU."""
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp(2**-60, 1 - 2**-53))).float()


def mask_after(module: nn.Module, choice: WidthChoice, times: int = 1) -> None:
    """Multiplies what a module gives, (B, C, ...), by a mask over its channels.

    Args:
        module: a part of the network that ``choice`` is in, too: a deep copy of both belongs
            together then.
        choice: of the group.
        times: channels for each of the group.
    """
    # In a tuple: it is not a submodule of this one.
    module.width_mask = (choice, times)  # type: ignore[assignment]
    module.register_forward_hook(_mask_output)


def _mask_output(module: nn.Module, args: object, output: Tensor) -> Tensor:
    choice, times = module.width_mask  # type: ignore[misc]
    mask = choice.mask(times).to(output.dtype)
    return output * mask.view(-1, *(1,) * (output.dim() - 2))
