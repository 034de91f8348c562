"""What an export makes of the neck of a head, so that FastReID alone retrieves as well or better.

Legend: D dimensions of what is projected, d of the new embedding, C identities.
"""

import re
from typing import Any, Dict, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.commands import load_weights
from fastreid_rib.integration import config
from fastreid_rib.integration.training_set import embed, training_pictures
from fastreid_rib.losses.gaussian import gaussian_bottleneck
from fastreid_rib.ops.sums import group_sum

_NECK = re.compile(r"(^|\.)\w*heads?\.(bottleneck|parts)\.")


def leave_out(cfg: Any, state: Dict[str, Tensor]) -> None:
    """Takes the neck out of a config and a state, so that the vector before it is what is given."""
    if cfg.MODEL.HEADS.EMBEDDING_DIM:
        raise ValueError(
            f"TEST.NECK_FEAT is 'before' and MODEL.HEADS.EMBEDDING_DIM "
            f"{cfg.MODEL.HEADS.EMBEDDING_DIM}: FastReID alone has no network that gives the vector "
            "before such a neck. Write TEST.NECK_FEAT 'after' in the config, or --embedding-dim."
        )
    cfg.MODEL.HEADS.WITH_BNNECK = False
    _drop_neck(state)


def project(cfg: Any, state: Dict[str, Tensor], dim: int) -> Tuple[int, int]:
    """Makes the neck of a config and a state a projection of what goes into it.

    FastReID's own neck holds it: a convolution without bias, and a batch normalisation, whose
    running mean is what is subtracted. It is fitted to the training set, in evaluation mode, by
    :func:`gaussian_bottleneck`. The classifier is made of the identities' projected means.

    Args:
        cfg: of the network; changed.
        state: its weights; changed.
        dim: d, or 0, as in ``gaussian_bottleneck``.

    Returns:
        D and d.

    Raises:
        ValueError: the network has no head with such a neck, or the weights are of another one.
    """
    from fastreid.modeling import build_model
    from fastreid.modeling.heads import ClasHead, EmbeddingHead

    if config.in_parts(cfg):
        cfg.MODEL.HEADS.NAME = "EmbeddingHead"  # which it is, without its parts
    data = training_pictures(cfg)
    built = cfg.clone()
    built.MODEL.BACKBONE.PRETRAIN = False
    built.MODEL.HEADS.NUM_CLASSES = len(state.get("heads.weight", ()))
    if not torch.cuda.is_available():
        built.MODEL.DEVICE = "cpu"
    model = build_model(built)
    head = getattr(model, "heads", None)
    if not isinstance(head, EmbeddingHead) or isinstance(head, ClasHead):
        found = "several" if head is None else type(head).__name__
        raise ValueError(
            f"--embedding-dim needs a network with one EmbeddingHead, and {type(model).__name__} "
            f"has {found}; leave it out."
        )
    load_weights(model, state, "the checkpoint")
    pooled, labels = embed(model, head.bottleneck, lambda pooled: pooled.flatten(1), data, cfg)
    before = torch.eye(pooled.shape[1])
    if len(head.bottleneck) and isinstance(head.bottleneck[0], nn.Conv2d):  # EMBEDDING_DIM
        before = head.bottleneck[0].weight.detach().float().cpu().flatten(1)
    embeddings, labels = pooled.float().cpu() @ before.t(), labels.cpu()
    mean, projection = gaussian_bottleneck(embeddings, labels, dim)
    size, dim = projection.shape

    cfg.MODEL.HEADS.NUM_CLASSES = data.num_classes
    cfg.MODEL.HEADS.EMBEDDING_DIM, cfg.MODEL.HEADS.WITH_BNNECK = dim, True
    cfg.MODEL.HEADS.NORM = "BN"
    _drop_neck(state)
    projected = (embeddings - mean) @ projection
    counts = torch.bincount(labels, minlength=data.num_classes).clamp(min=1)
    state["heads.weight"] = group_sum(projected, labels, len(counts)) / counts[:, None]
    state["heads.bottleneck.0.weight"] = (projection.t() @ before)[:, :, None, None]
    norm = {
        "weight": torch.ones(dim),
        "bias": torch.zeros(dim),
        "running_mean": mean @ projection,
        "running_var": torch.ones(dim),
        "num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }
    state.update((f"heads.bottleneck.1.{name}", value) for name, value in norm.items())
    return size, dim


def _drop_neck(state: Dict[str, Tensor]) -> None:
    for key in [key for key in state if _NECK.search(key)]:
        del state[key]
