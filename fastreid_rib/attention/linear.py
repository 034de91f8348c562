"""Linear layers that start at zero, with all weights or with fewer.

At 2048 channels a full matrix holds 4.2 million weights, and two of them take most of the time of
DCS-Attention. A product of two thin matrices, or blocks on the diagonal, keep every channel and
cost a fraction. Ours.

Legend: I inputs, O outputs, R rank, G groups.
"""

import torch
from torch import Tensor, nn

from fastreid_rib.settings.attention import AttentionSettings


def build_linear(
    inputs: int,
    outputs: int,
    *,
    rank: int = AttentionSettings.rank,
    groups: int = AttentionSettings.groups,
    bias: float = 0.0,
) -> nn.Module:
    """A layer (..., I) -> (..., O) that gives its bias at first, whatever it is given.

    Args:
        inputs: I, >= 1.
        outputs: O, >= 1.
        rank: R, 0..min(I, O): a product of two matrices, see :class:`LowRankLinear`; 0: no product.
        groups: G, a divisor of I and O: blocks, see :class:`GroupedLinear`; 1: no blocks.
        bias: where each number of the bias starts.

    Raises:
        ValueError: ``rank`` or ``groups`` out of its range, or both of them given.
    """
    if rank and groups != 1:
        raise ValueError(
            f"rank and groups each stand for a full matrix, got {rank} and {groups}; write one of "
            "the two (rank 0 or groups 1 leave the other alone)"
        )
    most = min(inputs, outputs)
    if not 0 <= rank <= most:
        raise ValueError(f"rank must be in 0..{most}, the channels (0: full), got {rank}")
    if groups < 1 or inputs % groups or outputs % groups:
        channels = " and the ".join(str(size) for size in sorted({inputs, outputs}, reverse=True))
        raise ValueError(f"groups must divide the {channels} channels (1: full), got {groups}")
    if rank:
        return LowRankLinear(inputs, outputs, rank, bias)
    if groups > 1:
        return GroupedLinear(inputs, outputs, groups, bias)
    return _start(nn.Linear(inputs, outputs), bias)


class LowRankLinear(nn.Module):
    """``(X W_1) W_2 + b``: a matrix of rank R, as two layers.

    ``W_2`` starts at zero. ``W_1`` does not, and gets its first gradient after ``W_2`` has moved;
    both at zero would stay there.

    Args:
        inputs: I.
        outputs: O.
        rank: R.
        bias: where each number of b starts.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, bias: float) -> None:
        super().__init__()
        self.narrow = nn.Linear(inputs, rank, bias=False)
        self.widen = _start(nn.Linear(rank, outputs), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., O).

        Args:
            x: (..., I), any floating dtype.
        """
        return self.widen(self.narrow(x))


class GroupedLinear(nn.Module):
    """``X W + b`` with a block-diagonal ``W``: each group of outputs sees its group of inputs.

    ``W`` starts at zero.

    Args:
        inputs: I, a multiple of ``groups``.
        outputs: O, too.
        groups: G.
        bias: where each number of b starts.
    """

    def __init__(self, inputs: int, outputs: int, groups: int, bias: float) -> None:
        super().__init__()
        # The blocks, transposed: (G, I / G, O / G).
        self.weight = nn.Parameter(torch.zeros(groups, inputs // groups, outputs // groups))
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., O).

        Args:
            x: (..., I), any floating dtype.
        """
        groups, size, _ = self.weight.shape
        blocks = x.reshape(-1, groups, size).transpose(0, 1)
        blocks = torch.baddbmm(self.bias.view(groups, 1, -1), blocks, self.weight)
        return blocks.transpose(0, 1).reshape(*x.shape[:-1], self.bias.shape[0])

    def extra_repr(self) -> str:
        """Shape of the layer."""
        groups, size, outputs = self.weight.shape
        return f"in={groups * size}, out={groups * outputs}, groups={groups}"


def _start(layer: nn.Linear, bias: float) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, bias)
    return layer
