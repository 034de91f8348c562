"""A narrower network, cut out of the widest one: the first channels of each group."""

from typing import Any, Optional

import torch
from torch import nn

from fastreid_rib.search.space import PER_CHANNEL, Channels, Space, Widths, is_depthwise


def narrow(network: nn.Module, space: Space, widths: Widths) -> None:
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


def _cut(module: Any, inputs: Channels, outputs: Channels, widths: Widths) -> None:
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
