"""What an export makes of the neck of a head, so that FastReID alone retrieves as well or better.

Legend: D dimensions of what is projected, d of the new embedding, C identities.
"""

import re
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.base.kept import evaluated
from fastreid_rib.commands import load_weights
from fastreid_rib.integration import config
from fastreid_rib.integration.training_set import in_batches, training_pictures
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

    if cfg.MODEL.HEADS.NAME == config.PART_HEAD:
        cfg.MODEL.HEADS.NAME = "EmbeddingHead"  # which it is, without its parts
    data = training_pictures(cfg)
    cfg.MODEL.HEADS.NUM_CLASSES = data.num_classes
    built = cfg.clone()
    built.MODEL.BACKBONE.PRETRAIN = False
    model = build_model(built)
    head = getattr(model, "heads", None)
    if not isinstance(head, EmbeddingHead) or isinstance(head, ClasHead):
        found = "several" if head is None else type(head).__name__
        raise ValueError(
            f"--embedding-dim needs a network with one EmbeddingHead, and {type(model).__name__} "
            f"has {found}; leave it out."
        )
    load_weights(model, state, "the checkpoint")
    embeddings, labels, before = _embed(model, head.bottleneck, data, cfg)
    mean, projection = gaussian_bottleneck(embeddings, labels, dim)
    size, dim = projection.shape

    cfg.MODEL.HEADS.EMBEDDING_DIM, cfg.MODEL.HEADS.WITH_BNNECK = dim, True
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


def _embed(model: Any, neck: nn.Sequential, data: Any, cfg: Any) -> Tuple[Tensor, Tensor, Tensor]:
    """What goes into a neck's normalisation, (N, D), identities, (N,), and what made it, (D, E)."""
    pooled: List[Tensor] = []
    labels: List[Tensor] = []
    handle = neck.register_forward_pre_hook(lambda neck, args: pooled.append(args[0].flatten(1)))
    try:
        with evaluated(model):
            for batch in in_batches(data, cfg):
                model(batch)
                labels.append(batch["targets"])
    finally:
        handle.remove()
    rows = torch.cat(pooled).float().cpu()
    before = torch.eye(rows.shape[1])
    if len(neck) and isinstance(neck[0], nn.Conv2d):  # MODEL.HEADS.EMBEDDING_DIM
        before = neck[0].weight.detach().float().cpu().flatten(1)
        rows = rows @ before.t()
    return rows, torch.cat(labels).long(), before
