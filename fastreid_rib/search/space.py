"""What a search may choose: groups of channels, and the layers whose sides belong to them."""

from collections import Counter
from typing import Dict, Mapping, NamedTuple, Sequence, Tuple

from torch import nn

from fastreid_rib.settings.declaration import did_you_mean


class Channels(NamedTuple):
    """The channels on one side of a layer.

    Attributes:
        group: the group that they belong to; "": they stay as they were built.
        times: channels of this side for each one of the group: 6 inside a block that expands the
            group's channels by 6.
        map: which of the group's maps these are the channels of, if not of the one that blocks add
            to: maps whose channels may be put in an order of their own.
    """

    group: str = ""
    times: int = 1
    map: str = ""

    def count(self, widths: Mapping[str, int]) -> int:
        """How many there are at a choice of widths; 0 without a group."""
        return widths[self.group] * self.times if self.group else 0


class Layer(NamedTuple):
    """A layer whose channels a group decides.

    Attributes:
        path: of the convolution, linear layer or norm in the network.
        inputs: the side that it reads; for a norm and a depthwise convolution the same as outputs.
        outputs: the side that it writes.
        masked: whether the mask of ``outputs`` goes after it. A group is masked after the norm
            of every layer that writes it, for a norm gives channels that are zero a value again;
            between a 1x1 and a depthwise convolution, which does not mix channels, once is enough.
    """

    path: str
    inputs: Channels
    outputs: Channels
    masked: bool = False


class Space:
    """Groups of channels in a network, and the widths that each may have.

    All masks keep the first channels, so a narrower network is a slice of the one that is built.

    Args:
        groups: for each group its widths, the widest (which is what the network was built with)
            first, each narrower than the one before.
        layers: every layer with a side in a group.

    Raises:
        ValueError: no groups, widths that are not nested, a layer twice, or a group of a layer
            that is not there.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]], layers: Sequence[Layer]) -> None:
        self.groups: Dict[str, Tuple[int, ...]] = {
            name: tuple(int(width) for width in widths) for name, widths in groups.items()
        }
        self.layers: Tuple[Layer, ...] = tuple(layers)
        if not self.groups:
            raise ValueError("a search space needs a group, got none: write {name: widths}")
        for name, widths in self.groups.items():
            nested = all(wide > narrow for wide, narrow in zip(widths, widths[1:]))
            if not widths or widths[-1] < 1 or not nested:
                raise ValueError(
                    f"the widths of group '{name}' must fall from the widest on and stay above 0, "
                    f"such as (28, 24, 20, 16), but are {widths}"
                )
        for path, times in Counter(layer.path for layer in self.layers).items():
            if times > 1:
                raise ValueError(f"the layer '{path}' is in the search space twice")
        for side in self.sides():
            if side.group not in self.groups:
                raise ValueError(
                    f"there is no group '{side.group}'.{did_you_mean(side.group, self.groups)} "
                    f"The space has {', '.join(self.groups)}."
                )

    def sides(self) -> Tuple[Channels, ...]:
        """All sides of layers that belong to a group, each once."""
        sides = (side for layer in self.layers for side in (layer.inputs, layer.outputs))
        return tuple(dict.fromkeys(side for side in sides if side.group))

    @property
    def widest(self) -> Dict[str, int]:
        """The first width of each group."""
        return {name: widths[0] for name, widths in self.groups.items()}

    @property
    def narrowest(self) -> Dict[str, int]:
        """The last width of each group."""
        return {name: widths[-1] for name, widths in self.groups.items()}

    def check(self, network: nn.Module) -> None:
        """Checks that a network is the widest one of this space.

        Raises:
            ValueError: a layer that is not there, or one with other channels.
        """
        modules = dict(network.named_modules())
        for layer in self.layers:
            module = modules.get(layer.path)
            if module is None:
                raise ValueError(
                    f"the search space names the layer '{layer.path}', which "
                    f"{type(network).__name__} does not have"
                )
            sides = zip(("inputs", "outputs"), (layer.inputs, layer.outputs), sides_of(module))
            for name, side, built in sides:
                expected = side.count(self.widest)
                if side.group and built != expected:
                    raise ValueError(
                        f"the layer '{layer.path}' must have {expected} {name} ({side.times} x the "
                        f"widest of group '{side.group}'), but has {built}"
                    )

    def choice(self, widths: Sequence[int]) -> Dict[str, int]:
        """A choice from its widths in the order of the groups.

        Raises:
            ValueError: not one width for each group, or one that a group does not offer.
        """
        if len(widths) != len(self.groups):
            raise ValueError(
                f"{len(self.groups)} widths are needed, one each for {', '.join(self.groups)}; "
                f"got {tuple(widths)}"
            )
        choice = dict(zip(self.groups, (int(width) for width in widths)))
        for name, width in choice.items():
            if width not in self.groups[name]:
                raise ValueError(
                    f"group '{name}' can have {', '.join(map(str, self.groups[name]))} channels, "
                    f"not {width}"
                )
        return choice


def sides_of(module: nn.Module) -> Tuple[int, int]:
    """Channels that a layer reads and writes.

    Raises:
        TypeError: neither a convolution, a linear layer nor a norm over channels, or in groups.
    """
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and not module.groups == module.in_channels == module.out_channels:
            raise TypeError(
                "a search can narrow plain convolutions and those of each channel by itself, not "
                f"one of {module.in_channels} channels to {module.out_channels} in {module.groups} "
                "groups"
            )
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    channels = getattr(module, "num_features", None)
    if channels is None:
        raise TypeError(
            f"a search can narrow Conv2d, Linear and batch norms, not {type(module).__name__}"
        )
    return channels, channels


PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")
"""What layers and norms hold, first dimension: the channels that they write."""


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer is a convolution of each channel by itself."""
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
