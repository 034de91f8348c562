"""A narrower network, cut out of the widest one: the first channels of each group.

In a trained network the channels are first put in the order of what they are worth.
"""

from typing import Any, Dict, Mapping, Optional

import torch
from torch import nn

from fastreid_rib.search.space import PER_CHANNEL, Channels, Space, is_depthwise


def narrow(network: nn.Module, space: Space, widths: Mapping[str, int]) -> None:
    """Cuts a network down to some widths, in place; weights keep their first channels.

    What the mask of a search lets through at these widths, the narrow network computes exactly (in
    evaluation mode).

    Args:
        network: the widest network of the space.
        space: its groups.
        widths: a width for each group.

    Raises:
        ValueError: the network is not the widest of the space, or a width that is not offered.
    """
    space.check(network)
    space.choice([widths[group] for group in space.groups])
    modules = dict(network.named_modules())
    for layer in space.layers:
        _cut(modules[layer.path], layer.inputs, layer.outputs, widths)


def _cut(module: Any, inputs: Channels, outputs: Channels, widths: Mapping[str, int]) -> None:
    written: Optional[int] = outputs.count(widths) or None  # None as the end of a slice: all
    read: Optional[int] = inputs.count(widths) or None
    depthwise = is_depthwise(module)
    for name in PER_CHANNEL:
        old = getattr(module, name, None)
        if old is None:
            continue
        new: torch.Tensor = old.detach()[:written]
        if new.dim() > 1 and not depthwise:  # weights that mix channels
            new = new[:, :read]
        new = new.clone()
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        setattr(module, name, new)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        rows, columns = module.weight.shape[:2]
        module.out_channels = rows
        module.groups = rows if depthwise else module.groups
        module.in_channels = columns * module.groups
    else:
        module.num_features = outputs.count(widths)


@torch.no_grad()
def order(network: nn.Module, space: Space) -> None:
    """Sorts the channels of each map of a trained network, in place: the best first.

    Masks and :func:`narrow` keep the first channels. In a network from scratch
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
    for channels in space.sides():
        writing = [modules[layer.path] for layer in space.layers if layer.outputs == channels]
        reading = [modules[layer.path] for layer in space.layers if layer.inputs == channels]
        weights = [
            m.weight
            for m in reading
            if isinstance(m, (nn.Conv2d, nn.Linear)) and not is_depthwise(m)
        ]
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
