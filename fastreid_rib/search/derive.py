"""From probabilities to one network: the nearest to what a search draws that can be afforded."""

import math
from typing import Dict, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from fastreid_rib.search.cost import Cost

_MOST_CHOICES = 10**7


class Choices(NamedTuple):
    """All networks of a space.

    Attributes:
        widths: of each group, (choices,) int64.
        costs: (choices,) float64, multiply-adds an image.
    """

    widths: Dict[str, Tensor]
    costs: Tensor

    def at(self, index: int) -> Dict[str, int]:
        """The widths of one network."""
        return {group: int(widths[index]) for group, widths in self.widths.items()}


def all_choices(cost: Cost) -> Choices:
    """Every network of a space, in the order of the groups and their widths.

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
    costs = torch.as_tensor(cost.of({group: w.double() for group, w in widths.items()}))
    return Choices(widths, costs)


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
    choices = all_choices(cost)
    expected = []
    for group, widths in cost.space.groups.items():
        logs = torch.tensor(widths, dtype=torch.float64).log()
        drawn = torch.tensor(probabilities[group], dtype=torch.float64)
        expected.append((logs[:, None] - logs).abs() @ drawn)
    first, *others = torch.meshgrid(*expected, indexing="ij")
    distance = sum(others, first).flatten()
    distance[choices.costs > limit * (1 + 1e-9)] = math.inf
    best = torch.nonzero(distance <= distance.min() * (1 + 1e-9))[:, 0]
    return choices.at(int(best[torch.argmax(choices.costs[best])]))
