"""The command ``export``: a checkpoint and its config for FastReID without this plugin."""

import os
from typing import Any, Optional

import torch

from fastreid_rib.base import disabled
from fastreid_rib.base.safe_reads import read_checkpoint
from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.commands import neck, read_config
from fastreid_rib.integration import config
from fastreid_rib.integration.run.checkpoints import KEY, is_rib

CONFIG_NAME = "config.yaml"  # as FastReID writes it


def main(
    checkpoint: str,
    folder: str,
    config_file: Optional[str] = None,
    embedding_dim: Optional[int] = None,
) -> None:
    """Writes a checkpoint and its config without what RIB keeps in them, and says what it did.

    Weights, optimizer, scheduler and epoch stay as they are. So does attention: its weights are
    part of the network, and FastReID needs the plugin for them. TEST.NECK_FEAT 'before' becomes a
    head without a neck. With ``embedding_dim`` the neck becomes a projection, see ``neck.project``.
    What an optimizer keeps fits neither, and is left out.

    Raises:
        FileExistsError: one of the two is there already; nothing was written.
        OSError: a file cannot be read or written.
        ValueError: the file is no checkpoint, or truncated; it is one of a search; or the plugin is
            switched off.
        KeyError: the config has a key or a loss that FastReID and this plugin do not know.
    """
    path = os.path.join(folder, os.path.basename(checkpoint))
    for place in (path, os.path.join(folder, CONFIG_NAME)):
        if os.path.exists(place):
            raise FileExistsError(f"{place} is there already; write another --output")
    if disabled() & {"all", "register"}:
        raise ValueError("the plugin is switched off by FASTREID_RIB_DISABLE; unset it for this")
    beside = os.path.join(os.path.dirname(checkpoint), CONFIG_NAME)
    cfg = read_config(config_file or beside)
    attention = config.asked_attention(cfg)
    if cfg.MODEL.SEARCH.ENABLED:
        raise ValueError(
            f"{checkpoint} is of a search, a network with all widths at once; export that of the "
            "derived network (searched.yml), once it is trained"
        )
    in_parts = config.in_parts(cfg) and embedding_dim is None
    before = cfg.TEST.NECK_FEAT == "before" and not in_parts
    cfg.MODEL.LOSSES.NAME = tuple(name for name in config.loss_names(cfg) if name != "RIBLoss")

    content = read_checkpoint(checkpoint)
    state, removed = content["model"], content.pop(KEY, {})
    removed.update((key, state.pop(key)) for key in list(state) if is_rib(key))  # of 0.2
    sizes = None
    if embedding_dim is not None:
        sizes = neck.project(cfg, state, embedding_dim)
    elif before:
        neck.leave_out(cfg, state)
    _reset_keys(cfg, in_parts)  # now that a projection has read the pictures
    if sizes is not None or before:
        content = {"model": state}

    os.makedirs(folder, exist_ok=True)
    with written_whole(path, "wb") as file:
        torch.save(content, file)
    with written_whole(os.path.join(folder, CONFIG_NAME), "w") as file:
        file.write(cfg.dump())

    print(f"{path} ({_megabytes(os.path.getsize(path))}) and {CONFIG_NAME}")
    left = sum(value.numel() * value.element_size() for value in removed.values())
    print(f"left out: RIB's state, {_megabytes(left)} in {len(removed)} tensors")
    if sizes is not None:
        print(f"embedding: {sizes[1]} numbers, a projection of {sizes[0]} (TEST.NECK_FEAT after)")
    elif before:
        print("the neck is left out (MODEL.HEADS.WITH_BNNECK False), as TEST.NECK_FEAT is before")
    print(f"MODEL.LOSSES.NAME: {tuple(cfg.MODEL.LOSSES.NAME)}")
    if not cfg.MODEL.LOSSES.NAME:
        print("note: RIB was the only loss. To train on, name one of FastReID's.")
    if attention:
        print(
            f"warning: the network has attention ({attention.name} at "
            f"{', '.join(attention.placement)}). Its weights and MODEL.ATTENTION stay, so FastReID "
            "loads this with the plugin only."
        )
    if in_parts:
        print(
            "warning: the head is PartHead, whose vector FastReID gives with the plugin only. For "
            "FastReID alone write --embedding-dim 0, which makes one of the whole map."
        )
        if not any(".parts." in key for key in state):
            print(
                "warning: the checkpoint has no parts; an evaluation fits them to the training set."
            )
    if _is_searched(cfg):
        print(
            "warning: the network is one of MODEL.SEARCH. The key stays, so FastReID loads this "
            "with the plugin only."
        )


def _reset_keys(cfg: Any, in_parts: bool) -> None:
    """Puts the plugin's keys back to their defaults, which FastReID's dump leaves out.

    Except those of a network that needs the plugin.
    """
    stays = {
        "MODEL.ATTENTION": config.asked_attention(cfg) is not None,
        "MODEL.SEARCH": _is_searched(cfg),
        "TEST": in_parts,  # what a PartHead gives before its parts are fitted
    }
    for path in config.NODES:
        if not stays.get(path, False):
            config.reset(cfg, path)


def _is_searched(cfg: Any) -> bool:
    widths = config.asked_search(cfg).widths
    return bool(widths) or cfg.MODEL.BACKBONE.NAME == "build_searched_backbone"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
