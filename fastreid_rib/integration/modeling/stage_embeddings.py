"""Embeddings of a backbone's stages: what RIB is computed from besides the head's embedding.

The map that a stage gives is pooled, by its mean over the positions, and is trained to tell
identities apart there already. Attention behind the stage has worked on it.
"""

from typing import Any, Dict, Iterable

import torch
from torch import Tensor, nn

from fastreid_rib.integration.modeling.placement.stages import find_stages


def watch_stages(model: nn.Module, names: Iterable[str], device: torch.device) -> Dict[str, Any]:
    """Lets stages of a model's backbone keep their pooled maps in training.

    Args:
        model: a meta-architecture.
        names: of stages, as in ``MODEL.ATTENTION.PLACEMENT``.
        device: where it is going to run, and is tried out.

    Returns:
        The last block of each stage, from which :func:`pooled_map` takes what it kept.

    Raises:
        ValueError: a stage that the backbone does not have; the message lists those it has.
    """
    backbone = getattr(model, "backbone", None)
    stages = find_stages(backbone, device) if isinstance(backbone, nn.Module) else {}
    for name in names:
        if name not in stages:
            raise ValueError(
                f"MODEL.LOSSES.RIB.STAGES holds '{name}', which the backbone of "
                f"{type(model).__name__}, {type(backbone).__name__}, does not have. "
                + (f"It has {', '.join(stages)}." if stages else "It has none: write ().")
            )
    blocks = {name: stages[name].block for name in names}
    for block in blocks.values():
        # A plain function of the block: a closure would keep the original's map from a copy.
        block.register_forward_hook(_keep_pooled)
    return blocks


def pooled_map(block: nn.Module, name: str, images: int) -> Tensor:
    """Takes what the last block of a stage kept in this step: (images, C), float32.

    Args:
        block: of :func:`watch_stages`.
        name: of the stage, for the error.
        images: in the batch.

    Raises:
        RuntimeError: the backbone did not run on this batch.
    """
    pooled = block.__dict__.pop("for_rib", None)
    if pooled is None or len(pooled) != images:
        came = "nothing" if pooled is None else f"{len(pooled)} rows"
        raise RuntimeError(
            f"MODEL.LOSSES.RIB.STAGES: '{name}' of the backbone gave {came} for a batch of "
            f"{images} identities. Write MODEL.LOSSES.RIB.STAGES ()."
        )
    return pooled


def _keep_pooled(block: Any, args: Any, output: Tensor) -> None:
    if block.training and torch.is_grad_enabled():
        block.for_rib = output.float().mean(dim=(2, 3))
