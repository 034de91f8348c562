"""The shapes of what modules of a network read and write."""

from typing import Any, List, Mapping, NamedTuple, Tuple

from fastreid_rib.base.kept import evaluated


class Run(NamedTuple):
    """One run of a module: its name, the shapes of its first input and of its output."""

    name: Any
    read: Tuple[int, ...]
    written: Tuple[int, ...]


def runs(network: Any, images: Any, modules: Mapping[Any, Any]) -> List[Run]:
    """Evaluates a network once and lists the runs of some of its modules, in order.

    Args:
        network: a ``torch.nn.Module``.
        images: what it is called with.
        modules: modules of the network, by any names.
    """
    found: List[Run] = []
    hooks = []
    for name, module in modules.items():

        def note(module: Any, args: Any, output: Any, name: Any = name) -> None:
            found.append(Run(name, tuple(args[0].shape), tuple(output.shape)))

        hooks.append(module.register_forward_hook(note))
    try:
        with evaluated(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
