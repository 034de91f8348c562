"""What a network of some widths costs, and the one to take of those that can be afforded."""

import math
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.base.kept import runs
from fastreid_rib.search.space import Channels, Space, is_depthwise

_MOST_CHOICES = 10**7


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
        apart: what no group decides and somebody else has counted (attention, say): multiply-adds
            by path in the network, or by any other name.

    Attributes:
        widest: of the widest network.
        narrowest: of the narrowest one.

    Raises:
        ValueError: the network is not the widest of the space.
    """

    def __init__(
        self, network: nn.Module, space: Space, images: Tensor, apart: Mapping[str, float] = {}
    ) -> None:
        space.check(network)
        self.space = space
        self.constant = float(sum(apart.values()))
        # Of a layer: a factor, and the sides that belong to groups, whose channels multiply it.
        self._terms: List[Tuple[float, List[Channels]]] = []
        sides = {layer.path: (layer.inputs, layer.outputs) for layer in space.layers}
        layers = {
            path: module
            for path, module in network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
            and not any(f"{path}.".startswith(f"{other}.") for other in apart)
        }
        for path, shape in runs(network, images, layers):
            module: Any = layers[path]
            outputs, inputs = module.weight.shape[:2]
            factor = float(math.prod(shape[1:]) // outputs * module.weight[0, 0].numel())
            read, written = sides.get(path, (Channels(), Channels()))
            if is_depthwise(module):
                read = Channels()
            for side, channels in ((written, outputs), (read, inputs)):
                factor *= 1 if side.group else int(channels)
            groups = [side for side in (written, read) if side.group]
            if groups:
                self._terms.append((factor, groups))
            else:
                self.constant += factor
        self.widest = float(self.of(space.widest))
        self.narrowest = float(self.of(space.narrowest))

    def of(self, widths: Mapping[str, Any]) -> Any:
        """The multiply-adds of networks of some widths.

        Args:
            widths: for each group a number, or a tensor, of one shape for all: widths, or effective
                widths, to which gradients go.

        Returns:
            A number, or a tensor of that shape.
        """
        total: Any = self.constant
        for factor, sides in self._terms:
            cost: Any = factor
            for side in sides:
                cost = cost * (widths[side.group] * side.times)
            total = total + cost
        return total


def all_choices(cost: Cost) -> Tuple[Dict[str, Tensor], Tensor]:
    """Every network of a space, in the order of the groups and their widths.

    Returns:
        The widths of each group, (choices,) int64, and the costs, (choices,) float64.

    Raises:
        ValueError: too many to be compared.
    """
    groups = cost.space.groups
    count = math.prod(len(widths) for widths in groups.values())
    if count > _MOST_CHOICES:
        raise ValueError(
            f"a search space must have at most {_MOST_CHOICES} networks, whose costs are compared "
            f"at its end, got {count}: offer fewer widths, or put groups together"
        )
    grids = torch.meshgrid(*map(torch.tensor, groups.values()), indexing="ij")
    widths = {group: grid.flatten() for group, grid in zip(groups, grids)}
    return widths, torch.as_tensor(cost.of({group: w.double() for group, w in widths.items()}))


def derive(
    cost: Cost, probabilities: Mapping[str, Sequence[float]], limit: float
) -> Dict[str, int]:
    """The network nearest to those that a search draws, of all that cost no more than a limit.

    Its widths differ least from drawn ones, in the sum over the groups of the expected
    ``sum_h p_h |log(c_h / c)|`` (ours). Where every group has settled, these are the most probable
    widths. Together they need not meet the limit, for the cost that a search minimises is that of
    gates between widths; then those groups give way that differ least by it. The most probable
    network within the limit can be far from all that was drawn: of widths that are not drawn, how
    improbable each is says nothing.

    Args:
        cost: of the space.
        probabilities: of each group's widths, in their order.
        limit: multiply-adds an image.

    Returns:
        A width for each group; of equally near ones those of higher cost.

    Raises:
        ValueError: even the narrowest network costs more, or there are too many networks.
    """
    if limit < cost.narrowest:
        raise ValueError(
            f"no network of this space costs {limit:.4g} multiply-adds: the narrowest takes "
            f"{cost.narrowest:.4g}, the widest {cost.widest:.4g}"
        )
    choices, costs = all_choices(cost)
    expected = []
    for group, widths in cost.space.groups.items():
        logs = torch.tensor(widths, dtype=torch.float64).log()
        drawn = torch.tensor(probabilities[group], dtype=torch.float64)
        expected.append((logs[:, None] - logs).abs() @ drawn)
    first, *others = torch.meshgrid(*expected, indexing="ij")
    distance = sum(others, first).flatten()
    distance[costs > limit * (1 + 1e-9)] = math.inf
    best = torch.nonzero(distance <= distance.min() * (1 + 1e-9))[:, 0]
    chosen = best[torch.argmax(costs[best])]
    return {group: int(widths[chosen]) for group, widths in choices.items()}
