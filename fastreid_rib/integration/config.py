"""The plugin's configuration keys, their validation, and the names of losses."""

import sys
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from fastreid_rib.base.patching import wrap
from fastreid_rib.base.spelling import did_you_mean
from fastreid_rib.integration.folder_keys import add_folder_keys

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
    # A text file with the file name of one occluded query a line: they and the others are evaluated
    # apart besides. "" = only where a data set knows it of itself (SyntheticReID does).
    _C.TEST.OCCLUDED = ""
    add_folder_keys(_C)

    _C.MODEL.LOSSES.RIB = type(_C)()
    # Weight of the bound in the training loss, > 0.
    _C.MODEL.LOSSES.RIB.SCALE = 1.0
    # Sharpness of the soft assignment of embeddings to clusters, > 0 (the paper's 1 / temperature;
    # beta in docs/method.md). With CENTER it means the same for every backbone, stride and epoch.
    _C.MODEL.LOSSES.RIB.BETA = 10.0
    # Multiplier of the compression: 0 leaves it out, 1 minimises the bound KLB (ours). >= 0, with
    # RELEVANCE "paper" 0..1.
    _C.MODEL.LOSSES.RIB.GAMMA = 0.0
    # Whether the mean of the embeddings, frozen at each refresh, is taken off (ours). Without it
    # embeddings lie in a cone that is narrower for one backbone than for another, and so no BETA
    # fits all: runs of 0.1 go on with CENTER False, RELEVANCE "paper", SMOOTHING 0, BETA 60.
    _C.MODEL.LOSSES.RIB.CENTER = True
    # Relevance term: "full" has the marginal of the clusters in it (ours), so that a collapse is
    # its worst value; "paper" has not, and a collapse is its best.
    _C.MODEL.LOSSES.RIB.RELEVANCE = "full"
    # What tells the identity in the bound: "clusters", the cluster of the embedding, as in the
    # paper, or "embedding" itself (ours).
    _C.MODEL.LOSSES.RIB.FORM = "clusters"
    # Share of the clusters' marginal in each row of the class table, 0..1 (1 excluded; ours): an
    # identity has too few images to be certain of the clusters that they missed. 0 = none.
    _C.MODEL.LOSSES.RIB.SMOOTHING = 0.1
    # Weight of an image in centroids and class table, which then follow the embeddings from batch
    # to batch, 0..1 (1 excluded). 0 = frozen between refreshes, as in the paper.
    _C.MODEL.LOSSES.RIB.MOMENTUM = 0.0
    # Refreshes in an epoch, >= 1.
    _C.MODEL.LOSSES.RIB.REFRESHES = 1
    # Number of clusters (the paper's A; K in docs/method.md), 0 = number of identities.
    _C.MODEL.LOSSES.RIB.NUM_CLUSTERS = 0
    # Epochs trained without RIB, >= 0. RIB starts at epoch max(1, WARMUP_EPOCHS), counted from 0:
    # before the first refresh there is nothing to compare with.
    _C.MODEL.LOSSES.RIB.WARMUP_EPOCHS = 2
    # The same as a share of SOLVER.MAX_EPOCH, 0..1 (1 excluded); the later of the two counts.
    _C.MODEL.LOSSES.RIB.WARMUP_SHARE = 0.0
    # Epochs in which the weight rises to SCALE, in equal steps, >= 0; and the same as a share of
    # MAX_EPOCH, 0..1; the longer of the two counts.
    _C.MODEL.LOSSES.RIB.RAMP_EPOCHS = 0
    _C.MODEL.LOSSES.RIB.RAMP_SHARE = 0.0
    # Most embeddings of an epoch that are kept for the refresh, > 0; beyond that an unbiased
    # sample. Two bytes per number: 20000 rows of 2048 take 82 MB on every GPU and in checkpoints.
    _C.MODEL.LOSSES.RIB.BANK_SIZE = 20000
    # Entries kept of each row of the class table, the largest; the other clusters share one value.
    # 0 = all, exact. For many identities: a whole table takes 4 bytes for each identity and
    # cluster, a sparse one 8 for each entry kept (docs/scaling.md).
    _C.MODEL.LOSSES.RIB.TABLE_ENTRIES = 0
    # "pixels": keep small versions of the input images too, so that the information bottleneck
    # itself and its bound in nats can be reported (rib/ib, rib/ibb, rib/c0). "" = do not.
    _C.MODEL.LOSSES.RIB.INPUT = ""
    # Where RIB's embedding is taken if there is attention at the head: "after" it, as in the paper,
    # or "before" it, from the same map pooled: RIB then trains the backbone, and the other losses
    # the attention besides. "neck": what the head's neck (BNNeck) makes of the embedding, the
    # vector that classifies and is retrieved with.
    _C.MODEL.LOSSES.RIB.EMBEDDING = "after"
    # What computes the bound: "auto" takes the compiled kernels for MODEL.DEVICE, or plain PyTorch
    # where there are none (the log says why); "cuda", "cpu" and "torch" insist.
    _C.MODEL.LOSSES.RIB.BACKEND = "auto"

    _C.MODEL.ATTENTION = type(_C)()
    # Attention module: "DCS", "SelfAttention" (DCS without its mask), or a channel attention "SE",
    # "ECA", "CBAM", "CAM". "" = none.
    _C.MODEL.ATTENTION.NAME = ""
    # Where it stands, one of its own at each place: "head" (on the map before pooling) and stages
    # of the backbone, such as "layer3" (README: "Attention"); a wrong name lists what there is. In
    # a ViT ("blocks",), which masks queries and keys of every block.
    _C.MODEL.ATTENTION.PLACEMENT = ("head",)
    # What MODEL.HEADS.NAME ChannelAttentionHead holds: "SE", "ECA", "CBAM" or "CAM".
    _C.MODEL.ATTENTION.CHANNEL = "SE"
    # DCS, SelfAttention: channels inside, 0..those of the map. 0 = all, as in the paper: at 2048
    # channels a mask layer of 4.2 million weights; fewer cost less.
    _C.MODEL.ATTENTION.WIDTH = 0
    # DCS, SelfAttention: with all channels inside, what the mask's layer and the projection are:
    # products of two matrices of this rank (0 = full matrices), or blocks for groups of channels,
    # as many as divide them (1 = full). One of the two.
    _C.MODEL.ATTENTION.RANK = 0
    _C.MODEL.ATTENTION.GROUPS = 1
    # DCS, SelfAttention: whether a 3 x 3 convolution of each channel comes first, inside; needs a
    # map, so not in a ViT.
    _C.MODEL.ATTENTION.DEPTHWISE = False
    # DCS: temperature of the mask's gradient at the first epoch and at the last, > 0; it falls
    # geometrically from epoch to epoch.
    _C.MODEL.ATTENTION.TEMPERATURE = 1.0
    _C.MODEL.ATTENTION.FINAL_TEMPERATURE = 0.5
    # DCS: where the mask's bias starts, -20..20. In training a share of sigmoid(MASK_BIAS) of the
    # channels is kept at first; in evaluation all of them if it is positive, else none. A short
    # training from 0 can close some for good, and from 1 none; a ViT, which loses its attention
    # with them, wants a positive one.
    _C.MODEL.ATTENTION.MASK_BIAS = 0.0
    # DCS, SelfAttention: affinities are "cosine", cosine similarities times COSINE_FACTOR (> 0), or
    # "sqrt", dot products over sqrt(channels inside); with a NORM those leave each position to
    # itself. In a ViT its own scale stays.
    _C.MODEL.ATTENTION.SCALE = "cosine"
    _C.MODEL.ATTENTION.COSINE_FACTOR = 4.0
    # All but CAM: what goes into the layer that starts at zero is normalised by "batch" statistics,
    # each image or token by its own ("layer"), or not ("none", as in the papers). Not in a ViT,
    # whose tokens are.
    _C.MODEL.ATTENTION.NORM = "batch"
    # Learning rate of the attention over that of what stands beside it, > 0; on top of
    # SOLVER.HEADS_LR_FACTOR at the head. 10 ruined SE and CBAM (docs/attention.md).
    _C.MODEL.ATTENTION.LR_FACTOR = 1.0
    # SE, CBAM: the channels are divided by this between their two layers, >= 1.
    _C.MODEL.ATTENTION.REDUCTION = 16
    # ECA: channels that a gate looks at, odd; 0 = the paper's choice for the number of channels.
    _C.MODEL.ATTENTION.KERNEL_SIZE = 0
    # SE, ECA, CBAM: "identity" starts with gates of 1, "published" as in their papers, near 1/2.
    # NORM "none" besides makes them the papers' own.
    _C.MODEL.ATTENTION.START = "identity"


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
    model = cfg.get("MODEL", {})
    if "ATTENTION" not in model or "RIB" not in model.get("LOSSES", {}):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    model, stock = cfg.MODEL, defaults.MODEL
    ours = (
        (cfg, {"SEED": defaults.SEED}),
        (cfg.TEST, {"OCCLUDED": defaults.TEST.OCCLUDED}),
        (model.LOSSES.RIB, stock.LOSSES.RIB),
        (model.ATTENTION, stock.ATTENTION),
        (cfg.DATASETS.FOLDER, defaults.DATASETS.FOLDER),
    )
    for node, default in ours:
        for key, value in default.items():
            if node.get(key, value) == value:
                node.pop(key, None)
    nodes = ((model.LOSSES, "RIB"), (model, "ATTENTION"), (cfg.DATASETS, "FOLDER"))
    for parent, name in nodes:
        if not parent[name]:
            del parent[name]
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
    hint = did_you_mean(written, (*short, *known))
    return (
        f"MODEL.LOSSES.NAME holds '{written}', which {architecture} does not know and would "
        f"leave out in silence.{hint} It knows {', '.join(known)}, and the short forms "
        f"{', '.join(short)}."
    )


def names_rib(cfg: Any) -> bool:
    """Whether ``MODEL.LOSSES.NAME`` of a config asks for RIB."""
    return "RIBLoss" in loss_names(cfg)


def rib_before_attention(cfg: Any) -> bool:
    """Whether RIB's embedding is to be taken in front of the attention at the head."""
    return names_rib(cfg) and cfg.MODEL.LOSSES.RIB.EMBEDDING == "before"


def rib_behind_neck(cfg: Any) -> bool:
    """Whether RIB's embedding is to be what the head's neck gives."""
    return names_rib(cfg) and cfg.MODEL.LOSSES.RIB.EMBEDDING == "neck"


def warmup_epochs(cfg: Any) -> int:
    """Epochs without RIB that a config asks for, in epochs or as a share of the training."""
    rib = cfg.MODEL.LOSSES.RIB
    return max(rib.WARMUP_EPOCHS, round(rib.WARMUP_SHARE * cfg.SOLVER.MAX_EPOCH))


def ramp_epochs(cfg: Any) -> int:
    """Epochs in which RIB's weight rises, in epochs or as a share of the training."""
    rib = cfg.MODEL.LOSSES.RIB
    return max(rib.RAMP_EPOCHS, round(rib.RAMP_SHARE * cfg.SOLVER.MAX_EPOCH))


def check(cfg: Any) -> None:
    """Checks the plugin's keys.

    Args:
        cfg: a FastReID config.

    Raises:
        KeyError: an unknown loss name.
        ValueError: a key out of its range, or a file that cannot be read; the message names the
            key, what was expected and the value.
    """
    attention(cfg)
    if cfg.SEED < -1 or cfg.SEED >= 2**32 - 2**16:
        # NumPy takes 32 bits, and every rank adds its number.
        raise ValueError(f"SEED must be -1 (no seed) or 0 .. 4294901759, but is {cfg.SEED}.")
    if cfg.TEST.OCCLUDED:
        from fastreid_rib.integration.occlusion import listed  # not at the top: it loads torch

        listed(cfg)
    if not names_rib(cfg):
        return
    from fastreid_rib.losses.rib_loss import RELEVANCES  # not at the top: they load torch
    from fastreid_rib.ops import BACKENDS, FORMS

    rib = cfg.MODEL.LOSSES.RIB
    hints = {
        "SCALE": "; to train without RIB, take it out of MODEL.LOSSES.NAME",
        "NUM_CLUSTERS": "; 0 means as many clusters as identities",
        "TABLE_ENTRIES": "; 0 keeps the whole table",
        "INPUT": "; 'pixels' reports the information bottleneck itself, '' does not",
    }
    full = rib.RELEVANCE == "full"
    ranges = (
        ("SCALE", "> 0", 0 < rib.SCALE < float("inf")),
        ("BETA", "> 0", 0 < rib.BETA < float("inf")),
        ("RELEVANCE", f"one of {', '.join(RELEVANCES)}", rib.RELEVANCE in RELEVANCES),
        (
            "GAMMA",
            ">= 0" if full else "between 0 and 1 (beyond it bounds nothing with RELEVANCE 'paper')",
            0 <= rib.GAMMA <= (sys.float_info.max if full else 1),
        ),
        ("FORM", f"one of {', '.join(FORMS)}", rib.FORM in FORMS),
        ("SMOOTHING", ">= 0 and < 1", 0 <= rib.SMOOTHING < 1),
        ("MOMENTUM", ">= 0 and < 1", 0 <= rib.MOMENTUM < 1),
        ("REFRESHES", ">= 1", rib.REFRESHES >= 1),
        ("NUM_CLUSTERS", ">= 0", rib.NUM_CLUSTERS >= 0),
        ("WARMUP_EPOCHS", ">= 0", rib.WARMUP_EPOCHS >= 0),
        ("WARMUP_SHARE", ">= 0 and < 1", 0 <= rib.WARMUP_SHARE < 1),
        ("RAMP_EPOCHS", ">= 0", rib.RAMP_EPOCHS >= 0),
        ("RAMP_SHARE", ">= 0 and <= 1", 0 <= rib.RAMP_SHARE <= 1),
        ("BANK_SIZE", "> 0", rib.BANK_SIZE > 0),
        ("TABLE_ENTRIES", ">= 0", rib.TABLE_ENTRIES >= 0),
        ("INPUT", "'' or 'pixels'", rib.INPUT in ("", "pixels")),
        (
            "EMBEDDING",
            "'before', 'after' or 'neck'",
            rib.EMBEDDING in ("before", "after", "neck"),
        ),
        ("BACKEND", f"one of {', '.join(BACKENDS)}", rib.BACKEND in BACKENDS),
    )
    if not full and rib.MOMENTUM and rib.SMOOTHING:
        raise ValueError(
            "MODEL.LOSSES.RIB.MOMENTUM with SMOOTHING needs RELEVANCE 'full', but it is "
            f"{rib.RELEVANCE!r}. Write 'full', or 0 for one of the two."
        )
    for key, expected, holds in ranges:
        if not holds:
            value = f"{rib[key]!r}{hints.get(key, '')}"
            raise ValueError(f"MODEL.LOSSES.RIB.{key} must be {expected}, but is {value}.")


class Attention(NamedTuple):
    """The attention that a config asks for.

    Attributes:
        name: a name of ``fastreid_rib.attention.ATTENTIONS``.
        placement: "head" and stages of the backbone, at least one.
        settings: what the module is built with, besides its channels.
        lr_factor: learning rate of the module over that of its surroundings.
    """

    name: str
    placement: Tuple[str, ...]
    settings: Dict[str, Any]
    lr_factor: float


ATTENTION_HEADS = ("DCSHead", "ChannelAttentionHead")
"""Values of ``MODEL.HEADS.NAME`` that stand for an attention with ``PLACEMENT ("head",)``."""

_CHANNEL_ATTENTIONS = ("SE", "ECA", "CBAM", "CAM")


def attention(cfg: Any) -> Optional[Attention]:
    """The attention that a config asks for, by ``MODEL.ATTENTION`` or by its head's name.

    Args:
        cfg: a FastReID config.

    Returns:
        The checked request, or None if the config asks for no attention.

    Raises:
        ValueError: a key out of its range, or attention asked for in both ways.
    """
    node, head = cfg.MODEL.ATTENTION, cfg.MODEL.HEADS.NAME
    key, name, placement = "NAME", node.NAME, node.PLACEMENT
    if head in ATTENTION_HEADS:
        if name:
            raise ValueError(
                f"MODEL.HEADS.NAME {head} is attention at the head, and MODEL.ATTENTION.NAME is "
                f"{name!r} besides. Write one of the two: MODEL.HEADS.NAME EmbeddingHead with "
                "MODEL.ATTENTION.PLACEMENT can hold both the head and stages."
            )
        name, placement = "DCS", ("head",)
        if head == "ChannelAttentionHead":
            key, name = "CHANNEL", node.CHANNEL
    elif name == "":
        return None
    from fastreid_rib.attention import ATTENTIONS, attention_settings  # loads torch

    names = _CHANNEL_ATTENTIONS if key == "CHANNEL" else tuple(ATTENTIONS)
    ranges = (
        (key, f"one of {', '.join(names)}", name in names),
        (
            "PLACEMENT",
            'a tuple of places without repetitions, such as ("layer3", "head")',
            isinstance(placement, (tuple, list))
            and len(placement) > 0
            and all(isinstance(place, str) for place in placement)
            and len(set(placement)) == len(placement),
        ),
        ("WIDTH", ">= 0 (0: all channels)", node.WIDTH >= 0),
        ("RANK", ">= 0 (0: full matrices)", node.RANK >= 0),
        ("GROUPS", ">= 1 (1: full matrices)", node.GROUPS >= 1),
        (
            "RANK",
            f"0 where GROUPS is {node.GROUPS} (write one of the two; GROUPS 1: none)",
            node.RANK == 0 or node.GROUPS == 1,
        ),
        ("TEMPERATURE", "> 0", 0 < node.TEMPERATURE < float("inf")),
        ("FINAL_TEMPERATURE", "> 0", 0 < node.FINAL_TEMPERATURE < float("inf")),
        ("MASK_BIAS", "between -20 and 20", -20 <= node.MASK_BIAS <= 20),
        ("SCALE", "'sqrt' or 'cosine'", node.SCALE in ("sqrt", "cosine")),
        ("COSINE_FACTOR", "> 0", 0 < node.COSINE_FACTOR < float("inf")),
        ("NORM", "'batch', 'layer' or 'none'", node.NORM in ("batch", "layer", "none")),
        ("LR_FACTOR", "> 0", 0 < node.LR_FACTOR < float("inf")),
        ("REDUCTION", ">= 1", node.REDUCTION >= 1),
        (
            "KERNEL_SIZE",
            "odd, or 0 for the paper's choice",
            node.KERNEL_SIZE == 0 or (node.KERNEL_SIZE > 0 and node.KERNEL_SIZE % 2 == 1),
        ),
        ("START", "'identity' or 'published'", node.START in ("identity", "published")),
    )
    for key, expected, holds in ranges:
        if not holds:
            raise ValueError(f"MODEL.ATTENTION.{key} must be {expected}, but is {node[key]!r}.")
    settings = {
        setting: node[setting.upper()]
        for setting in attention_settings(name)
        if setting.upper() in node
    }
    return Attention(name, tuple(placement), settings, node.LR_FACTOR)


def without_attention(cfg: Any) -> Any:
    """A copy of a config that asks for no attention, with FastReID's own head."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ATTENTION.NAME = ""
    if cfg.MODEL.HEADS.NAME in ATTENTION_HEADS:
        cfg.MODEL.HEADS.NAME = "EmbeddingHead"
    cfg.freeze()
    return cfg
