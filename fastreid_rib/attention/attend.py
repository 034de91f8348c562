"""Softmax attention whose weights are never held as a whole if they are larger than the queries.

Legend: B images, N queries, M keys, D channels of the affinity, E channels of the values.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_FUSED = hasattr(F, "scaled_dot_product_attention")  # torch >= 2.0
# Weights held at a time where it is missing: 64 MiB in float32.
_CHUNK_ELEMENTS = 2**24


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """``softmax(scale * queries @ keys^T) @ values`` in memory that does not grow with N x M.

    Plain products where the weights are no larger than the queries, M <= D. Else
    ``scaled_dot_product_attention`` where torch has it; before torch 2.0 chunks of queries, whose
    weights are computed again in the backward pass if there is more than one chunk.

    Args:
        queries: (B, N, D), floating point.
        keys: (B, M, D), same dtype.
        values: (B, M, E), same dtype.
        scale: factor of the dot products.

    Returns:
        (B, N, E), dtype of ``values``; under autocast the dtype of its matrix products.
    """
    # For ONNX, as plain products export and load with every opset; and where there is no memory to
    # be saved, as a map of 2048 channels and 128 positions takes two thirds of the time by them.
    if torch.jit.is_tracing() or keys.shape[1] <= queries.shape[2]:
        return _attend_plainly(queries, keys, values, scale)
    if _FUSED:
        # torch 2.0 has no argument for the scale, so what differs from 1/sqrt(D) goes in before.
        queries = queries * (scale * queries.shape[2] ** 0.5)
        # Four dimensions: three would never reach the fused kernels.
        mixed = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])
        return mixed[:, 0]
    step = max(1, _CHUNK_ELEMENTS // max(1, len(queries) * keys.shape[1]))
    if step >= queries.shape[1]:
        return _attend_plainly(queries, keys, values, scale)
    chunks = []
    for chunk in queries.split(step, dim=1):
        if torch.is_grad_enabled():
            arguments = (chunk, keys, values, scale)
            chunks.append(
                checkpoint(
                    _attend_plainly, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            )
        else:
            chunks.append(_attend_plainly(chunk, keys, values, scale))
    return torch.cat(chunks, dim=1)


def attention_weights(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """The weights that :func:`attend` mixes the values with.

    Args:
        queries: (B, N, D), floating point.
        keys: (B, M, D), same dtype.
        scale: factor of the dot products.

    Returns:
        (B, N, M), at least float32, rows that sum to 1.
    """
    return (at_least_float32(queries @ keys.transpose(1, 2)) * scale).softmax(dim=2)


def _attend_plainly(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return attention_weights(queries, keys, scale).to(values.dtype) @ values


def at_least_float32(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
