"""FastReID's training set, as an evaluation shows it."""

from typing import Any, Dict, Iterable, Optional, Sequence


def training_pictures(cfg: Any) -> Any:
    """FastReID's training set of a config, as it shows its pictures in an evaluation."""
    from fastreid.data import build_reid_train_loader
    from fastreid.data.transforms import build_transforms

    data = build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL).dataset
    data.transform = build_transforms(cfg, is_train=False)
    return data


def in_batches(
    data: Any, cfg: Any, which: Optional[Sequence[int]] = None
) -> Iterable[Dict[str, Any]]:
    """A data set of FastReID's in order, or some of it, as its networks take it.

    Args:
        data: whose pictures are transformed to one size.
        cfg: says how many are in a batch, and how many processes read them.
        which: their numbers in the data set; None: all.

    Returns:
        Batches of FastReID's: "images", (B, 3, H, W), "targets", (B,), and others.
    """
    from fastreid.data.build import fast_batch_collator
    from torch.utils.data import DataLoader, Subset

    return DataLoader(
        data if which is None else Subset(data, which),
        cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=fast_batch_collator,
    )
