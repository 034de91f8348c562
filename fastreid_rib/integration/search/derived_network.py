"""The derived network of a search as FastReID trains it: a config, weights, and a table."""

import copy
import os
from typing import Any, Dict

import torch
from torch import nn

from fastreid_rib.base.whole_files import written_whole
from fastreid_rib.integration.run.checkpoints import is_rib
from fastreid_rib.search import Space, WidthSearch, narrow

CONFIG = "searched.yml"
"""The config of the derived network, in the search's OUTPUT_DIR."""

WEIGHTS = "searched.pth"
"""The supernet's weights cut down to it, which the config's MODEL.WEIGHTS names."""


def write(model: nn.Module, search: WidthSearch, cfg: Any, widths: Dict[str, int]) -> None:
    """Writes both files into OUTPUT_DIR.

    Args:
        model: the supernet, as FastReID's trainer holds it.
        search: of the model.
        cfg: the config of the search.
        widths: what was derived.
    """
    with written_whole(os.path.join(cfg.OUTPUT_DIR, CONFIG), "w") as file:
        file.write(config_of(cfg, widths).dump())
    weights = {"model": weights_of(getattr(model, "module", model), search.cost.space, widths)}
    with written_whole(os.path.join(cfg.OUTPUT_DIR, WEIGHTS)) as file:
        torch.save(weights, file)


def config_of(cfg: Any, widths: Dict[str, int]) -> Any:
    """The config that trains a network of some widths, from that of its search.

    It starts from the supernet's weights; with MODEL.WEIGHTS "" as the search did, from pretrained
    ones if MODEL.BACKBONE.PRETRAIN says so, else from scratch. The number of identities is left to
    FastReID.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SEARCH.ENABLED = False
    cfg.MODEL.SEARCH.WIDTHS = tuple(widths.values())
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, WEIGHTS)
    cfg.MODEL.HEADS.NUM_CLASSES = 0
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "searched")
    cfg.freeze()
    return cfg


def weights_of(model: Any, space: Space, widths: Dict[str, int]) -> Dict[str, torch.Tensor]:
    """The supernet's state_dict, cut down to some widths.

    Left out is what cannot be cut: attention after a block of a searched width, which starts
    afresh (as the identity), and RIB's statistics.
    """
    backbone = copy.deepcopy(model.backbone)
    narrow(backbone, space, widths)
    state = {**model.state_dict(), **backbone.state_dict(prefix="backbone.")}
    apart = tuple(f"backbone.{path}.attention." for path in space.blocks)
    return {
        name: value
        for name, value in state.items()
        if not (name.startswith(("search.", *apart)) or is_rib(name))
    }


def table(search: WidthSearch, widths: Dict[str, int]) -> str:
    """Each group's choice, and what the networks cost, in Markdown."""
    lines = [
        "| group | widths | chosen | probability | entropy, nats |",
        "| --- | --- | --- | --- | --- |",
    ]
    numbers = search.report()
    for group, probabilities in search.probabilities().items():
        options = search.cost.space.groups[group]
        probability = probabilities[options.index(widths[group])]
        lines.append(
            f"| {group} | {', '.join(map(str, options))} | {widths[group]} | {probability:.2f} | "
            f"{numbers[f'entropy/{group}']:.2f} |"
        )
    lines += ["", "| network | multiply-adds an image | of the widest |", "| --- | --- | --- |"]
    cost = search.cost
    networks = {
        "widest (supernet)": cost.widest,
        "aimed at": search.target,
        "derived": float(cost.of(widths)),
        "narrowest": cost.narrowest,
    }
    lines += [
        f"| {name} | {number:.4g} | {number / cost.widest:.3f} |"
        for name, number in networks.items()
    ]
    return "\n".join(lines)
