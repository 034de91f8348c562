"""What RIB is computed from: the embedding that a head gives, or one before its attention.

A head with attention before its pooling has two vectors for an image: the map pooled as the
backbone gives it, and as the attention gives it. The second becomes the embedding that the other
losses and the retrieval work with. RIB takes either, by ``MODEL.LOSSES.RIB.EMBEDDING``.
"""

import functools
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.losses import RIBLoss

FOR_RIB = "features_for_rib"
"""Key of a head's outputs: (batch, dim), what RIB takes in place of its ``"features"``."""


def keep_pooled(head: nn.Module) -> None:
    """Lets a head, in training, add its map pooled before its attention to its outputs.

    Call it before the attention is put there: hooks run in the order of their registration.

    Args:
        head: called with the map (B, C, H, W) as its first positional argument; gives a dict.

    Raises:
        ValueError: the head has no ``pool_layer`` to pool with.
    """
    if not isinstance(getattr(head, "pool_layer", None), nn.Module):
        raise ValueError(
            "MODEL.LOSSES.RIB.EMBEDDING is 'before', the map pooled before the attention, but "
            f"{type(head).__name__} has no `pool_layer`. Write 'after', or give it one."
        )
    head.register_forward_pre_hook(_pool)
    head.register_forward_hook(_hand_over)


def give_before_neck(head: nn.Module) -> None:
    """Lets a head, in evaluation, give the vector before its neck in place of the one after it.

    Args:
        head: FastReID's ``EmbeddingHead``, or one whose ``bottleneck`` is what it gives.

    Raises:
        ValueError: the head has no ``bottleneck``, or gives classes and no embedding.
    """
    neck = getattr(head, "bottleneck", None)
    if not isinstance(neck, nn.Module) or type(head).__name__ == "ClasHead":
        raise ValueError(
            "TEST.NECK_FEAT is 'before', the vector before the neck, but "
            f"{type(head).__name__} gives none. Write 'after', or another MODEL.HEADS.NAME."
        )
    neck.register_forward_hook(_pass_by)


def _pass_by(neck: nn.Module, args: Tuple[Any, ...], output: Tensor) -> Optional[Tensor]:
    return None if neck.training else args[0]


def add_camera_noise(head: nn.Module, rib: RIBLoss) -> None:
    """Lets a head's neck, and so its classifier, get RIB's embedding with camera noise in training.

    Args:
        head: FastReID's ``EmbeddingHead``, or one whose ``bottleneck`` gets what RIB gets.
        rib: of the same model.
    """
    neck: Any = head.bottleneck
    neck.register_forward_pre_hook(functools.partial(_with_noise, rib))


def _with_noise(rib: RIBLoss, neck: nn.Module, args: Tuple[Any, ...]) -> Optional[Tuple[Tensor]]:
    if not neck.training:
        return None
    pooled: Tensor = args[0]
    return (rib.add_camera_noise(pooled.flatten(1)).view_as(pooled),)


def embedding_and_labels(args: Tuple[Any, ...]) -> Optional[Tuple[Tensor, Tensor]]:
    """Finds what RIB needs among the arguments of a meta-architecture's ``losses``.

    Args:
        args: what the architecture passes to its own ``losses``: one head's outputs or several
            (MGN has eight, and retrieves with all of them), perhaps others, and the labels last.

    Returns:
        ``(embeddings, labels)``: float (batch, dim), the heads' ``"features"`` side by side, or
        what :func:`keep_pooled` had them add, and int64 (batch,); or None if the arguments are not
        of this form.
    """
    features: List[Tensor] = [
        outputs[FOR_RIB if FOR_RIB in outputs else "features"]
        for outputs in args
        if isinstance(outputs, dict) and "features" in outputs
    ]
    labels = args[-1] if args else None
    if not features or not isinstance(labels, Tensor):
        return None
    if labels.dim() != 1 or labels.is_floating_point() or any(f.dim() != 2 for f in features):
        return None
    return (features[0] if len(features) == 1 else torch.cat(features, dim=1)), labels


def _pool(head: Any, args: Tuple[Any, ...]) -> None:
    if head.training and torch.is_grad_enabled():
        head.for_rib = head.pool_layer(args[0]).flatten(1)


def _hand_over(head: Any, args: Any, outputs: Any) -> Optional[Dict[str, Tensor]]:
    for_rib = head.__dict__.pop("for_rib", None)
    if for_rib is None or not isinstance(outputs, dict):
        return None
    return {**outputs, FOR_RIB: for_rib}
