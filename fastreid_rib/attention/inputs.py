"""What goes into an attention module and its layers: checked, precise, normalised.

Why normalised (ours): after a ReLU all is positive. Every image then pushes a row of a layer that
starts at zero the same way, and what is learnt first is the same for every image: one vector added
to all tokens (DCS), one scale for each channel (channel attention), which tells nobody apart
(docs/notebook/attention.md). Normalised over the batch each feature has mean 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.settings.attention import AttentionSettings


def check_channels(channels: int) -> None:
    """Raises ValueError where a module is made for fewer channels than one."""
    if channels < 1:
        raise ValueError(f"channels must be >= 1, got {channels}")


def check_shape(module: nn.Module, x: Tensor, channels: int, *, tokens: bool = False) -> None:
    """Checks that a module gets (B, C, H, W), or (B, N, C) where ``tokens`` will do as well.

    Raises:
        ValueError: it gets something else; the message names the module.
    """
    if torch.jit.is_tracing():  # sizes are tensors there, and comparing them warns
        return
    axis = ({4: 1, 3: 2} if tokens else {4: 1}).get(x.dim())
    if axis is None or x.shape[axis] != channels:
        expected = f"(B, {channels}, H, W) maps"
        if tokens:
            expected += f" or (B, N, {channels}) tokens"
        raise ValueError(f"{type(module).__name__} takes {expected}, got {tuple(x.shape)}")


def at_least_float32(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def build_norm(norm: str, features: int) -> nn.Module:
    """A normalisation of (..., D) tensors over all but the last dimension, or over the last.

    Args:
        norm: "batch": by batch statistics in training and by running ones in eval; "layer": by its
            own; "none": as it is.
        features: D, >= 1.

    Raises:
        ValueError: none of these.
    """
    AttentionSettings(norm=norm)  # checks it
    if norm == "batch":
        return _BatchNorm(features, affine=False)  # the next layer can do what weights would
    return nn.LayerNorm(features, elementwise_affine=False) if norm == "layer" else nn.Identity()


class _BatchNorm(nn.modules.batchnorm._NormBase):
    """Of (..., D). A lone row has no variance: it gets the running statistics, as in eval.

    No nn.BatchNorm1d: SyncBatchNorm would take its place, and read (B, N, D) as (B, D, N).
    """

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if torch.jit.is_tracing() and not self.training and mean is not None:
            # torch's ONNX exporter by TorchScript knows no channels of a batch of any size.
            assert variance is not None
            return ((x - mean) * (variance + self.eps).rsqrt()).to(x.dtype)
        # Rows, not (B, D, N): compiled, torch's batch normalisation mistakes a transposed layout.
        rows = x.reshape(-1, x.shape[-1])
        learns = self.training and len(rows) > 1
        if learns and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var
        rows = F.batch_norm(rows, *statistics, training=learns, eps=self.eps)
        return rows.reshape(x.shape)
