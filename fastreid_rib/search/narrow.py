"""A narrower network, cut out of the widest one: the first channels of each group."""

from typing import Any, Optional

import torch
from torch import nn

from fastreid_rib.search.space import Channels, Space, Widths, is_depthwise


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
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        depthwise = is_depthwise(module)
        cut = module.weight.detach()[:written]
        _put(module, "weight", cut if depthwise else cut[:, :read])
        if module.bias is not None:
            _put(module, "bias", module.bias.detach()[:written])
        rows, columns = module.weight.shape[:2]
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = rows, columns
            return
        module.out_channels = rows
        module.in_channels = rows if depthwise else columns * module.groups
        module.groups = rows if depthwise else module.groups
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            _put(module, name, getattr(module, name).detach()[:written])
    module.num_features = outputs.count(widths)


def _put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    old = getattr(module, name)
    new: torch.Tensor = value.clone()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
