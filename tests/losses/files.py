"""What files keep of a module, and of the RIBLoss in it."""

import io

import torch

from fastreid_rib import RIBLoss


def everything(module):
    """The state_dict as 0.2 wrote it: with what each RIBLoss holds, behind its own name."""
    state = dict(module.state_dict())
    for place, part in module.named_modules():
        if place and isinstance(part, RIBLoss):
            state.update((f"{place}.{key}", value) for key, value in part.state_dict().items())
    return state


def on_disk(module):
    """:func:`everything` of a module after a trip through a file."""
    file = io.BytesIO()
    torch.save(everything(module), file)
    file.seek(0)
    return torch.load(file)
