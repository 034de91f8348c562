"""The settings of the RIB loss."""

import dataclasses
from dataclasses import dataclass
from typing import Iterator, Tuple

from fastreid_rib.settings.declaration import (
    Range,
    Settings,
    above,
    at_least,
    one_of,
    setting,
    yes_or_no,
)

BACKENDS = ("auto", "cuda", "cpu", "torch")
"""What computes the bound; "auto": the kernels for the device, PyTorch if none work there."""

FORMS = ("clusters", "embedding")
"""Whose information is bounded, see ``ops.bound``; the order is that of ``rib_form`` in rib.h."""

RELEVANCES = ("full", "paper")
"""Relevance terms: with the clusters' marginal, or as published without it."""

MOST_CLUSTERS = 2048
"""As many as there are where nobody says how many."""

_USELESS = "Leave it out: measured, it brought nothing or did harm."


@dataclass(frozen=True)
class RIBSettings(Settings):
    """The settings of :class:`fastreid_rib.RIBLoss`, except the number of identities.

    docs/reference/keys.md has a table of them, made from this class.

    Raises:
        SettingError: a value is out of its range, or two do not go together.
    """

    gone = {
        "momentum": _USELESS,
        "refreshes": _USELESS,
        "ramp_epochs": _USELESS,
        "ramp_share": _USELESS,
        "warmup_share": "Write `warmup_epochs`: the share times SOLVER.MAX_EPOCH.",
        "table_entries": "Write `num_clusters`: fewer clusters make the class table smaller.",
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
        1.0,
        at_least(0),
        "Most that the compression counts. Its multiplier is this, times a number of 0 to 1: the "
        "odds of `'error'` in the log over those of `'error_across'`, or `'error'` without cameras "
        '(ours). 0 leaves the compression out. With `relevance` `"paper"` at most 1.',
        symbol="gamma",
    )
    center: bool = setting(
        True,
        yes_or_no,
        "Whether the mean of the embeddings, frozen at each refresh, is subtracted (ours). Without "
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
        Range(">= 0 and < 1 (0: none)", lambda value: 0 <= value < 1),
        "Share of the clusters' marginal in each row of the class table (ours): an identity has "
        "too few images to be certain of the clusters that they missed. With it log(Q / P) is at "
        "least its logarithm; any Q that sums to one gives a bound.",
    )
    cross_camera: bool = setting(
        True,
        yes_or_no,
        "Whether an image is compared with what the other cameras saw of its identity (ours), as "
        "in retrieval, and not with what its own one saw too. Without cameras, and for identities "
        "that one camera alone saw, it is compared with all.",
    )
    camera_noise: float = setting(
        0.5,
        at_least(0, "0: none"),
        "Most of the camera noise (ours): in training the classifier gets the embedding plus the "
        "difference of two others of one identity, which two cameras saw. It is multiplied by "
        "this, times one minus what multiplies `gamma`: where cameras do not make identities "
        "harder to tell apart there is none. It needs `cross_camera`.",
    )
    num_clusters: int = setting(
        0,
        at_least(0, f"0: as many as identities, at most {MOST_CLUSTERS}"),
        "Number of clusters. The class table takes 4 bytes for each identity and cluster, and as "
        "much again for each pair of an identity and a camera: for many identities fewer clusters "
        "need less.",
        symbol="K",
    )
    warmup_epochs: int = setting(
        2,
        at_least(0),
        "Epochs trained without RIB, which starts at epoch max(1, this), counted from 0: before "
        "the first refresh there is nothing to compare with.",
    )
    bank_size: int = setting(
        20000,
        above(0),
        "Most embeddings of an epoch that are kept for the refresh; beyond that an unbiased "
        "sample. 2 bytes a number: 20000 rows of 2048 take 82 MB on every GPU and in checkpoints.",
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
            why = "beyond it bounds nothing without the marginal of the clusters"
            yield "gamma", f"between 0 and 1 ({why}) where {{relevance}} is {self.relevance!r}"

    @property
    def first_epoch(self) -> int:
        """RIB's first epoch, counted from 0."""
        return max(1, self.warmup_epochs)

    def of_identities(self, num_classes: int) -> "RIBSettings":
        """The same for so many identities, with the number of clusters that 0 stands for."""
        clusters = self.num_clusters or min(num_classes, MOST_CLUSTERS)
        return dataclasses.replace(self, num_clusters=clusters)


@dataclass(frozen=True)
class RIBKeys(RIBSettings):
    """Keys of the loss: its settings, and what FastReID's side does with it."""

    scale: float = setting(
        1.0,
        above(0, "to train without RIB, take it out of MODEL.LOSSES.NAME"),
        "Weight of the bound in the training loss.",
    )
    embedding: str = setting(
        "after",
        one_of("after", "before"),
        "Where RIB's embedding is taken if there is attention at the head: after it, as in the "
        "paper, or before it, from the same map pooled (RIB then trains the backbone, and the "
        "other losses train the attention), which is better with DCS.",
    )
