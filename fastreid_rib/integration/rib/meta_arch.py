"""RIB in FastReID's meta-architectures.

FastReID has no registry of losses: each meta-architecture holds a chain of ``if`` over the names it
knows. So a meta-architecture is subclassed, as its registry hands it out, when its config names
RIB; its own ``losses`` runs first, and RIB is added to what it returns. A config that does not name
RIB gets FastReID's own class.
"""

import logging
from typing import Any, Dict, Optional

import torch

from fastreid_rib.base.ranks import rank_and_size
from fastreid_rib.integration import config
from fastreid_rib.integration.rib.embedding import add_camera_noise, embedding_and_labels
from fastreid_rib.losses import RIBLoss
from fastreid_rib.ops import backends

logger = logging.getLogger(__name__)


def with_rib(architecture: Any) -> type:
    """The subclass of a meta-architecture that adds RIB to its losses, under the same name.

    Raises:
        TypeError: it has no ``losses`` to add RIB to.
    """
    if not (isinstance(architecture, type) and hasattr(architecture, "losses")):
        raise TypeError(_how_to_add(getattr(architecture, "__name__", repr(architecture))))
    stock: Any = architecture
    if "_with_rib" not in vars(stock):  # one for all its models, which goes with it
        body = {
            "__module__": architecture.__module__,
            "__doc__": architecture.__doc__,
            "rib_architecture": architecture,
        }
        stock._with_rib = type(architecture.__name__, (_AddsRIB, architecture), body)
    return stock._with_rib


def _without_state(architecture: type) -> Any:
    """What pickle fills with the state of a model: found by the architecture's own name."""
    kind: Any = with_rib(architecture)
    return kind.__new__(kind)


class _AddsRIB(torch.nn.Module):
    """Mixin over a meta-architecture; ``rib`` holds the statistics."""

    rib_architecture: type

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        rib = cfg.MODEL.LOSSES.RIB
        self.rib_scale: float = rib.SCALE
        self.rib: Optional[RIBLoss] = None
        if cfg.MODEL.HEADS.NUM_CLASSES > 0:  # 0 in an evaluation that was not told
            # What is wrong with a backend that was asked for shows here, not at the first step.
            backends.choose(rib.BACKEND, torch.device(cfg.MODEL.DEVICE))
            self.rib = RIBLoss(cfg.MODEL.HEADS.NUM_CLASSES, config.rib_settings(cfg))
            if self.rib.settings.camera_noise:
                self._add_camera_noise(cfg, self.rib)
        self._rib_cameras: Any = None

    def _add_camera_noise(self, cfg: Any, rib: RIBLoss) -> None:
        head: Any = getattr(self, "heads", None)
        given = cfg.MODEL.HEADS.NECK_FEAT == "before" and not config.rib_before_attention(cfg)
        if given and isinstance(getattr(head, "bottleneck", None), torch.nn.Module):
            add_camera_noise(head, rib)
        else:
            logger.info(
                "RIB: no camera noise (MODEL.LOSSES.RIB.CAMERA_NOISE), since it needs one head "
                "whose neck gets RIB's embedding"
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle, ``torch.save`` and copies: the class is made at run time and has no address."""
        state = {**self.__dict__, "_rib_cameras": None}  # of a step only: copies do without them
        return _without_state, (self.rib_architecture,), state

    def forward(self, batched_inputs: Any) -> Any:
        """As the architecture does; a training step that RIB did not reach is an error."""
        if self.training and isinstance(batched_inputs, dict):
            self._rib_cameras = batched_inputs.get("camids")
        if self.training and torch.is_grad_enabled() and self.rib is not None:
            self._follow_epoch(self.rib)  # first: the neck's camera noise is of its statistics
        outputs = super().forward(batched_inputs)
        if self.training and not (isinstance(outputs, dict) and "loss_rib" in outputs):
            raise RuntimeError(_how_to_add(type(self).__name__))
        return outputs

    def losses(self, *args: Any) -> Dict[str, torch.Tensor]:
        """The architecture's own losses, and ``loss_rib`` = SCALE times the bound in nats."""
        loss_dict = super().losses(*args)  # type: ignore[misc]
        found = embedding_and_labels(args)
        if found is None:
            return loss_dict
        embeddings, labels = found
        if not torch.is_grad_enabled():
            # PreciseBN: another data set's images and labels, and nothing is trained.
            loss_dict["loss_rib"] = embeddings.new_zeros((), dtype=torch.float32)
            return loss_dict
        if self.rib is None:
            raise ValueError(
                "RIB trains against identities, but MODEL.HEADS.NUM_CLASSES is 0: write their "
                "number (FastReID's DefaultTrainer does so by itself)."
            )
        cameras, self._rib_cameras = _cameras_of(self._rib_cameras, labels), None
        loss_dict["loss_rib"] = self.rib(embeddings, labels, cameras=cameras) * self.rib_scale
        return loss_dict

    @staticmethod
    def _follow_epoch(rib: RIBLoss) -> None:
        """Refreshes the statistics when FastReID's trainer has begun another epoch."""
        from fastreid.utils.events import get_event_storage

        storage = get_event_storage()
        epoch = getattr(storage, "epoch", None)
        if epoch is None:
            if rib.epoch < 0:
                raise RuntimeError(
                    "RIB refreshes its statistics once an epoch, but the training loop does not "
                    "tell the epoch. Set `get_event_storage().epoch = epoch` at the start of each "
                    "epoch (FastReID's trainers do), or call `model.rib.start_epoch(epoch)`."
                )
            return
        report = rib.start_epoch(epoch)
        for name, value in report.items():
            storage.put_scalar("rib/" + name, value, smoothing_hint=False)
        if report and rank_and_size()[0] == 0:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in report.items())
            logger.info("RIB refreshed for epoch %d (nats): %s", epoch, numbers)


def _cameras_of(cameras: Any, labels: torch.Tensor) -> Optional[torch.Tensor]:
    """A batch's cameras beside its labels; None: no numbers, or it was put together anew."""
    if not isinstance(cameras, torch.Tensor) or cameras.is_floating_point():
        return None
    if cameras.shape != labels.shape:
        return None
    return cameras.to(labels.device, torch.int64, non_blocking=True)


def _how_to_add(architecture: str) -> str:
    return (
        f"MODEL.LOSSES.NAME names RIB, but the meta-architecture {architecture} never gives it "
        "an embedding. Its training step must call `self.losses(outputs, targets)`, with outputs "
        "a dict that holds 'features' (batch, dim) and targets the identities (batch,), and return "
        "the dict of losses that comes back. Write it so, or take RIB out of MODEL.LOSSES.NAME and "
        "add `fastreid_rib.RIBLoss` to its losses by hand."
    )
