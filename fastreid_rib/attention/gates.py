"""Channel attention by gates, for (B, C, H, W) maps: SE, ECA and the channel half of CBAM.

As published a gate is a sigmoid, which starts near 1/2: put into a pretrained network it halves the
map, and what was learnt after it no longer fits. Here, unless ``start="published"``, the gate is
twice a sigmoid (0..2) and the layer before it starts at zero: the gate starts at exactly 1, and
weight decay pulls towards that. What goes into the layer is normalised over the batch (ours, see
:mod:`fastreid_rib.attention.inputs`). ``start="published"`` with ``norm="none"`` is the paper's.

Legend: B images, C channels, H x W positions.
"""

import math

import torch
from torch import Tensor, nn

from fastreid_rib.attention import inputs
from fastreid_rib.settings.attention import AttentionSettings


class ChannelGate(nn.Module):
    """Multiplies each channel by a gate, which a subclass computes from the whole map."""

    def __init__(self, channels: int, start: str) -> None:
        super().__init__()
        inputs.check_channels(channels)
        AttentionSettings(start=start)  # checks it
        self.channels = channels
        self.start = start

    def logits(self, x: Tensor) -> Tensor:
        """(B, C): what the sigmoid of a (B, C, H, W) map is taken of."""
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """(B, C): the factors of the channels of a (B, C, H, W) map of any floating dtype.

        At least float32, 0..2 (0..1 with ``start="published"``).
        """
        inputs.check_shape(self, x, self.channels)
        gate = torch.sigmoid(inputs.at_least_float32(self.logits(x)))
        return 2 * gate if self.start == "identity" else gate

    def forward(self, x: Tensor) -> Tensor:
        """The map with each channel times its gate.

        Args:
            x: (B, C, H, W), any floating dtype.

        Returns:
            Shape and dtype of ``x``.

        Raises:
            ValueError: not a map, or of other channels.
        """
        return x * self.gate(x).to(x.dtype)[:, :, None, None]

    def extra_repr(self) -> str:
        """Settings that the submodules do not show."""
        return f"{self.channels}, start={self.start}"

    def _last(self, layer: nn.Module) -> None:
        """Names the layer that gives the logits, so that it starts as ``start`` says."""
        if self.start == "identity":
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)


class _TwoLayers(ChannelGate):
    """A gate that two linear layers without biases give, with fewer channels between them."""

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = AttentionSettings.reduction,
        start: str = AttentionSettings.start,
        norm: str = AttentionSettings.norm,
    ) -> None:
        super().__init__(channels, start)
        if not 1 <= reduction <= channels:
            raise ValueError(f"reduction must be in 1..{channels}, the channels, got {reduction}")
        hidden = channels // reduction
        self.excite = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            inputs.build_norm(norm, hidden),
            nn.Linear(hidden, channels, bias=False),
        )
        self._last(self.excite[-1])


class SE(_TwoLayers):
    """Squeeze and excitation: ``x * 2 sigmoid(W2 norm(relu(W1 mean(x))))``.

    Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018. Without biases, as in its equation
    (and as in FastReID's own). The 2 and the norm are ours, see the module's text.

    Args:
        channels: C, >= 1.
        reduction: C is divided by this between the two layers, 1..C.
        start: "identity" or "published".
        norm: "batch", "layer" or "none".

    Raises:
        ValueError: an argument is out of its range.
    """

    def logits(self, x: Tensor) -> Tensor:
        """(B, C), see :meth:`ChannelGate.logits`."""
        return self.excite(x.mean(dim=(2, 3)))


class CBAMChannel(_TwoLayers):
    """The channel half of CBAM: ``x * 2 sigmoid(f(mean(x)) + f(max(x)))``, f two layers as in SE.

    Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018, equation 2. Without biases,
    as there. The 2 and the norm are ours, see the module's text. Takes what :class:`SE` takes;
    ``norm`` "batch" is over the means and the maxima together.
    """

    def logits(self, x: Tensor) -> Tensor:
        """(B, C), see :meth:`ChannelGate.logits`."""
        # amax and not a pooling layer, whose gradient on a GPU depends on the order of atomics.
        # Together, so that in eval the running statistics fit what they are used for.
        pooled = torch.stack((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))))
        return self.excite(pooled).sum(dim=0)


class ECA(ChannelGate):
    """Efficient channel attention: a 1-D convolution over the mean of each channel.

    Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    CVPR 2020. Differs in start and norm, see the module's text.

    Args:
        channels: C, >= 1.
        kernel_size: channels that a gate looks at, odd; 0: the paper's choice, the odd number next
            to (log2(C) + 1) / 2.
        start: "identity" or "published".
        norm: "batch", "layer" or "none".

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = AttentionSettings.kernel_size,
        start: str = AttentionSettings.start,
        norm: str = AttentionSettings.norm,
    ) -> None:
        super().__init__(channels, start)
        AttentionSettings(kernel_size=kernel_size)  # checks it
        # As in the authors' code: truncated, and made odd upwards.
        size = kernel_size or int((math.log2(channels) + 1) / 2) | 1
        self.norm = inputs.build_norm(norm, channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)
        self._last(self.conv)

    def logits(self, x: Tensor) -> Tensor:
        """(B, C), see :meth:`ChannelGate.logits`."""
        return self.conv(self.norm(x.mean(dim=(2, 3)))[:, None])[:, 0]
