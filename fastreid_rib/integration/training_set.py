"""FastReID's training set, as an evaluation shows it, and what a network makes of it."""

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.base import ranks
from fastreid_rib.base.kept import evaluated


def training_pictures(cfg: Any) -> Any:
    """FastReID's training set of a config, as it shows its pictures in an evaluation."""
    from fastreid.data import build_reid_train_loader
    from fastreid.data.transforms import build_transforms

    data = build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL).dataset
    data.transform = build_transforms(cfg, is_train=False)
    return data


def in_batches(data: Any, cfg: Any) -> Iterable[Dict[str, Any]]:
    """A data set of FastReID's in order, as its networks take it.

    Args:
        data: whose pictures are transformed to one size.
        cfg: says how many are in a batch, and how many processes read them.

    Returns:
        Batches of FastReID's: "images", (B, 3, H, W), "targets", (B,), and others.
    """
    from fastreid.data.build import fast_batch_collator
    from torch.utils.data import DataLoader

    return DataLoader(
        data,
        cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=fast_batch_collator,
    )


def embed(
    model: Any,
    module: nn.Module,
    take: Callable[[Tensor], Tensor],
    data: Any,
    cfg: Any,
    which: Optional[Sequence[int]] = None,
) -> Tuple[Tensor, Tensor]:
    """What a model's module is given for the images of a data set, in evaluation mode.

    With several ranks it calls collectives: each shows the model its share of the images.

    Args:
        model: of FastReID's, on its device. Its modes are as before afterwards.
        module: one of its modules, which is called once for each batch.
        take: what of the module's first input, (B, ...) for (B, ...).
        data: as :func:`in_batches` takes it, with ``cfg``.
        which: the numbers in the data set of those that are wanted; None: all.

    Returns:
        (N, ...), and the identities, (N,), int64: in their order, the same on every rank.
    """
    from torch.utils.data import Subset

    which = range(len(data)) if which is None else which
    own = Subset(data, which[ranks.own_slice(len(which))])
    taken: List[Tensor] = []
    labels: List[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: taken.append(take(args[0])))
    try:
        with evaluated(model):
            for batch in in_batches(own, cfg):
                model(batch)
                labels.append(batch["targets"])
    finally:
        handle.remove()
    rows, identities = torch.cat(taken), torch.cat(labels).to(taken[0].device)
    counts = [number for (number,) in ranks.exchange(len(rows))]
    return ranks.gather_rows(rows, counts), ranks.gather_rows(identities, counts)
