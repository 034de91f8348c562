"""The settings of the RIB loss."""

from dataclasses import dataclass
from typing import Iterator, Tuple

from fastreid_rib.settings.declaration import (
    Range,
    Settings,
    above,
    at_least,
    between,
    one_of,
    setting,
    share,
    yes_or_no,
)

BACKENDS = ("auto", "cuda", "cpu", "torch")
"""What computes the bound; "auto": the kernels for the device, PyTorch if none work there."""

FORMS = ("clusters", "embedding")
"""Whose information is bounded, see ``ops.bound``; the order is that of ``rib_form`` in rib.h."""

RELEVANCES = ("full", "paper")
"""Relevance terms: with the clusters' marginal, or as published without it."""

_USELESS = "Leave it out: measured, it brought nothing or did harm."


@dataclass(frozen=True)
class RIBSettings(Settings):
    """The settings of :class:`fastreid_rib.RIBLoss`, besides the number of identities.

    docs/guide/configuration.md has a table of them, made from this class.

    Raises:
        SettingError: a value is out of its range, or two do not go together.
    """

    gone = {
        "ramp_share": _USELESS,
        "warmup_share": "Write WARMUP_EPOCHS: the share times SOLVER.MAX_EPOCH.",
        "input": "Leave it out; `python -m fastreid_rib information` draws the information plane.",
    }

    beta: float = setting(
        5.0,
        above(0),
        "Sharpness of the soft assignment of embeddings to clusters. With `center` it means the "
        "same for every backbone, stride and epoch; without, what fits depends on how close the "
        "embeddings lie.",
        symbol="beta",
    )
    gamma: float = setting(
        0.0,
        at_least(0),
        "Multiplier of the compression: 0 leaves it out, 1 minimises the bound KLB (ours). With "
        '`relevance` `"paper"` at most 1.',
        symbol="gamma",
    )
    center: bool = setting(
        True,
        yes_or_no,
        "Whether the mean of the embeddings, frozen at each refresh, is taken off (ours). Without "
        "it they lie in a cone that is narrower for one backbone than for another, and no `beta` "
        "fits all.",
        symbol="mu",
    )
    relevance: str = setting(
        "full",
        one_of(*RELEVANCES),
        "The relevance term with the marginal of the clusters in it (ours), so that a collapse is "
        "its worst value; or as in the paper without, where a collapse is its best.",
        symbol="P",
    )
    form: str = setting(
        "clusters",
        one_of(*FORMS),
        "Whose information is bounded: that of the clusters, as in the paper, or the embedding's "
        "own (ours).",
    )
    smoothing: float = setting(
        0.1,
        share("0: none"),
        "Share of the clusters' marginal in each row of the class table (ours): an identity has "
        "too few images to be certain of the clusters that they missed. With it log(Q / P) is at "
        "least its logarithm; any Q that sums to one gives a bound.",
    )
    cross_camera: bool = setting(
        True,
        yes_or_no,
        "Whether an image is compared with what the other cameras saw of its identity (ours), as "
        "in retrieval, and not with what its own one saw too. Without cameras, and for identities "
        "that one camera alone saw, it is compared with all. Not together with `momentum`.",
    )
    momentum: float = setting(
        0.0,
        share("0: frozen"),
        "Weight of an image in centroids and class table, which then follow the embeddings from "
        "batch to batch. 0: frozen between refreshes, as in the paper.",
    )
    refreshes: int = setting(
        1,
        at_least(1),
        "Refreshes in an epoch, at equal distances. Those within it work on what the last epoch's "
        "worth of steps gave, and begin in the second epoch of RIB at the latest: the length of an "
        "epoch is only known after one.",
    )
    num_clusters: int = setting(
        0, at_least(0, "0: as many as identities"), "Number of clusters.", symbol="K"
    )
    warmup_epochs: int = setting(
        2,
        at_least(0),
        "Epochs trained without RIB, which starts at epoch max(1, this), counted from 0: before "
        "the first refresh there is nothing to compare with.",
    )
    ramp_epochs: int = setting(
        0,
        at_least(0),
        "Epochs after which the loss has its whole weight, to which it rises in equal steps. 0: "
        "from the first one.",
    )
    bank_size: int = setting(
        20000,
        above(0),
        "Most embeddings of an epoch that are kept for the refresh; beyond that an unbiased "
        "sample. 2 bytes a number: 20000 rows of 2048 take 82 MB on every GPU and in checkpoints.",
    )
    table_entries: int = setting(
        0,
        at_least(0, "0: the whole table"),
        "Entries kept of each row of the class table, the largest; the other clusters share what "
        "is left of the row. For many identities: a whole table takes 4 bytes for each identity "
        "and cluster, a sparse one 8 for each entry.",
        symbol="m",
    )
    backend: str = setting(
        "auto",
        one_of(*BACKENDS),
        'What computes the bound: `"auto"` takes the compiled kernels for the device, or plain '
        "PyTorch where there are none (the log says why); the others insist.",
    )
    seed: int = setting(
        0,
        Range("a whole number", lambda value: isinstance(value, int)),
        "All chance in the loss is keyed by it and the epoch.",
        is_key=False,
    )
    q_floor: float = setting(
        1e-6,
        Range("> 0 and < 1 (1e-6, for example)", lambda value: 0 < value < 1),
        "Least value of Q. Sharp assignments leave exact zeros, whose logarithm would make the "
        "loss infinite. Rows of Q then sum to at most 1 + K times it.",
        is_key=False,
    )
    kmeans_iterations: int = setting(
        10,
        at_least(1),
        "Most iterations of K-means in a refresh; it stops when nothing moves.",
        is_key=False,
    )

    def conflicts(self) -> Iterator[Tuple[str, str]]:
        """See :class:`Settings`."""
        if self.relevance != "full" and self.gamma > 1:
            most = between(0, 1, "beyond it bounds nothing without the marginal of the clusters")
            yield "gamma", f"{most.text} where {{relevance}} is {self.relevance!r}"
        if self.relevance != "full" and self.momentum and self.smoothing:
            yield "relevance", "'full' where both {momentum} and {smoothing} are above 0"
