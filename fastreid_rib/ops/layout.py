"""Rows at a pitch that wide memory accesses can use."""

from typing import Any

import torch
from torch import Tensor

# Floats in a cache line. Four would do for the kernels' 16-byte accesses.
_LINE = 16


def empty_rows(like: Tensor, rows: Any, columns: Any) -> Tensor:
    """An uninitialised matrix whose rows begin at aligned addresses, whatever their length.

    K is often odd (751, 1041 identities), and the rows of a contiguous (n, 751) matrix begin at
    addresses that no wide access can start from: the kernels would go number by number, and the
    matrix product is up to a third slower. The pitch is an odd number of cache lines: at a power of
    two all rows would compete for the same few places in the cache.

    Args:
        like: tensor whose dtype and device to take.
        rows: number of rows.
        columns: number of columns.

    Returns:
        (rows, columns)
    """
    lines = (columns + _LINE - 1) // _LINE
    # Without a branch, so that torch.compile need not know the size.
    return like.new_empty_strided((rows, columns), (_LINE * (lines + 1 - lines % 2), 1))


def aligned_rows(matrix: Tensor) -> Tensor:
    """A copy of a matrix in the layout of :func:`empty_rows`."""
    return empty_rows(matrix, *matrix.shape).copy_(matrix)


def pitch(matrix: Tensor) -> int:
    """Elements from a row to the next, for a matrix whose rows are contiguous."""
    # Of a matrix of one row torch may report any stride.
    return max(matrix.stride(0), matrix.shape[1])


def with_contiguous_rows(matrix: Tensor) -> Tensor:
    """The matrix itself, or a contiguous copy if its rows are not contiguous or overlap."""
    fits = matrix.stride(1) == 1 and (len(matrix) <= 1 or matrix.stride(0) >= matrix.shape[1])
    return matrix if fits or torch.numel(matrix) == 0 else matrix.contiguous()
