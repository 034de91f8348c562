"""The temperature of DCS's mask falls as the epochs go by."""

from typing import Any


def follow_epochs(model: Any, max_epoch: int) -> None:
    """Lets the attentions of a model know how far the training has come, once an epoch.

    A hook on the model itself needs none in the trainer, and works with meta-architectures of
    other projects as well.

    Args:
        model: a meta-architecture.
        max_epoch: epochs of the training; the last one is at progress 1.
    """
    if any(hasattr(module, "set_progress") for module in model.modules()):
        model.attention_epoch, model.attention_epochs = -1, max_epoch
        model.register_forward_pre_hook(_anneal)


def _anneal(model: Any, args: Any) -> None:
    if not model.training:
        return
    from fastreid.utils.events import get_event_storage

    epoch = getattr(get_event_storage(), "epoch", None)  # PreciseBN's storage has none
    if epoch is None or epoch == model.attention_epoch:
        return
    model.attention_epoch = epoch
    progress = min(epoch / max(1, model.attention_epochs - 1), 1.0)
    for module in model.modules():
        # DCS passes it on to its mask, which is a module of this model as well.
        if hasattr(module, "set_progress"):
            module.set_progress(progress)
