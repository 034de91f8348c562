"""The commands of ``python -m fastreid_rib``: each is a module, and runs by its ``main``.

The arguments of ``main`` are those of the command line, which ``--help`` explains. It returns an
exit status or None, which is success, and raises what the command line prints as an error.
"""

from typing import Any, Dict, Iterable, Mapping, Sequence


def read_config(config_file: str, opts: Sequence[Any] = ()) -> Any:
    """A FastReID config from a file, with keys and values that change it; raises as FastReID's."""
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    return cfg


def training_pictures(cfg: Any) -> Any:
    """FastReID's training set of a config, as it shows its pictures in an evaluation."""
    from fastreid.data import build_reid_train_loader
    from fastreid.data.transforms import build_transforms

    data = build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL).dataset
    data.transform = build_transforms(cfg, is_train=False)
    return data


def in_batches(data: Any, cfg: Any) -> Iterable[Dict[str, Any]]:
    """A data set of FastReID's in order, as its networks take it; images (B, 3, H, W)."""
    from fastreid.data.build import fast_batch_collator
    from torch.utils.data import DataLoader

    return DataLoader(data, cfg.TEST.IMS_PER_BATCH, collate_fn=fast_batch_collator)


def load_weights(model: Any, state: Mapping[str, Any], path: str) -> None:
    """Loads what a file holds of a network; raises ValueError if it is of another one."""
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise ValueError(f"{path} is of another network: it lacks {', '.join(missing[:3])}")
