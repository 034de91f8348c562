"""FastReID's training set, as an evaluation shows it, and what a network makes of it."""

from typing import Any, Callable, Dict, Iterable, List, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.base import ranks
from fastreid_rib.base.kept import evaluated


def training_pictures(cfg: Any) -> Any:
    """FastReID's training set of a config, as it shows its pictures in an evaluation."""
    from fastreid.data import build_reid_train_loader
    from fastreid.data.transforms import build_transforms

    combined = cfg.DATASETS.COMBINEALL
    # A sampler that nobody uses: the config's may not fit to this number of processes.
    data = build_reid_train_loader(cfg, combineall=combined, sampler=range(1)).dataset
    data.transform = build_transforms(cfg, is_train=False)
    return data


def in_batches(data: Any, cfg: Any) -> Iterable[Dict[str, Any]]:
    """A data set of FastReID's in order, in the batches of an evaluation, on the device.

    With several ranks each has its share.

    Args:
        data: whose pictures are transformed to one size.
        cfg: says how many are in a batch.

    Returns:
        Batches of FastReID's: "images", (B, 3, H, W), "targets", (B,), and others.
    """
    from fastreid.data import build_reid_test_loader

    loader, _ = build_reid_test_loader(cfg, test_set=data)
    return loader  # type: ignore[no-any-return]


def embed(
    model: Any,
    module: nn.Module,
    take: Callable[[Tensor], Tensor],
    data: Any,
    cfg: Any,
) -> Tuple[Tensor, Tensor]:
    """What a model's module is given for the images of a data set, in evaluation mode.

    With several ranks it calls collectives: each shows the model its share of the images.

    Args:
        model: of FastReID's, on its device. Its modes are as before afterwards.
        module: one of its modules, which is called once for each batch.
        take: what of the module's first input, (B, ...) for (B, ...).
        data: as :func:`in_batches` takes it, with ``cfg``.

    Returns:
        (N, ...), and the identities, (N,), int64: in their order, the same on every rank.
    """
    taken: List[Tensor] = []
    labels: List[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: taken.append(take(args[0])))
    try:
        with evaluated(model):
            for batch in in_batches(data, cfg):
                model(batch)
                labels.append(batch["targets"])
    finally:
        handle.remove()
    rows, identities = torch.cat(taken), torch.cat(labels).to(taken[0].device)
    counts = [number for (number,) in ranks.exchange(len(rows))]
    return ranks.gather_rows(rows, counts), ranks.gather_rows(identities, counts)
