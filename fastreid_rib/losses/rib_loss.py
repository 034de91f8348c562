"""The RIB loss: Wang, Jojic, Yang, arXiv 2505.08961.

Legend: n images of a batch, D dimensions, K clusters, C identities, P input values an image.
"""

import logging
import math
import operator
import random
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.base import ranks
from fastreid_rib.losses.moving import move
from fastreid_rib.losses.q_table import kept_entries
from fastreid_rib.losses.refresh import Statistics, center_rows, centred, refresh
from fastreid_rib.losses.reservoir import Reservoir
from fastreid_rib.ops import BACKENDS, FORMS, aligned_rows, bound
from fastreid_rib.ops.tracing import is_compiling

logger = logging.getLogger(__name__)

RELEVANCES = ("full", "paper")
"""Relevance terms: with the clusters' marginal, or as published without it."""

_REDUCTIONS = ("mean", "sum", "none")
# Below this share of log(identities) the soft assignment is as good as uniform. Runs in which RIB
# collapsed fell under it within three refreshes; in runs that gained by it it was above 0.08.
_LEAST_SHARE = 0.02
_COUNTERS = ("epoch", "rows_seen", "steps", "epoch_steps")
_BANK = ("bank_rows", "bank_labels", "bank_inputs")
_OLDER = ("older_rows", "older_labels", "older_inputs")


def rib_loss(
    embeddings: Tensor,
    labels: Tensor,
    centroids: Tensor,
    log_q: Tensor,
    *,
    beta: float,
    gamma: float = 0.0,
    form: str = "clusters",
    log_p: Optional[Tensor] = None,
    mean: Optional[Tensor] = None,
    reduction: str = "mean",
    index: Optional[Tensor] = None,
    floor: Optional[Tensor] = None,
    half_norms: Optional[Tensor] = None,
    backend: str = "auto",
) -> Tensor:
    """Bound of the information bottleneck against given statistics.

    ``loss_i = sum_a phi_ia (gamma log phi_ia - log Q(a|y_i) + (1 - gamma) log P(a))`` with ``phi_i
    = softmax_a(-beta |F_i - C_a|^2)`` and ``F_i`` the L2-normalised embedding, centred by ``mean``
    and normalised again if there is one. gamma = 0 without P has the gradient of the paper's bound;
    P and the form "embedding" are ours, see ``ops.bound``, and so is gamma = 1, KLB.

    Args:
        embeddings: (n, D), any floating dtype, not normalised.
        labels: (n,), int64, < C. Images with a negative label are ignored.
        centroids: (K, D), constant.
        log_q: (C, K), natural logarithms, constant; (C, m) with ``index`` and ``floor``.
        beta: sharpness of the soft assignment, > 0. Squared distances lie in 0..4.
        gamma: multiplier of the compression, >= 0; without ``log_p`` at most 1 (beyond it bounds
            nothing).
        form: "clusters" bounds -I(F~;Y), "embedding" -I(F;Y): see ``ops.bound``.
        log_p: (K,), log of the clusters' marginal P(a), nats, constant; None: P = 1.
        mean: (D,), constant: taken off the normalised embeddings. None: nothing is.
        reduction: "mean" (over the images that are not ignored), "sum" or "none".
        index: (C, m), int32: the clusters of the entries of a sparse ``log_q``.
        floor: (C,), float32: its logarithm for the clusters that are not listed.
        half_norms: (K,), float32: ``|C_a|^2 / 2``, if it is at hand.
        backend: "auto", "cuda", "cpu" or "torch": which kernels, see ``ops.backends.choose``.

    Returns:
        Nats, float32 (float64 for float64 embeddings), whatever autocast says. Scalar, or (n,) for
        "none". Differentiable once, with respect to ``embeddings``. ``torch.compile`` takes it
        whole.

    Raises:
        ValueError: a shape, dtype or value is out of its range. On a GPU, and compiled, a label
            >= C makes the loss NaN instead: looking at it would make the host wait.
        native.Unavailable: a backend that was asked for by name cannot be used.
    """
    _check_range("beta", beta, beta > 0, "> 0")
    _check_gamma(gamma, log_p is not None)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {_REDUCTIONS}, got {reduction!r}")
    _check_batch(embeddings, labels, len(log_q))
    if centroids.dim() != 2 or centroids.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"centroids must be (K, {embeddings.shape[1]}) as embeddings are "
            f"{tuple(embeddings.shape)}, got {tuple(centroids.shape)}"
        )
    if index is not None and floor is not None:
        if log_q.dim() != 2 or index.shape != log_q.shape or floor.shape != log_q.shape[:1]:
            raise ValueError(
                "log_q and index must be (C, m) and floor (C,), got "
                f"{tuple(log_q.shape)}, {tuple(index.shape)} and {tuple(floor.shape)}"
            )
    elif index is None and floor is None and log_q.shape[1:] != centroids.shape[:1]:
        raise ValueError(
            f"log_q must be (C, {len(centroids)}), a column for each centroid, "
            f"got {tuple(log_q.shape)}"
        )
    vectors = (("log_p", log_p, len(centroids)), ("mean", mean, embeddings.shape[1]))
    for name, vector, length in vectors:  # another shape might broadcast
        if vector is not None and tuple(vector.shape) != (length,):
            raise ValueError(f"{name} must be ({length},), got {tuple(vector.shape)}")
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    known = (labels >= 0) & (labels < len(log_q))
    # Taken out before the normalisation: a NaN there would come back as NaN times zero.
    embeddings = embeddings.to(dtype).masked_fill(~known[:, None], 0)
    features = F.normalize(embeddings, dim=1)
    if mean is not None:
        features = F.normalize(features - mean.to(dtype), dim=1)
    losses, _ = bound(
        features, centroids, log_q, labels, beta, gamma, form=form, log_p=log_p,
        index=index, floor=floor, half_norms=half_norms, backend=backend,
    )  # fmt: skip
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / known.sum().clamp(min=1)


class RIBLoss(nn.Module):
    """RIB with its statistics: gathers embeddings, clusters them once an epoch, gives the loss.

    ::

        rib = RIBLoss(num_classes=751)
        for epoch in range(epochs):
            rib.start_epoch(epoch)
            for images, labels in loader:
                features = model(images)
                loss = cross_entropy(classifier(features), labels) + rib(features, labels)

    RIB starts at epoch ``max(1, warmup_epochs)``; until then the loss is 0, since there is nothing
    to compare with. In training mode, with gradients enabled, each step's L2-normalised embeddings
    enter a reservoir (float16), those of all ranks if ``torch.distributed`` is initialised. All
    ranks must then call in step; their batches may differ in size, and a rank without images calls
    with (0, D). The ranks tell each other their sizes from host to host, and no GPU is waited for.
    From the reservoir of an epoch, ``start_epoch`` of the next makes the centroids and Q(a|y); it
    begins anew every epoch.

    The loss is the mean over a rank's own images, as FastReID's losses are. DistributedDataParallel
    averages over ranks, so with batches of different sizes an image of a small one weighs more.

    The statistics have no size before the first embeddings and add no keys to the ``state_dict``
    before they exist. They load all or nothing, and a process that goes on from a checkpoint gets
    bit for bit what the one that wrote it would have got.

    Args:
        num_classes: number of identities C, >= 1.
        beta: sharpness of the soft assignment, > 0. With ``center`` it means the same for every
            backbone and epoch; without, what fits depends on how close the embeddings lie.
        gamma: multiplier of the compression, >= 0 (without the marginal of the clusters 0..1): 0
            leaves it out, 1 is KLB.
        center: whether the mean of the embeddings, frozen at each refresh, is taken off. Ours.
        relevance: "full": with the clusters' marginal, which makes collapse the worst value of the
            bound. "paper": without, where it is the best one.
        form: "clusters" or "embedding": see ``ops.bound``.
        smoothing: share of the clusters' marginal P in each row of Q, 0 <= smoothing < 1. Ours. An
            identity has a dozen images, and of clusters that they missed Q would be all but
            certain; images of the next epoch pay for it. With P in it log(Q / P) is at least log
            smoothing. Any Q that sums to one gives a bound.
        momentum: in 0..1 (1 excluded): weight of an image in the statistics, which then follow the
            embeddings from batch to batch between the refreshes. 0: they are frozen, as in the
            paper.
        refreshes: in an epoch, >= 1, at equal distances; those within it work on what the last
            epoch's worth of steps gave. They begin in the second epoch of RIB at the latest, since
            the length of an epoch is only known after one.
        num_clusters: K, >= 0; 0: as many as identities.
        warmup_epochs: >= 0.
        ramp_epochs: >= 0: after so many epochs more the loss has its whole weight, to which it
            rises in equal steps; 0: from the first one.
        bank_size: most embeddings kept, >= 1; an epoch that has more is sampled uniformly. Takes
            2 D bytes a row (82 MB at 20000 rows of 2048).
        seed: any integer; all chance here is keyed by it and the epoch.
        q_floor: least value of Q, in (0, 1). Sharp assignments leave exact zeros, whose logarithm
            would make the loss infinite. Rows of Q then sum to at most 1 + K * q_floor.
        table_entries: m, >= 0: only the m largest entries of each row of Q are kept, and the other
            clusters share what is left of the row, each their mean (see ``losses.q_table``). The
            table takes C x m numbers instead of C x K then. 0 or >= K: all, exact.
        kmeans_iterations: most in a refresh, >= 1; it stops when nothing moves.
        backend: "auto", "cuda", "cpu" or "torch": which kernels compute the bound. "auto" takes
            those for the device, or plain PyTorch where there are none, and the log says why.

    Raises:
        ValueError: an argument is out of its range.
    """

    centroids: Optional[Tensor]
    log_q: Optional[Tensor]
    log_q_index: Optional[Tensor]
    log_q_floor: Optional[Tensor]
    log_p: Optional[Tensor]
    mean: Optional[Tensor]
    class_counts: Optional[Tensor]
    class_means: Optional[Tensor]
    half_norms: Optional[Tensor]
    _bad_labels: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        beta: float = 10.0,
        gamma: float = 0.0,
        center: bool = True,
        relevance: str = "full",
        form: str = "clusters",
        smoothing: float = 0.1,
        momentum: float = 0.0,
        refreshes: int = 1,
        num_clusters: int = 0,
        warmup_epochs: int = 2,
        ramp_epochs: int = 0,
        bank_size: int = 20000,
        seed: int = 0,
        q_floor: float = 1e-6,
        table_entries: int = 0,
        kmeans_iterations: int = 10,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _check_range("num_classes", num_classes, num_classes >= 1, ">= 1, the identities")
        _check_range("beta", beta, beta > 0, "> 0")
        for name, value, choices in (("relevance", relevance, RELEVANCES), ("form", form, FORMS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        _check_gamma(gamma, relevance == "full")
        _check_range("smoothing", smoothing, 0 <= smoothing < 1, "in 0..1, and not 1 (0: none)")
        if momentum and smoothing and relevance != "full":
            raise ValueError(
                "momentum with smoothing needs the marginal of the clusters, got relevance "
                f"{relevance!r}; write relevance='full', or 0 for one of the two"
            )
        _check_range("momentum", momentum, 0 <= momentum < 1, "in 0..1, and not 1 (0: frozen)")
        _check_range("refreshes", refreshes, refreshes >= 1, ">= 1, in an epoch")
        _check_range("ramp_epochs", ramp_epochs, ramp_epochs >= 0, ">= 0")
        _check_range("num_clusters", num_clusters, num_clusters >= 0, ">= 0 (0: num_classes)")
        _check_range("warmup_epochs", warmup_epochs, warmup_epochs >= 0, ">= 0")
        _check_range("bank_size", bank_size, bank_size >= 1, ">= 1, rows")
        _check_range("q_floor", q_floor, 0 < q_floor < 1, "in (0, 1), for example 1e-6")
        _check_range("table_entries", table_entries, table_entries >= 0, ">= 0 (0: all)")
        _check_range("kmeans_iterations", kmeans_iterations, kmeans_iterations >= 1, ">= 1")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.num_classes = num_classes
        self.num_clusters = num_clusters or num_classes
        self.beta = float(beta)
        self.gamma = float(gamma)
        self.center = bool(center)
        self.relevance = relevance
        self.form = form
        self.smoothing = float(smoothing)
        self.momentum = float(momentum)
        self.refreshes = refreshes
        self.ramp_epochs = ramp_epochs
        self.first_epoch = max(1, warmup_epochs)
        self.seed = seed
        self.q_floor = float(q_floor)
        self.table_entries = kept_entries(table_entries, self.num_clusters)
        self.kmeans_iterations = kmeans_iterations
        self.backend = backend
        self.bank = Reservoir(bank_size, seed)
        self.older = Reservoir(bank_size, seed)  # of the epoch before, for refreshes within one
        self._steps = 0  # of this epoch so far
        self._epoch_steps = 0  # of the epoch before
        self._epoch = -1  # host integers: reading them never waits for a GPU
        self._size_may_change = False
        # Not persistent for torch: _save_to_state_dict writes them (of the bank its filled part).
        for name in Statistics._fields:
            self.register_buffer(name, None, persistent=False)
        # |C_a|^2 / 2: follows from the centroids, so it is in no checkpoint.
        self.register_buffer("half_norms", None, persistent=False)
        # Also tells on which device this module lives while nothing else does.
        self.register_buffer("_bad_labels", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def active(self) -> bool:
        """Whether the loss is in force: RIB's first epoch has come and statistics exist."""
        return self.centroids is not None and self._epoch >= self.first_epoch

    @property
    def epoch(self) -> int:
        """The epoch that was last started; -1 before the first."""
        return self._epoch

    def forward(
        self, embeddings: Tensor, labels: Tensor, inputs: Optional[Tensor] = None
    ) -> Tensor:
        """The loss of a batch, and, in training, its embeddings into the reservoir.

        Args:
            embeddings: (n, D), any floating dtype, not normalised. Rows that are not finite never
                enter the statistics.
            labels: (n,), int64, < num_classes; images with a negative label are ignored.
            inputs: (n, P), floating point: a small grid of each image's pixels, so that the
                compression term can be reported too. In every step of an epoch or in none.

        Returns:
            Scalar, float32 (float64 for float64 embeddings), nats, unscaled; with the marginal of
            the clusters below zero where identities are told apart, on average at least minus
            their entropy. Before RIB starts a zero that is connected to the graph, also if the
            embeddings are not finite.

        Raises:
            ValueError: a shape or dtype does not fit, or (on the CPU) a label is >= num_classes. On
                a GPU such an image is ignored, and the next ``start_epoch`` raises.
        """
        _check_batch(embeddings, labels, self.num_classes)
        if inputs is not None and (
            inputs.dim() != 2 or len(inputs) != len(labels) or not inputs.is_floating_point()
        ):
            raise ValueError(
                f"inputs must be ({len(labels)}, P) floating point, a row for each image, got "
                f"{tuple(inputs.shape)} {inputs.dtype}; write inputs.flatten(1)"
            )
        if self._bad_labels.device != embeddings.device:
            self.to(embeddings.device)
        self._check_size(embeddings.shape[1])
        gathered = None
        if self.training and torch.is_grad_enabled():
            self._refresh_within_epoch()  # first, since no loss is to see its own batch
            gathered = self._bank(embeddings.detach(), labels, inputs)
        if not self.active:
            zero = embeddings[:0].sum()
            return zero if zero.dtype == torch.float64 else zero.float()
        assert self.centroids is not None and self.log_q is not None
        loss = rib_loss(
            embeddings,
            labels,
            self.centroids,
            self.log_q,
            beta=self.beta,
            gamma=self.gamma,
            form=self.form,
            log_p=self.log_p,
            mean=self.mean,
            index=self.log_q_index,
            floor=self.log_q_floor,
            half_norms=self.half_norms,
            backend=self.backend,
        )
        if gathered is not None and self.momentum:
            self._move(*gathered)
        weight = self.weight
        return loss if weight == 1 else weight * loss

    @property
    def weight(self) -> float:
        """Weight of the loss in this epoch, 0..1: it rises over ``ramp_epochs``."""
        done = self._epoch - self.first_epoch + 1
        return min(1.0, max(0.0, done / (self.ramp_epochs + 1)))

    def start_epoch(self, epoch: int) -> Dict[str, float]:
        """Begin an epoch: new centroids and Q from what the last one gathered, if RIB is due.

        Call it on every rank before the first step of each epoch; again for the same epoch it does
        nothing. With several ranks it calls collectives.

        Args:
            epoch: >= 0, counted from 0.

        Returns:
            Report of the refresh in nats, empty if there was none: "mutual_information" I(F~;Y),
            "klb", "bound" (what the loss minimises) and, of the form "clusters", "slack": how far
            it lies above ``gamma I(F~;i) - I(F~;Y)``, >= 0 but for rounding; identities that the
            epoch lacked, and that count in the marginal all the same, are allowed for. If inputs
            came, also "input_information" I(F~;X~), "ib", "ibb" and "c0".

        Raises:
            ValueError: ``epoch`` is negative, or a step had labels >= num_classes.
        """
        epoch = operator.index(epoch)
        _check_range("epoch", epoch, epoch >= 0, ">= 0")
        if epoch == self._epoch:  # before anything that would wait for a GPU: asked at every step
            return {}
        if int(self._bad_labels):
            raise ValueError(
                f"labels must be < num_classes = {self.num_classes}, but a step since the last "
                "epoch had larger ones; set num_classes to the number of identities"
            )
        report: Dict[str, float] = {}
        if epoch >= self.first_epoch and self.bank.filled:
            report = self._refresh(epoch, *self.bank.content())
        self._epoch = epoch
        self._epoch_steps, self._steps = self._steps, 0
        if self.refreshes > 1:
            self.older, self.bank = self.bank, self.older
        self.bank.clear(epoch)
        return report

    def forget(self) -> None:
        """Drop everything that was gathered: as before the first epoch."""
        self._reset()

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        return (
            f"num_classes={self.num_classes}, num_clusters={self.num_clusters}, beta={self.beta}, "
            f"gamma={self.gamma}, center={self.center}, relevance={self.relevance!r}, "
            f"form={self.form!r}, smoothing={self.smoothing}, momentum={self.momentum}, "
            f"refreshes={self.refreshes}, first_epoch={self.first_epoch}, "
            f"ramp_epochs={self.ramp_epochs}, bank_size={self.bank.limit}"
        )

    @torch.no_grad()
    def _bank(
        self, embeddings: Tensor, labels: Tensor, inputs: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """Puts a batch into the reservoir; returns its rows and labels, of all ranks."""
        if self._epoch < 0 and not self.bank.seen:
            logger.warning(
                "RIB is off until start_epoch(epoch) is called; call it at the start of each epoch"
            )
        rows = F.normalize(embeddings.float(), dim=1)
        values = rows
        if inputs is not None:
            inputs = centred(inputs.detach())
            values = torch.cat([rows, inputs], dim=1)
        # Marked, not dropped: how many there are is known on the device only.
        labels = labels.masked_fill(~values.isfinite().all(dim=1), -1)
        counts = _rows_of_ranks(len(labels), rows.shape[1], values.shape[1] - rows.shape[1])
        values = ranks.gather_rows(torch.nan_to_num(values).half(), counts)
        labels = ranks.gather_rows(labels, counts)
        too_large = labels >= self.num_classes
        self._bad_labels += too_large.any()
        rows, inputs = values[:, : rows.shape[1]], values[:, rows.shape[1] :]
        labels = labels.masked_fill(too_large, -1)
        self.bank.add(rows, labels, inputs if inputs.shape[1] else None)
        return rows, labels

    def _move(self, rows: Tensor, labels: Tensor) -> None:
        """Lets the statistics follow a batch: rows (n, D) float16, labels (n,), of all ranks."""
        statistics = self._statistics()
        assert statistics is not None
        rows = rows.to(statistics.centroids.dtype)  # which is that of the module
        if statistics.mean is not None:
            rows = center_rows(rows, statistics.mean)
        moved = move(
            statistics,
            rows,
            labels,
            beta=self.beta,
            momentum=self.momentum,
            smoothing=self.smoothing,
            q_floor=self.q_floor,
        )
        self.centroids, self.log_p = moved.centroids, moved.log_p
        self.half_norms = moved.centroids.square().sum(dim=1) / 2

    def _refresh_within_epoch(self) -> None:
        """Counts a step; refreshes before it if those so far complete a share of the epoch."""
        steps, length = self._steps, self._epoch_steps
        self._steps += 1
        if not self.active or not 0 < steps < length:
            return
        if steps * self.refreshes // length == (steps - 1) * self.refreshes // length:
            return
        # The epoch before is missing if the checkpoint came from a run with fewer refreshes.
        if not self.bank.filled or not self.older.filled:
            return
        # The share of the epoch that is still to come, from the epoch before. Without inputs: they
        # serve the report, and it is that of start_epoch.
        (rows, labels, _), (older_rows, older_labels, _) = self.bank.content(), self.older.content()
        begin = len(older_labels) * steps // length
        rows = torch.cat([rows, older_rows[begin:]])
        self._refresh(self._epoch, rows, torch.cat([labels, older_labels[begin:]]), None)

    @torch.no_grad()
    def _refresh(
        self, epoch: int, rows: Tensor, labels: Tensor, inputs: Optional[Tensor]
    ) -> Dict[str, float]:
        usable = labels >= 0
        if not usable.any():
            logger.warning("RIB: no usable embedding came before epoch %d; no refresh", epoch)
            return {}
        statistics, report = refresh(
            rows[usable],
            labels[usable],
            None if inputs is None else inputs[usable],
            self._statistics(),
            num_classes=self.num_classes,
            num_clusters=self.num_clusters,
            beta=self.beta,
            gamma=self.gamma,
            center=self.center,
            relevance=self.relevance,
            form=self.form,
            smoothing=self.smoothing,
            q_floor=self.q_floor,
            table_entries=self.table_entries,
            iterations=self.kmeans_iterations,
            backend=self.backend,
            draw=random.Random(f"{self.seed}/{epoch}/{self.bank.seen}/refresh"),
        )
        self._set_statistics(statistics)
        told, most = (
            report["mutual_information"],
            math.log(min(self.num_classes, self.num_clusters)),
        )
        if told < _LEAST_SHARE * most:
            logger.warning(
                "RIB at epoch %d: the clusters tell %.3f of %.3f nats about the identity, so the "
                "loss has next to no gradient. The embeddings lie too close together for this "
                "beta: raise beta, start later (warmup_epochs), or look why they do",
                epoch,
                told,
                most,
            )
        return report

    def _statistics(self) -> Optional[Statistics]:
        if self.centroids is None:
            return None
        return Statistics(*(getattr(self, name) for name in Statistics._fields))

    def _statistics_names(self) -> List[str]:
        """Names of the statistics that there are if there are any."""
        sparse = self.table_entries < self.num_clusters
        optional = {
            "log_q_index": sparse,
            "log_q_floor": sparse,
            "log_p": self.relevance == "full",
            "mean": self.center,
        }
        return [name for name in Statistics._fields if optional.get(name, True)]

    def _set_statistics(self, statistics: Optional[Statistics]) -> None:
        for name in Statistics._fields:
            setattr(self, name, None if statistics is None else getattr(statistics, name))
        self.half_norms = None
        if statistics is not None:
            self.half_norms = statistics.centroids.square().sum(dim=1) / 2
            if statistics.log_q_index is None:  # a sparse row is short, and padding would show
                self.log_q = aligned_rows(statistics.log_q)

    def _reset(self) -> None:
        self._set_statistics(None)
        self._epoch = -1
        self._steps = self._epoch_steps = 0
        for bank in (self.bank, self.older):
            bank.clear(-1)

    def _check_size(self, size: int) -> None:
        held = self.centroids if self.centroids is not None else self.bank.rows
        if held is not None and held.shape[1] != size:
            if not self._size_may_change:
                raise ValueError(
                    f"embeddings must be (n, {held.shape[1]}) as before, got (n, {size}); make "
                    "another RIBLoss for another embedding"
                )
            epoch = self._epoch
            self._reset()
            self._epoch = epoch
            self.bank.clear(epoch)
            logger.warning(
                "RIB statistics of the checkpoint are for embeddings of size %d, the model's have "
                "%d: they start afresh",
                held.shape[1],
                size,
            )
        self._size_may_change = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        statistics = self._statistics()
        if statistics is None and not self.bank.seen:
            return
        counts = (self._epoch, self.bank.seen, self._steps, self._epoch_steps)
        for name, count in zip(_COUNTERS, counts):
            destination[prefix + name] = torch.tensor(count, dtype=torch.int64)
        if statistics is not None:
            for name in self._statistics_names():
                destination[prefix + name] = getattr(self, name)
        for names, bank in ((_BANK, self.bank), (_OLDER, self.older)):
            if bank.filled:
                for name, value in zip(names, bank.content()):
                    if value is not None:
                        # A copy: torch.save writes the whole storage behind a view.
                        destination[prefix + name] = value.clone()

    def _load_from_state_dict(
        self,
        state_dict: Dict[str, Any],
        prefix: str,
        local_metadata: Dict[str, Any],
        strict: bool,
        missing_keys: List[str],
        unexpected_keys: List[str],
        error_msgs: List[str],
    ) -> None:
        names = _COUNTERS + Statistics._fields + _BANK + _OLDER
        found = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        unexpected_keys.extend(
            key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in names
        )
        self._reset()
        if not found:
            logger.info("RIB statistics: none in the checkpoint, they start afresh: harmless")
            return
        problem = self._why_unusable(found)
        if problem:
            logger.warning("RIB statistics of the checkpoint not loaded, %s", problem)
            return
        device = self._bad_labels.device
        tensors = {
            name: value.detach().to(device, copy=True)
            for name, value in found.items()
            if name not in _COUNTERS
        }
        self._epoch = int(found["epoch"])
        if "centroids" in tensors:
            loaded: Dict[str, Any] = {name: tensors.get(name) for name in Statistics._fields}
            self._set_statistics(Statistics(**loaded))
        # Checkpoints of 0.1 have no steps: refreshes within an epoch begin an epoch later.
        self._steps, self._epoch_steps = (int(found.get(name, 0)) for name in _COUNTERS[2:])
        rows, kept_labels, inputs = (tensors.get(name) for name in _BANK)
        self.bank.restore(rows, kept_labels, inputs, int(found["rows_seen"]), self._epoch)
        rows, kept_labels, inputs = (tensors.get(name) for name in _OLDER)
        if rows is not None and self.refreshes > 1:  # else it would be kept, and written, for ever
            self.older.restore(rows, kept_labels, inputs, len(rows), self._epoch - 1)
        self._size_may_change = True
        logger.info(
            "RIB statistics loaded: epoch %d, %s, %d embeddings in the bank",
            self._epoch,
            f"{self.num_clusters} clusters" if self.centroids is not None else "no clusters yet",
            self.bank.filled,
        )

    def _why_unusable(self, found: Dict[str, Tensor]) -> str:
        """Why the statistics found in a checkpoint cannot be taken over; empty if they can."""
        needed = list(_COUNTERS[:2])
        if any(name in found for name in Statistics._fields):
            problem = self._why_of_another_kind(found)
            if problem:
                return problem
            needed += self._statistics_names()
        if any(name in found for name in _BANK) or int(found.get("rows_seen", 0)):
            needed += _BANK[:2]
        if any(name in found for name in _OLDER):
            needed += _OLDER[:2]
        missing = [name for name in needed if name not in found]
        if missing:
            return f"as {', '.join(missing)} is missing or has another shape: they start afresh"
        for name, value in found.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                return f"as {name} holds NaN or infinity: they start afresh"
        size = found["centroids" if "centroids" in found else "bank_rows"].shape[-1]
        rows, older = (len(found[name]) if name in found else 0 for name in (_BANK[0], _OLDER[0]))
        expected = {
            "centroids": (self.num_clusters, size),
            "log_q": (self.num_classes, self.table_entries),
            "log_q_index": (self.num_classes, self.table_entries),
            "log_q_floor": (self.num_classes,),
            "log_p": (self.num_clusters,),
            "mean": (size,),
            "class_counts": (self.num_classes,),
            "class_means": (self.num_classes, size),
            "bank_rows": (rows, size),
            "bank_labels": (rows,),
            "older_rows": (older, size),
            "older_labels": (older,),
        }
        for name, shape in expected.items():
            if name in found and tuple(found[name].shape) != shape:
                return (
                    f"as {name} is {tuple(found[name].shape)} and {shape} is needed (another "
                    "number of identities, clusters, table entries or dimensions): they start "
                    "afresh"
                )
        for name in (_BANK[1], _OLDER[1]):
            if name in found and len(found[name]) and int(found[name].max()) >= self.num_classes:
                return f"as it has labels beyond {self.num_classes} identities: they start afresh"
        return ""

    def _why_of_another_kind(self, found: Dict[str, Tensor]) -> str:
        """Why statistics made under other settings cannot be taken over; empty if they can."""
        kinds = (
            ("mean", self.center, "center", "centred", "not centred, as those of 0.1"),
            ("log_p", self.relevance == "full", "relevance", "of the full bound", "of the paper's"),
        )
        for name, wanted, setting, with_it, without in kinds:
            if (name in found) != wanted:
                is_, asked = (without, with_it) if wanted else (with_it, without)
                return (
                    f"as they are {is_} and {setting}={getattr(self, setting)!r} needs them "
                    f"{asked}: they start afresh (docs/method.md says how to go on with them)"
                )
        return ""


def _check_range(name: str, value: float, fits: bool, expected: str) -> None:
    if not fits or not math.isfinite(value):
        raise ValueError(f"{name} must be {expected}, got {value}")


def _check_gamma(gamma: float, with_marginal: bool) -> None:
    if with_marginal:
        _check_range("gamma", gamma, gamma >= 0, ">= 0")
    else:
        expected = "in 0..1 (beyond it bounds nothing without the marginal of the clusters)"
        _check_range("gamma", gamma, 0 <= gamma <= 1, expected)


def _rows_of_ranks(rows: int, dimensions: int, inputs: int) -> List[int]:
    """The batch size of each rank; raises, on all of them, if their rows cannot be put together."""
    sizes = ranks.exchange(rows, dimensions, inputs)
    if len({size[1:] for size in sizes}) > 1:
        told = ", ".join(
            f"rank {rank}: ({n}, {dim}) and {f'({n}, {p})' if p else 'none'}"
            for rank, (n, dim, p) in enumerate(sizes)
        )
        raise ValueError(
            "embeddings and inputs must have the same number of columns on every rank, got "
            f"{told}; only the number of rows may differ"
        )
    return [size[0] for size in sizes]


def _check_batch(embeddings: Tensor, labels: Tensor, num_classes: int) -> None:
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be (n, D) floating point, got {tuple(embeddings.shape)} "
            f"{embeddings.dtype}; write embeddings.flatten(1)"
        )
    if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must be ({len(embeddings)},) int64, one for each embedding, got "
            f"{tuple(labels.shape)} {labels.dtype}; write labels.long()"
        )
    if labels.device != embeddings.device:
        raise ValueError(
            f"labels must be on {embeddings.device} as the embeddings are, got {labels.device}; "
            "write labels.to(embeddings.device)"
        )
    # On a GPU this would make the host wait for it, and a compiled loss has no host to raise.
    if labels.device.type != "cpu" or is_compiling():
        return
    if max(labels.tolist(), default=-1) >= num_classes:
        raise ValueError(
            f"labels must be < {num_classes}, the number of identities, got {int(labels.max())}; "
            "set num_classes to the number of identities"
        )
