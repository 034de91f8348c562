"""From probabilities to one network: the most probable choice that can be afforded."""

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
    grids = torch.meshgrid(*(torch.tensor(widths) for widths in groups.values()), indexing="ij")
    widths = {group: grid.flatten() for group, grid in zip(groups, grids)}
    costs = torch.as_tensor(cost.of({group: w.double() for group, w in widths.items()}))
    return Choices(widths, costs)


def derive(
    cost: Cost, probabilities: Mapping[str, Sequence[float]], limit: float
) -> Dict[str, int]:
    """The most probable network that costs no more than a limit.

    Each group's most probable width alone need not meet the limit: the cost that a search minimises
    is that of gates between widths. All networks of the space are compared.

    Args:
        cost: of the space.
        probabilities: of each group's widths, in their order.
        limit: multiply-adds an image.

    Returns:
        A width for each group; of equally probable ones those of higher cost.

    Raises:
        ValueError: even the narrowest network costs more, or there are too many networks.
    """
    if limit < cost.narrowest:
        raise ValueError(
            f"no network of this space costs {limit:.4g} multiply-adds: the narrowest takes "
            f"{cost.narrowest:.4g}, the widest {cost.widest:.4g}"
        )
    choices = all_choices(cost)
    rows = [torch.tensor(probabilities[group], dtype=torch.float64) for group in cost.space.groups]
    logs = torch.meshgrid(*(row.log() for row in rows), indexing="ij")
    log_probability = torch.stack(logs).sum(0).flatten()
    log_probability[choices.costs > limit * (1 + 1e-9)] = -math.inf
    best = torch.nonzero(log_probability == log_probability.max())[:, 0]
    return choices.at(int(best[torch.argmax(choices.costs[best])]))
