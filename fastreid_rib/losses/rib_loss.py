"""RIB with its statistics, as a module: Wang, Jojic, Yang, arXiv 2505.08961.

Legend: n images of a batch, D dimensions, C identities.
"""

import dataclasses
import logging
import math
import operator
import random
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor, nn

from fastreid_rib.losses import statistics as state
from fastreid_rib.losses.functional import check_batch, checked_rib_loss
from fastreid_rib.losses.noise import add_noise
from fastreid_rib.losses.refresh import refresh, warn_of_collapse
from fastreid_rib.losses.reservoir import Reservoir
from fastreid_rib.losses.statistics import Statistics
from fastreid_rib.losses.table import Rows, row_of
from fastreid_rib.ops import Objective
from fastreid_rib.ops.modes import Repeats, uncompiled
from fastreid_rib.settings.declaration import check_settings, declared
from fastreid_rib.settings.rib import RIBSettings

logger = logging.getLogger(__name__)


class RIBLoss(nn.Module):
    """RIB with its statistics: gathers embeddings, clusters them once an epoch, gives the loss.

    ::

        rib = RIBLoss(num_classes=751)
        for epoch in range(epochs):
            rib.start_epoch(epoch)
            for images, labels, cameras in loader:
                features = model(images)
                logits = classifier(rib.add_camera_noise(features))
                loss = cross_entropy(logits, labels) + rib(features, labels, cameras)

    RIB starts at epoch ``max(1, warmup_epochs)``; until then the loss is 0, since there is nothing
    to compare with. In training mode, with gradients enabled, each step's L2-normalised embeddings
    enter a reservoir (float16), those of all ranks if ``torch.distributed`` is initialised. All
    ranks must then call in step; their batches may differ in size, and a rank without images calls
    with (0, D). The ranks tell each other their sizes from host to host, and no GPU is waited for.
    From the reservoir of an epoch, ``start_epoch`` of the next makes the centroids and Q(a|y); it
    begins anew every epoch.

    The loss is the mean over a rank's own images, as FastReID's losses are. DistributedDataParallel
    averages over ranks, so with batches of different sizes an image of a small one weighs more.

    The statistics are no part of a model that holds RIB: neither its buffers nor its ``state_dict``
    have them, so averages of its weights leave them alone. A run that is to resume saves and loads
    both. It then gets bit for bit what an uninterrupted run gets; without ``rib.state_dict()`` RIB
    pauses for an epoch, and the log says so::

        torch.save({"model": model.state_dict(), "rib": rib.state_dict()}, path)

    ``torch.compile`` leaves RIB as it is. Of a step that activation checkpointing runs twice, the
    embeddings enter the reservoir once.

    Args:
        num_classes: number of identities C, >= 1.
        settings: what :class:`fastreid_rib.settings.RIBSettings` declares; None: the defaults.
        **changes: single settings in place of those, by their names.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: there is no such setting.
    """

    def __init__(
        self, num_classes: int, settings: Optional[RIBSettings] = None, **changes: Any
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, the identities, got {num_classes}")
        check_settings("RIBLoss", changes, declared(RIBSettings), RIBSettings.gone)
        settings = dataclasses.replace(settings or RIBSettings(), **changes)
        self.num_classes = num_classes
        self.settings = settings.of_identities(num_classes)
        """All of them, with the numbers that 0 stands for. Annealing one is replacing these, except
        num_clusters, bank_size and seed, which stay as they were."""
        self.bank = Reservoir(settings.bank_size, settings.seed)
        self.statistics: Optional[Statistics] = None
        """From the first refresh on."""
        self.epoch = -1
        """That was last started; -1 before the first."""
        self._told: List[float] = []  # about the identity, by each refresh, in nats
        self._size_may_change = False
        self._repeats = Repeats()
        self._here = torch.empty(0)  # tells on which device this module lives

    @property
    def active(self) -> bool:
        """Whether the loss is in force: RIB's first epoch has come and statistics exist."""
        return self.statistics is not None and self.epoch >= self.settings.first_epoch

    @uncompiled  # the counts of what is gathered, and the epoch, would compile it anew
    def forward(
        self, embeddings: Tensor, labels: Tensor, cameras: Optional[Tensor] = None
    ) -> Tensor:
        """The loss of a batch, and, in training, its embeddings into the reservoir.

        Args:
            embeddings: (n, D), any floating dtype, not normalised. Rows that are not finite never
                enter the statistics.
            labels: (n,), int64, < num_classes; images with a negative label are ignored.
            cameras: (n,), int64, >= 0: which camera took each image. With them, and
                ``cross_camera``, an image is compared with what other cameras saw of its identity.

        Returns:
            Scalar, float32 (float64 for float64 embeddings), nats, unscaled; with the marginal of
            the clusters below zero where identities are told apart, on average at least minus
            their entropy. Before RIB starts a zero that is connected to the graph, also if the
            embeddings are not finite.

        Raises:
            TypeError: an argument is no tensor.
            ValueError: a shape or dtype does not fit, or (on the CPU) a label is >= num_classes. On
                a GPU such an image is ignored, and the next ``start_epoch`` raises.
        """
        check_batch(embeddings, labels, self.num_classes, cameras)
        if not self.settings.cross_camera:
            cameras = None
        if self._here.device != embeddings.device:
            self.to(embeddings.device)
        self._check_size(embeddings.shape[1])
        if self.training and self._repeats.is_first_run():
            if self.epoch < 0 and not self.bank.seen:
                logger.warning(
                    "RIB is off until start_epoch(epoch) is called; call it at the start of each "
                    "epoch"
                )
            self.bank.gather(embeddings.detach(), labels, cameras)
        statistics = self.statistics if self.active else None
        if statistics is None:
            zero = embeddings[:0].sum()
            return zero if zero.dtype == torch.float64 else zero.float()
        if statistics.camera_rows is not None and statistics.cameras is not None:
            # Without cameras in this batch: those of the identities.
            seen = torch.full_like(labels, -1) if cameras is None else cameras
            labels = row_of(labels, seen, statistics.camera_rows, statistics.cameras)
        of = self.settings
        objective = Objective(of.beta, of.gamma * statistics.compression, of.form, of.backend)
        return checked_rib_loss(embeddings, labels, statistics.clusters, objective, statistics.mean)

    @uncompiled
    def add_camera_noise(self, embeddings: Tensor) -> Tensor:
        """Embeddings as other cameras might have given them: what the classifier is to train on.

        In training, to each the difference of two embeddings of one identity from two cameras is
        added, drawn from the last epoch's by torch's generator. The classifier then cannot rely on
        what cameras change. With u, v the two, L2-normalised, it is in plain PyTorch::

            share = camera_noise * (1 - gamma of the report / settings.gamma)
            embeddings + share * embeddings.detach().norm(dim=1, keepdim=True) * (u - v)

        The idea is that of ISDA (Wang et al. 2019), whose noise has the covariance of each class;
        that it is between cameras, and its share, is ours. Give RIB itself the embeddings without
        it.

        Args:
            embeddings: (n, D), floating point.

        Returns:
            (n, D); the embeddings themselves in evaluation, without gradients, before RIB starts,
            and where no cameras are known.
        """
        statistics = self.statistics if self.training and self.active else None
        if statistics is None or statistics.differences is None or not torch.is_grad_enabled():
            return embeddings
        share = self.settings.camera_noise * (1 - statistics.compression)
        return add_noise(embeddings, statistics.differences, share) if share > 0 else embeddings

    def start_epoch(self, epoch: int) -> Dict[str, float]:
        """Begins an epoch: new centroids and Q from what the last one gathered, if RIB is due.

        Call it on every rank before the first step of each epoch; again for the same epoch it does
        nothing. With several ranks it calls collectives.

        Args:
            epoch: >= 0, counted from 0.

        Returns:
            Report of the refresh in nats, empty if there was none: "mutual_information" I(F~;Y),
            "klb", "bound" (what the loss minimises) and, of the form "clusters", "slack": how far
            it lies above ``gamma I(F~;i) - I(F~;Y)``, >= 0 except for rounding; identities that the
            epoch lacked, and that count in the marginal all the same, are allowed for. With cameras
            there is none. "gamma" is what multiplied the compression there: ``settings.gamma``
            times the odds of "error" over those of "error_across", at most 1. The first is the
            share of the images that lie nearer to the mean of another identity than to that of
            their own identity's other images. The second is the same without those of their own
            camera. Without cameras it is not in the report, and ``settings.gamma`` is multiplied by
            "error".

        Raises:
            ValueError: ``epoch`` is negative, or a step had labels >= num_classes.
        """
        epoch = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        if epoch == self.epoch:  # before anything that would wait for a GPU: asked at every step
            return {}
        if self.bank.largest_label() >= self.num_classes:
            raise ValueError(
                f"labels must be < num_classes = {self.num_classes}, but a step since the last "
                "epoch had larger ones; set num_classes to the number of identities"
            )
        report: Dict[str, float] = {}
        due = epoch >= self.settings.first_epoch
        if due and self.bank.filled:
            report = self._refresh(epoch)
        elif due and self.epoch < 0:
            logger.warning(
                "RIB begins at epoch %d without statistics: it pauses for this epoch. A run that "
                "resumes saves rib.state_dict() beside the model's, and loads it",
                epoch,
            )
        self.epoch = epoch
        self.bank.begin(epoch)
        return report

    def extra_repr(self) -> str:
        """Settings, as ``print`` shows them."""
        values = ((name, getattr(self.settings, name)) for name in declared(RIBSettings))
        return f"num_classes={self.num_classes}" + "".join(f", {n}={v!r}" for n, v in values)

    @torch.inference_mode(False)  # what is made here takes part in graphs
    @torch.no_grad()
    def _refresh(self, epoch: int) -> Dict[str, float]:
        rows, both = self.bank.content()
        usable = both[:, 0] >= 0
        if not usable.any():
            logger.warning("RIB: no usable embedding came before epoch %d; no refresh", epoch)
            return {}
        labels, cameras = both[usable].t().contiguous()
        self.statistics, report = refresh(
            Rows(rows[usable], labels, cameras if self.settings.cross_camera else None),
            self.statistics,
            self.settings,
            self.num_classes,
            random.Random(f"{self.settings.seed}/{epoch}/{self.bank.seen}/refresh"),
        )
        most = math.log(min(self.num_classes, self.settings.num_clusters))
        self._told = [*self._told[-2:], report["mutual_information"]]
        warn_of_collapse(self._told, most, epoch)
        return report

    @torch.inference_mode(False)
    @torch.no_grad()
    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "RIBLoss":
        super()._apply(fn, *args, **kwargs)
        self._here = fn(self._here)

        def move(tensor: Tensor) -> Tensor:  # with its precision, whatever the model's becomes
            return tensor.to(self._here.device)

        self.bank.apply(move)
        if self.statistics is not None:
            self.statistics = self.statistics.moved(move)
        return self

    def _reset(self, epoch: int = -1) -> None:
        self.statistics, self.epoch, self._told = None, epoch, []
        self.bank.begin(epoch)

    def _check_size(self, size: int) -> None:
        held = self.bank.rows if self.statistics is None else self.statistics.centroids
        if held is not None and held.shape[1] != size:
            if not self._size_may_change:
                raise ValueError(
                    f"embeddings must be (n, {held.shape[1]}) as before, got (n, {size}); make "
                    "another RIBLoss for another embedding"
                )
            self._reset(self.epoch)
            logger.warning(
                f"RIB statistics of the checkpoint are for embeddings of size {held.shape[1]}, the "
                f"model's have {size}: they start afresh"
            )
        self._size_may_change = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if prefix or (self.statistics is None and not self.bank.seen):
            return  # a part of a model, or nothing there
        bank = self.bank.content() if self.bank.filled else None
        destination.update(state.to_tensors((self.epoch, self.bank.seen, self.statistics, bank)))

    @torch.inference_mode(False)
    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        own = {key[len(prefix) :]: v for key, v in state_dict.items() if key.startswith(prefix)}
        found = {name: own[name] for name in state.NAMES if name in own}
        rest[3].extend(prefix + name for name in own if name not in found)  # unexpected keys
        if prefix and not found:
            return  # a model's own weights
        self._reset()
        if not found:
            logger.info("RIB statistics: none in the checkpoint, they start afresh: harmless")
            return
        try:
            loaded = state.from_tensors(found, self.settings, self.num_classes, self._here.device)
        except state.UnusableError as problem:
            logger.warning(
                "RIB statistics of the checkpoint not loaded, %s: they start afresh", problem
            )
            return
        self.epoch, seen, self.statistics, bank = loaded
        self.bank.begin(self.epoch, seen, bank)
        self._size_may_change = True
        gone = ", ".join(name for name in state.GONE if name in found)
        logger.info(
            "RIB statistics loaded: epoch %d, %s, %d embeddings in the bank%s",
            self.epoch,
            f"{self.settings.num_clusters if self.statistics else 'no'} clusters",
            self.bank.filled,
            gone and f"; of settings that are gone, and not used: {gone}",
        )


for _name in declared(RIBSettings):
    # rib.beta is rib.settings.beta; to write one is an error, since it would change nothing.
    setattr(RIBLoss, _name, property(operator.attrgetter(f"settings.{_name}")))
