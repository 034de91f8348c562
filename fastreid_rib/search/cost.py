"""What a network of some widths costs: multiply-adds an image, from (effective) widths."""

import math
from typing import Any, List, Mapping, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from fastreid_rib.base.kept import runs
from fastreid_rib.search.space import Channels, Space, is_depthwise

Number = Union[int, float, Tensor]


class Cost:
    """Multiply-adds an image of a network's convolutions and linear layers, as widths decide them.

    A convolution to an H x W map with a k x k kernel from c_in to c_out channels takes
    ``H W k^2 c_in c_out``, a depthwise one ``H W k^2 c``. Effective widths in place of widths give
    the expected cost that a search minimises; one-hot gates give that of the derived network
    exactly.

    Args:
        network: the widest network; evaluated once, in evaluation mode, on ``images``.
        space: its groups.
        images: (1, 3, H, W) a picture of the size that counts.
        extra: of some groups, multiply-adds that come on top at each of its widths (attention
            after a block, say), in the order of the widths.
        constant: multiply-adds that no group decides and that are not counted otherwise.
        apart: modules by path whose layers ``extra`` or ``constant`` counts already.

    Attributes:
        widest: of the widest network.
        narrowest: of the narrowest one.

    Raises:
        ValueError: the network is not the widest of the space, or an ``extra`` does not fit.
    """

    def __init__(
        self,
        network: nn.Module,
        space: Space,
        images: Tensor,
        extra: Mapping[str, Sequence[float]] = {},
        constant: float = 0.0,
        apart: Sequence[str] = (),
    ) -> None:
        space.check(network)
        for group, costs in extra.items():
            if len(costs) != len(space.groups.get(group, ())):
                raise ValueError(f"extra['{group}'] needs a number for each of its widths")
        self.space = space
        self.extra = {group: tuple(float(cost) for cost in extra[group]) for group in extra}
        self.constant = float(constant)
        # Of a layer: a factor, and the sides that belong to groups, whose channels multiply it.
        self._terms: List[Tuple[float, List[Channels]]] = []
        sides = {layer.path: (layer.inputs, layer.outputs) for layer in space.layers}
        layers = {
            path: module
            for path, module in network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
            and not any(f"{path}.".startswith(f"{other}.") for other in apart)
        }
        for run in runs(network, images, layers):
            module: Any = layers[run.name]
            positions = math.prod(run.written[1:]) // module.weight.shape[0]
            self._add(module, positions, *sides.get(run.name, (Channels(), Channels())))
        self.widest = float(self.of(space.widest))
        self.narrowest = float(self.of(space.narrowest))

    def _add(self, module: nn.Module, positions: int, inputs: Channels, outputs: Channels) -> None:
        weight: Any = module.weight
        factor = float(positions * weight[0, 0].numel())
        if is_depthwise(module):
            inputs = Channels()
        for side, channels in ((outputs, weight.shape[0]), (inputs, weight.shape[1])):
            factor *= 1 if side.group else int(channels)
        sides = [side for side in (outputs, inputs) if side.group]
        if sides:
            self._terms.append((factor, sides))
        else:
            self.constant += factor

    def of(self, widths: Mapping[str, Number]) -> Number:
        """The multiply-adds of networks of some widths.

        Args:
            widths: for each group one of its widths, or a tensor of them, of one shape for all.

        Returns:
            A number, or float64 of that shape.
        """
        total = self._of_layers(widths)
        for group, costs in self.extra.items():
            at, table = widths[group], dict(zip(self.space.groups[group], costs))
            if isinstance(at, Tensor):
                found = [table[int(width)] for width in at.flatten().tolist()]
                total = total + torch.tensor(found, dtype=torch.float64).view_as(at)
            else:
                total = total + table[int(at)]
        return total

    def expected(self, widths: Mapping[str, Tensor], gates: Mapping[str, Tensor]) -> Tensor:
        """The multiply-adds at effective widths, with a gradient to them.

        Args:
            widths: effective widths, scalars.
            gates: (H,) of each group: how much of each of its widths is in it.
        """
        total = torch.as_tensor(self._of_layers(widths))
        for group, costs in self.extra.items():
            total = total + torch.dot(gates[group], gates[group].new_tensor(costs))
        return total

    def _of_layers(self, widths: Mapping[str, Any]) -> Any:
        total: Any = self.constant
        for factor, sides in self._terms:
            cost: Any = factor
            for side in sides:
                cost = cost * (widths[side.group] * side.times)
            total = total + cost
        return total
