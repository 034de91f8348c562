"""The configuration keys of RIB, their validation, and the names of losses."""

import difflib
from typing import Any, Callable, List, Tuple

from fastreid_rib.compat.patching import wrap

SHORT_NAMES = {
    "CrossEntropy": "CrossEntropyLoss",
    "Triplet": "TripletLoss",
    "Circle": "CircleLoss",
    "RIB": "RIBLoss",
}
"""Short forms of loss names, and what FastReID (or, for RIB, this package) calls them."""

# What FastReID's own meta-architectures know; any other name they pass over in silence.
_BASELINE_LOSSES = ("CrossEntropyLoss", "TripletLoss", "CircleLoss", "Cosface", "RIBLoss")
KNOWN_LOSSES = {
    "Baseline": _BASELINE_LOSSES,
    "Distiller": _BASELINE_LOSSES,
    "MoCo": _BASELINE_LOSSES,
    "MGN": ("CrossEntropyLoss", "TripletLoss", "RIBLoss"),
}


def add_keys(defaults: Any) -> None:
    """Adds the plugin's keys to FastReID's default config (``fastreid.config.defaults``)."""
    _C = defaults._C  # noqa: N806  FastReID's own name for it
    if "RIB" in _C.MODEL.LOSSES:
        return
    # Seed of every random number of a run: Python, NumPy, torch, samplers, data-loader workers, on
    # every rank, and of K-means. -1 leaves FastReID as it is: a new seed for every run.
    _C.SEED = -1

    _C.MODEL.LOSSES.RIB = type(_C)()
    # Weight of the bound in the training loss, > 0.
    _C.MODEL.LOSSES.RIB.SCALE = 1.0
    # Sharpness of the soft assignment of embeddings to clusters, > 0 (the paper's 1 / temperature;
    # beta in docs/method.md). Squared distances of L2-normalised embeddings lie in [0, 4]: near 1
    # every assignment is close to uniform, so this key matters more than any other.
    _C.MODEL.LOSSES.RIB.BETA = 60.0
    # Weight of the compression part, 0..1: 0 has the gradient of the paper's bound, 1 minimises the
    # tighter bound KLB (ours).
    _C.MODEL.LOSSES.RIB.GAMMA = 0.0
    # Number of clusters (the paper's A; K in docs/method.md), 0 = number of identities.
    _C.MODEL.LOSSES.RIB.NUM_CLUSTERS = 0
    # Epochs trained without RIB, >= 0. RIB starts at epoch max(1, WARMUP_EPOCHS), counted from 0:
    # before the first refresh there is nothing to compare with.
    _C.MODEL.LOSSES.RIB.WARMUP_EPOCHS = 2
    # Most embeddings of an epoch that are kept for the refresh, > 0; beyond that an unbiased
    # sample. Two bytes per number: 20000 rows of 2048 take 82 MB on every GPU and in checkpoints.
    _C.MODEL.LOSSES.RIB.BANK_SIZE = 20000
    # "pixels": keep small versions of the input images too, so that the information bottleneck
    # itself and its bound in nats can be reported (rib/ib, rib/ibb, rib/c0). "" = do not.
    _C.MODEL.LOSSES.RIB.INPUT = ""
    # What computes the bound: "auto" takes the compiled kernels for MODEL.DEVICE, or plain PyTorch
    # where there are none (the log says why); "cuda", "cpu" and "torch" insist.
    _C.MODEL.LOSSES.RIB.BACKEND = "auto"


def keep_dumps_portable(config: Any) -> None:
    """Makes ``CfgNode.dump`` leave out plugin keys at their defaults.

    FastReID writes ``config.yaml`` into every output folder; without this, that file could not be
    loaded where the plugin is not installed.

    Args:
        config: the module ``fastreid.config.config``.
    """

    def dump(stock: Callable[..., str], self: Any, **kwargs: Any) -> str:
        return stock(_without_defaults(self, config.get_cfg()), **kwargs)

    wrap(config.CfgNode, "dump", dump)


def _without_defaults(cfg: Any, defaults: Any) -> Any:
    """A copy of ``cfg`` without the plugin's keys that hold their default."""
    rib = cfg.get("MODEL", {}).get("LOSSES", {}).get("RIB")
    if rib is None:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    ours = ((cfg, {"SEED": defaults.SEED}), (cfg.MODEL.LOSSES.RIB, defaults.MODEL.LOSSES.RIB))
    for node, default in ours:
        for key, value in default.items():
            if node.get(key, value) == value:
                node.pop(key, None)
    if not cfg.MODEL.LOSSES.RIB:
        del cfg.MODEL.LOSSES["RIB"]
    return cfg


def loss_names(cfg: Any) -> Tuple[str, ...]:
    """The losses of a config under the names that FastReID's code looks for.

    For meta-architectures that are not FastReID's own only RIB's name is translated: the others
    are the project's, and so is their meaning.

    Args:
        cfg: a FastReID config.

    Returns:
        The names of ``MODEL.LOSSES.NAME`` in their order, without repetitions.

    Raises:
        KeyError: a name that FastReID's own meta-architecture would pass over in silence.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    known = KNOWN_LOSSES.get(architecture)
    names: List[str] = []
    for written in cfg.MODEL.LOSSES.NAME:
        name = SHORT_NAMES.get(written, written) if known or written == "RIB" else written
        if known and name not in known:
            raise KeyError(_unknown_loss(written, architecture, known))
        if name not in names:
            names.append(name)
    return tuple(names)


def _unknown_loss(written: str, architecture: str, known: Tuple[str, ...]) -> str:
    short = [name for name in SHORT_NAMES if SHORT_NAMES[name] in known]
    by_case = {name.lower(): name for name in (*short, *known)}
    close = difflib.get_close_matches(str(written).lower(), list(by_case), n=1, cutoff=0.5)
    hint = f" Did you mean '{by_case[close[0]]}'?" if close else ""
    return (
        f"MODEL.LOSSES.NAME holds '{written}', which {architecture} does not know and would "
        f"leave out in silence.{hint} It knows {', '.join(known)}, and the short forms "
        f"{', '.join(short)}."
    )


def names_rib(cfg: Any) -> bool:
    """Whether ``MODEL.LOSSES.NAME`` of a config asks for RIB."""
    return "RIBLoss" in loss_names(cfg)


def check(cfg: Any) -> None:
    """Checks the plugin's keys.

    Args:
        cfg: a FastReID config.

    Raises:
        KeyError: an unknown loss name.
        ValueError: a key out of its range; the message names the key, the range and the value.
    """
    if cfg.SEED < -1 or cfg.SEED >= 2**32 - 2**16:
        # NumPy takes 32 bits, and every rank adds its number.
        raise ValueError(f"SEED must be -1 (no seed) or 0 .. 4294901759, but is {cfg.SEED}.")
    if not names_rib(cfg):
        return
    from fastreid_rib.ops.backends import BACKENDS  # not at the top: it loads torch

    rib = cfg.MODEL.LOSSES.RIB
    hints = {
        "SCALE": "; to train without RIB, take it out of MODEL.LOSSES.NAME",
        "NUM_CLUSTERS": "; 0 means as many clusters as identities",
        "INPUT": "; 'pixels' reports the information bottleneck itself, '' does not",
    }
    ranges = (
        ("SCALE", "> 0", 0 < rib.SCALE < float("inf")),
        ("BETA", "> 0", 0 < rib.BETA < float("inf")),
        ("GAMMA", "between 0 and 1 (outside it bounds nothing)", 0 <= rib.GAMMA <= 1),
        ("NUM_CLUSTERS", ">= 0", rib.NUM_CLUSTERS >= 0),
        ("WARMUP_EPOCHS", ">= 0", rib.WARMUP_EPOCHS >= 0),
        ("BANK_SIZE", "> 0", rib.BANK_SIZE > 0),
        ("INPUT", "'' or 'pixels'", rib.INPUT in ("", "pixels")),
        ("BACKEND", f"one of {', '.join(BACKENDS)}", rib.BACKEND in BACKENDS),
    )
    for key, expected, holds in ranges:
        if not holds:
            value = f"{rib[key]!r}{hints.get(key, '')}"
            raise ValueError(f"MODEL.LOSSES.RIB.{key} must be {expected}, but is {value}.")
