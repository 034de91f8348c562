"""The command ``export``: a checkpoint and its config for FastReID without this plugin."""

import os
from collections import OrderedDict
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch

from fastreid_rib.base.safe_reads import checked, read_safely
from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.integration import config
from fastreid_rib.integration.run.checkpoints import KEY, is_rib

CONFIG_NAME = "config.yaml"
"""What FastReID calls the config in an output folder."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the new checkpoint.
        removed: keys of RIB's state, with their bytes.
        losses: what MODEL.LOSSES.NAME says now.
        attention: the attention that stays part of the network, or None.
        searched: whether it is a network of MODEL.SEARCH, which FastReID cannot build alone.
    """

    path: str
    removed: Dict[str, int]
    losses: Tuple[str, ...]
    attention: Optional[config.AskedAttention]
    searched: bool


def export(checkpoint: str, folder: str, config_file: Optional[str] = None) -> Exported:
    """Writes a checkpoint and its config without what RIB keeps in them.

    Weights, optimizer, scheduler and epoch stay as they are. So does attention: its weights are
    part of the network, and FastReID needs the plugin for them.

    Args:
        checkpoint: a checkpoint of FastReID.
        folder: where both go, under the checkpoint's name and as ``config.yaml``; made if needed.
        config_file: the config it was trained with; None: ``config.yaml`` beside the checkpoint.

    Raises:
        FileExistsError: one of the two is there already; nothing was written.
        OSError: a file cannot be read or written.
        ValueError: the file is no checkpoint, or truncated; it is one of a search; or the plugin is
            switched off.
        KeyError: the config has a key or a loss that FastReID and this plugin do not know.
    """
    from fastreid.config import get_cfg

    config_file = config_file or os.path.join(os.path.dirname(checkpoint), CONFIG_NAME)
    path = os.path.join(folder, os.path.basename(checkpoint))
    for place in (path, os.path.join(folder, CONFIG_NAME)):
        if os.path.exists(place):
            raise FileExistsError(f"{place} is there already; write another --output")
    cfg = get_cfg()
    if "RIB" not in cfg.MODEL.LOSSES:
        raise ValueError("the plugin is switched off by FASTREID_RIB_DISABLE; unset it for this")
    cfg.merge_from_file(config_file)
    attention = config.asked_attention(cfg)
    if cfg.MODEL.SEARCH.ENABLED:
        raise ValueError(
            f"{checkpoint} is of a search, a network with all widths at once; export that of the "
            "derived network (searched.yml), once it is trained"
        )
    searched = _is_searched(cfg)
    cfg = _without_rib(cfg)

    content = checked(checkpoint, lambda: read_safely(checkpoint))
    state, statistics = content["model"], content.pop(KEY, {})
    statistics.update((key, value) for key, value in state.items() if is_rib(key))  # of 0.2
    removed = {key: _bytes(value) for key, value in statistics.items()}
    kept = OrderedDict((key, value) for key, value in state.items() if key not in removed)
    if hasattr(state, "_metadata"):  # torch's versions of modules
        vars(kept)["_metadata"] = state._metadata

    os.makedirs(folder, exist_ok=True)
    with written_whole(path, "wb") as file:
        torch.save(dict(content, model=kept), file)
    with written_whole(os.path.join(folder, CONFIG_NAME), "w") as file:
        file.write(cfg.dump())
    return Exported(path, removed, tuple(cfg.MODEL.LOSSES.NAME), attention, searched)


def main(checkpoint: str, folder: str, config_file: Optional[str] = None) -> int:
    """As `export`; says what it did, and returns the exit status."""
    try:
        done = export(checkpoint, folder, config_file)
    except ImportError as error:
        print(f"export: FastReID is needed to read its config: {error}")
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"export: {error}")
        return 1
    size = sum(done.removed.values())
    print(f"{done.path} ({_megabytes(os.path.getsize(done.path))}) and {CONFIG_NAME}")
    print(f"left out: RIB's state, {_megabytes(size)} in {len(done.removed)} tensors")
    print(f"MODEL.LOSSES.NAME: {done.losses}")
    if not done.losses:
        print("note: RIB was the only loss. To train on, name one of FastReID's.")
    if done.attention:
        print(
            f"warning: the network has attention ({done.attention.name} at "
            f"{', '.join(done.attention.placement)}). Its weights and MODEL.ATTENTION stay, so "
            "FastReID loads this with the plugin only."
        )
    if done.searched:
        print(
            "warning: the network is one of MODEL.SEARCH. The key stays, so FastReID loads this "
            "with the plugin only."
        )
    return 0


def _without_rib(cfg: Any) -> Any:
    """The config with the plugin's keys at their defaults, which FastReID's dump leaves out."""
    cfg.MODEL.LOSSES.NAME = tuple(name for name in config.loss_names(cfg) if name != "RIBLoss")
    stays = {
        "MODEL.ATTENTION": config.asked_attention(cfg) is not None,
        "MODEL.SEARCH": _is_searched(cfg),
    }
    for path in config.NODES:
        if not stays.get(path, False):
            config.reset(cfg, path)
    return cfg


def _is_searched(cfg: Any) -> bool:
    widths = config.asked_search(cfg).widths
    return bool(widths) or cfg.MODEL.BACKBONE.NAME == "build_searched_backbone"


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
