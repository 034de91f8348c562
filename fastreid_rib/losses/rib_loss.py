"""RIB with its statistics, as a module: Wang, Jojic, Yang, arXiv 2505.08961.

Legend: n images of a batch, D dimensions, K clusters, C identities, P input values an image.
"""

import dataclasses
import logging
import math
import operator
import random
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastreid_rib.base import ranks
from fastreid_rib.base.spelling import check_settings
from fastreid_rib.losses import state
from fastreid_rib.losses.cameras import join_cameras, row_of, split_cameras
from fastreid_rib.losses.centering import center_inputs, center_rows
from fastreid_rib.losses.class_table import kept_entries
from fastreid_rib.losses.functional import check_batch, checked_rib_loss
from fastreid_rib.losses.moving import move
from fastreid_rib.losses.refresh import refresh
from fastreid_rib.losses.reservoir import Reservoir
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.ops import aligned_rows
from fastreid_rib.ops.assignment import half_squared_norms
from fastreid_rib.ops.tracing import is_compiling
from fastreid_rib.settings.declaration import declared
from fastreid_rib.settings.rib import RIBSettings

logger = logging.getLogger(__name__)

# Below this share of log(identities) the soft assignment is as good as uniform. Runs in which RIB
# collapsed fell under it within three refreshes; in runs that gained by it it was above 0.08.
_LEAST_SHARE = 0.02
_FALL = 0.8  # of what the refresh before told
_RISE = 1.5  # of what the one before that told: less is no progress
_TOO_LARGE = -2  # a label that is no identity, until all ranks know of it


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
        settings: what :class:`fastreid_rib.settings.RIBSettings` declares; None: the defaults.
        **changes: single settings in place of those, by their names.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: there is no such setting.
    """

    centroids: Optional[Tensor]
    log_q: Optional[Tensor]
    log_q_index: Optional[Tensor]
    log_q_floor: Optional[Tensor]
    log_p: Optional[Tensor]
    mean: Optional[Tensor]
    class_counts: Optional[Tensor]
    class_means: Optional[Tensor]
    camera_rows: Optional[Tensor]
    cameras: Optional[Tensor]
    half_norms: Optional[Tensor]
    _bad_labels: Tensor

    def __init__(
        self, num_classes: int, settings: Optional[RIBSettings] = None, **changes: Any
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, the identities, got {num_classes}")
        check_settings("RIBLoss", changes, declared(RIBSettings), RIBSettings.gone)
        settings = dataclasses.replace(settings or RIBSettings(), **changes)
        num_clusters = settings.num_clusters or num_classes
        entries = kept_entries(settings.table_entries, num_clusters)
        self.num_classes = num_classes
        self.settings = dataclasses.replace(
            settings, num_clusters=num_clusters, table_entries=entries
        )
        """All of them, with the numbers that 0 stands for. Annealing one is replacing these."""
        self.bank = Reservoir(settings.bank_size, settings.seed)
        # Of the epoch before, for refreshes within one.
        self.older = Reservoir(settings.bank_size, settings.seed)
        self._steps = 0  # of this epoch so far
        self._epoch_steps = 0  # of the epoch before
        self._epoch = -1  # host integers: reading them never waits for a GPU
        self._told: List[float] = []  # about the identity, by the last two refreshes, in nats
        self._size_may_change = False
        # Not persistent for torch: _save_to_state_dict writes them (of the bank its filled part).
        for name in Statistics._fields:
            self.register_buffer(name, None, persistent=False)
        # |C_a|^2 / 2: follows from the centroids, so it is in no checkpoint.
        self.register_buffer("half_norms", None, persistent=False)
        # Also tells on which device this module lives while nothing else does.
        self.register_buffer("_bad_labels", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def first_epoch(self) -> int:
        """RIB's first epoch, counted from 0."""
        return max(1, self.settings.warmup_epochs)

    @property
    def active(self) -> bool:
        """Whether the loss is in force: RIB's first epoch has come and statistics exist."""
        return self.centroids is not None and self._epoch >= self.first_epoch

    @property
    def epoch(self) -> int:
        """The epoch that was last started; -1 before the first."""
        return self._epoch

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        inputs: Optional[Tensor] = None,
        cameras: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of a batch, and, in training, its embeddings into the reservoir.

        Args:
            embeddings: (n, D), any floating dtype, not normalised. Rows that are not finite never
                enter the statistics.
            labels: (n,), int64, < num_classes; images with a negative label are ignored.
            inputs: (n, P), floating point: a small grid of each image's pixels, so that the
                compression term can be reported too. In every step of an epoch or in none.
            cameras: (n,), int64, >= 0: which camera took each image. With them, and
                ``cross_camera``, an image is compared with what other cameras saw of its identity.

        Returns:
            Scalar, float32 (float64 for float64 embeddings), nats, unscaled; with the marginal of
            the clusters below zero where identities are told apart, on average at least minus
            their entropy. Before RIB starts a zero that is connected to the graph, also if the
            embeddings are not finite.

        Raises:
            TypeError: ``inputs`` or ``cameras`` is no tensor.
            ValueError: a shape or dtype does not fit, or (on the CPU) a label is >= num_classes. On
                a GPU such an image is ignored, and the next ``start_epoch`` raises.
        """
        check_batch(embeddings, labels, self.num_classes)
        if inputs is not None and not isinstance(inputs, Tensor):
            raise TypeError(
                f"inputs must be a tensor of pixels or None, got a {type(inputs).__name__}; RIB "
                "takes whole batches: give the indices that a miner chose to the other loss only"
            )
        if inputs is not None and (
            inputs.dim() != 2 or len(inputs) != len(labels) or not inputs.is_floating_point()
        ):
            raise ValueError(
                f"inputs must be ({len(labels)}, P) floating point, a row for each image, got "
                f"{tuple(inputs.shape)} {inputs.dtype}; write inputs.flatten(1)"
            )
        if cameras is not None:
            _check_cameras(cameras, labels)
            if not self.settings.cross_camera:
                cameras = None
            elif self.settings.momentum:
                raise ValueError(
                    "with momentum the statistics do not follow cameras; write cross_camera=False, "
                    "momentum=0, or leave cameras out"
                )
        if self._bad_labels.device != embeddings.device:
            self.to(embeddings.device)
        self._check_size(embeddings.shape[1])
        gathered = None
        if self.training and torch.is_grad_enabled():
            self._refresh_within_epoch()  # first, since no loss is to see its own batch
            gathered = self._bank(embeddings.detach(), labels, inputs, cameras)
        if not self.active:
            zero = embeddings[:0].sum()
            return zero if zero.dtype == torch.float64 else zero.float()
        assert self.centroids is not None and self.log_q is not None
        if self.camera_rows is not None and self.cameras is not None:
            # Without cameras in this batch: those of the identities.
            seen = torch.full_like(labels, -1) if cameras is None else cameras
            labels = row_of(labels, seen, self.camera_rows, self.cameras)
        loss = checked_rib_loss(
            embeddings,
            labels,
            self.centroids,
            self.log_q,
            beta=self.settings.beta,
            gamma=self.settings.gamma,
            form=self.settings.form,
            log_p=self.log_p,
            mean=self.mean,
            index=self.log_q_index,
            floor=self.log_q_floor,
            half_norms=self.half_norms,
            backend=self.settings.backend,
        )
        if gathered is not None and self.settings.momentum:
            self._move(*gathered)
        weight = self.weight
        return loss if weight == 1 else weight * loss

    @property
    def weight(self) -> float:
        """Weight of the loss in this epoch, 0..1: it rises over ``ramp_epochs``."""
        done = self._epoch - self.first_epoch + 1
        return min(1.0, max(0.0, done / (self.settings.ramp_epochs + 1)))

    def start_epoch(self, epoch: int) -> Dict[str, float]:
        """Begins an epoch: new centroids and Q from what the last one gathered, if RIB is due.

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
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
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
        if self.settings.refreshes > 1:
            self.older, self.bank = self.bank, self.older
        self.bank.clear(epoch)
        return report

    def forget(self) -> None:
        """Drops everything that was gathered: as before the first epoch."""
        self._reset()

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        values = (f"{name}={getattr(self.settings, name)!r}" for name in declared(RIBSettings))
        return ", ".join([f"num_classes={self.num_classes}", *values])

    @torch.no_grad()
    def _bank(
        self,
        embeddings: Tensor,
        labels: Tensor,
        inputs: Optional[Tensor],
        cameras: Optional[Tensor],
    ) -> Tuple[Tensor, Tensor]:
        """Puts a batch into the reservoir; returns its rows and labels, of all ranks."""
        if self._epoch < 0 and not self.bank.seen:
            logger.warning(
                "RIB is off until start_epoch(epoch) is called; call it at the start of each epoch"
            )
        rows = F.normalize(embeddings.float(), dim=1)
        values = rows
        if inputs is not None:
            inputs = center_inputs(inputs.detach())
            values = torch.cat([rows, inputs], dim=1)
        # Marked, not dropped: how many there are is known on the device only.
        labels = labels.masked_fill(~values.isfinite().all(dim=1), -1)
        counts = _rows_of_ranks(len(labels), rows.shape[1], values.shape[1] - rows.shape[1])
        values = ranks.gather_rows(torch.nan_to_num(values).half(), counts)
        labels = labels.masked_fill(labels >= self.num_classes, _TOO_LARGE)
        joined = ranks.gather_rows(join_cameras(labels, cameras, self.num_classes), counts)
        too_large = joined == _TOO_LARGE
        self._bad_labels += too_large.any()
        rows, inputs = values[:, : rows.shape[1]], values[:, rows.shape[1] :]
        joined = joined.masked_fill(too_large, -1)
        self.bank.add(rows, joined, inputs if inputs.shape[1] else None)
        return rows, split_cameras(joined, self.num_classes)[0]

    def _move(self, rows: Tensor, labels: Tensor) -> None:
        """Lets the statistics follow a batch: rows (n, D) float16, labels (n,), of all ranks."""
        statistics = self._statistics()
        assert statistics is not None
        rows = rows.to(statistics.centroids.dtype)  # which is that of the module
        if statistics.mean is not None:
            rows = center_rows(rows, statistics.mean)
        moved = move(statistics, rows, labels, self.settings)
        self.centroids, self.log_p = moved.centroids, moved.log_p
        self.half_norms = half_squared_norms(moved.centroids)

    def _refresh_within_epoch(self) -> None:
        """Counts a step; refreshes before it if those so far complete a share of the epoch."""
        steps, length, refreshes = self._steps, self._epoch_steps, self.settings.refreshes
        self._steps += 1
        if not self.active or not 0 < steps < length:
            return
        if steps * refreshes // length == (steps - 1) * refreshes // length:
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
        labels, cameras = split_cameras(labels[usable], self.num_classes)
        statistics, report = refresh(
            rows[usable],
            labels,
            None if inputs is None else inputs[usable],
            self._statistics(),
            self.settings,
            num_classes=self.num_classes,
            draw=random.Random(f"{self.settings.seed}/{epoch}/{self.bank.seen}/refresh"),
            cameras=cameras if self.settings.cross_camera else None,
        )
        self._set_statistics(statistics)
        self._warn_of_collapse(epoch, report["mutual_information"])
        return report

    def _warn_of_collapse(self, epoch: int, told: float) -> None:
        """Says so if the clusters tell next to nothing, and this is getting no better.

        Those of a network that has only begun to learn tell little, too, and more with each epoch.
        """
        last, self._told = self._told, [*self._told[-1:], told]
        most = math.log(min(self.num_classes, self.settings.num_clusters))
        fell = last and told < _FALL * last[-1]
        stays = len(last) == 2 and told < _RISE * last[0]
        if told < _LEAST_SHARE * most and (fell or stays):
            logger.warning(
                "RIB at epoch %d: the clusters tell %.3f of %.3f nats about the identity, %.3f at "
                "the refresh before, so the loss has next to no gradient. The embeddings lie too "
                "close together for this beta: raise beta, start later (warmup_epochs), or look "
                "why they do",
                epoch,
                told,
                most,
                last[-1],
            )

    def _statistics(self) -> Optional[Statistics]:
        if self.centroids is None:
            return None
        return Statistics(*(getattr(self, name) for name in Statistics._fields))

    def _set_statistics(self, statistics: Optional[Statistics]) -> None:
        for name in Statistics._fields:
            setattr(self, name, None if statistics is None else getattr(statistics, name))
        self.half_norms = None
        if statistics is not None:
            self.half_norms = half_squared_norms(statistics.centroids)
            if statistics.log_q_index is None:  # a sparse row is short, and padding would show
                self.log_q = aligned_rows(statistics.log_q)

    def _reset(self) -> None:
        self._set_statistics(None)
        self._epoch, self._told = -1, []
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
        bank, older = (b.content() if b.filled else None for b in (self.bank, self.older))
        counts = (self._epoch, self.bank.seen, self._steps, self._epoch_steps)
        everything = state.State(*counts, statistics, bank, older)
        written = state.to_tensors(everything, self.num_classes)
        destination.update((prefix + name, value) for name, value in written.items())

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
        names = state.NAMES
        found = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        unexpected_keys.extend(
            key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in names
        )
        self._reset()
        if not found:
            logger.info("RIB statistics: none in the checkpoint, they start afresh: harmless")
            return
        try:
            loaded = state.from_tensors(
                found, self.settings, self.num_classes, self._bad_labels.device
            )
        except state.UnusableError as problem:
            logger.warning("RIB statistics of the checkpoint not loaded, %s", problem)
            return
        self._epoch, self._steps = loaded.epoch, loaded.steps
        self._epoch_steps = loaded.epoch_steps
        if loaded.statistics is not None:
            self._set_statistics(loaded.statistics)
        rows, kept_labels, inputs = loaded.bank or (None, None, None)
        self.bank.restore(rows, kept_labels, inputs, loaded.rows_seen, loaded.epoch)
        # Where one refresh an epoch is asked for it would be kept, and written, for ever.
        if loaded.older is not None and self.settings.refreshes > 1:
            self.older.restore(*loaded.older, len(loaded.older[0]), loaded.epoch - 1)
        self._size_may_change = True
        clusters = f"{self.settings.num_clusters} clusters"
        logger.info(
            "RIB statistics loaded: epoch %d, %s, %d embeddings in the bank",
            self._epoch,
            clusters if self.centroids is not None else "no clusters yet",
            self.bank.filled,
        )


for _name in declared(RIBSettings):
    # rib.beta is rib.settings.beta; to write one is an error, since it would change nothing.
    setattr(RIBLoss, _name, property(operator.attrgetter(f"settings.{_name}")))


def _check_cameras(cameras: Any, labels: Tensor) -> None:
    """Raises if cameras do not fit the labels; without waiting for a GPU."""
    if not isinstance(cameras, Tensor):
        raise TypeError(
            f"cameras must be a tensor or None, got a {type(cameras).__name__}; write "
            "torch.as_tensor(cameras)"
        )
    if cameras.dtype != torch.int64 or cameras.shape != labels.shape:
        raise ValueError(
            f"cameras must be {tuple(labels.shape)} int64, one for each label, got "
            f"{tuple(cameras.shape)} {cameras.dtype}; write cameras.long()"
        )
    if cameras.device != labels.device:
        raise ValueError(
            f"cameras must be on {labels.device} as the labels are, got {cameras.device}; write "
            "cameras.to(labels.device)"
        )
    if cameras.device.type != "cpu" or is_compiling():  # as labels are looked at
        return
    if min(cameras.tolist(), default=0) < 0:
        raise ValueError(f"cameras must be >= 0, got {int(cameras.min())}; number them from 0")


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
