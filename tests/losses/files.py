"""What a file keeps of a module."""

import io

import torch


def on_disk(module):
    """The state_dict of a module after a trip through a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file)
