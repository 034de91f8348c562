"""Channels in the order of what they are worth, so that a narrower network keeps the best."""

from typing import Any, Dict

import torch
from torch import nn

from fastreid_rib.search.space import PER_CHANNEL, Space, is_depthwise


@torch.no_grad()
def order(network: nn.Module, space: Space) -> None:
    """Sorts the channels of each map of a trained network, in place: the best first.

    Masks and :func:`~fastreid_rib.search.narrow` keep the first channels. In a network from scratch
    any are as good as others; in one that was trained they are not. What it computes stays as it
    was, except for rounding.

    A channel is worth the sum of the magnitudes of the weights by which layers read it
    (Once-for-All, Cai et al., arXiv 1908.09791, section 3.3).

    Args:
        network: the widest network of the space.
        space: its groups.

    Raises:
        ValueError: the network is not the widest of the space.
    """
    space.check(network)
    modules: Dict[str, Any] = dict(network.named_modules())
    sides = [side for layer in space.layers for side in (layer.inputs, layer.outputs)]
    for channels in dict.fromkeys(side for side in sides if side.group):
        writing = [modules[layer.path] for layer in space.layers if layer.outputs == channels]
        reading = [modules[layer.path] for layer in space.layers if layer.inputs == channels]
        weights = [module.weight for module in reading if _mixes(module)]
        if not weights:  # read outside of the space, where nothing can be sorted
            continue
        worth = torch.stack([w.abs().transpose(0, 1).flatten(1).sum(1) for w in weights]).sum(0)
        best = torch.argsort(worth, descending=True, stable=True)
        for module in writing:
            for name in PER_CHANNEL:
                values = getattr(module, name, None)
                if values is not None:
                    values.copy_(values[best])
        for weight in weights:
            weight.copy_(weight[:, best])


def _mixes(module: nn.Module) -> bool:
    """Whether a layer reads all channels for each that it writes."""
    return isinstance(module, (nn.Conv2d, nn.Linear)) and not is_depthwise(module)
