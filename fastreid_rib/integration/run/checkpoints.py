"""RIB's statistics in FastReID's checkpoints, and what is said when a part of ours does not fit.

They stand under a key of their own, "rib", beside "model"; until 0.2 they stood in "model". They
load or start afresh by themselves (``RIBLoss``), so what FastReID would say of their keys one by
one is left to one line that says whether it matters.
"""

import logging
from typing import Any, Callable, Iterator, List, Sequence, Tuple

from fastreid_rib.base.patching import wrap
from fastreid_rib.losses import RIBLoss

logger = logging.getLogger(__name__)

KEY = "rib"
"""Of a checkpoint: RIB's statistics, by the names that they would have in the model."""


def extend_checkpointer(checkpoint: Any) -> None:
    """Saves and loads RIB's statistics, and puts what matters of our keys into one line each."""

    def log(stock: Callable[..., None], self: Any, incompatible: Any) -> None:
        missing, new = _split(incompatible.missing_keys, is_attention)
        unexpected, left = _split(incompatible.unexpected_keys, is_attention)
        unexpected, statistics = _split(unexpected, is_rib)
        if statistics:
            logger.info(
                "RIB statistics in the checkpoint (%d tensors) skipped, as this model has no RIB: "
                "harmless, the network is complete without them.",
                len(statistics),
            )
        left += [key for key, *_ in incompatible.incorrect_shapes if is_attention(key)]
        if new and not left:
            logger.info(
                "Attention is new to this checkpoint (%d parameters) and starts untrained: "
                "harmless, the rest of the network is as in the checkpoint.",
                len(new),
            )
        if left:
            logger.warning(
                "Attention in the checkpoint (%d parameters) skipped, as MODEL.ATTENTION asks for "
                "none or for another. Not harmless: the network was trained with it, write the "
                "MODEL.ATTENTION of its config.yaml. If a key of it is gone, use the version that "
                "trained it.",
                len(left),
            )
        stock(self, incompatible._replace(missing_keys=missing, unexpected_keys=unexpected))

    def load(stock: Callable[..., Any], self: Any, checkpoint: Any) -> Any:
        checkpoint["model"].update(checkpoint.pop(KEY, {}))
        if not any(map(is_rib, checkpoint["model"])):
            for _, loss in _losses(self.model):
                loss.load_state_dict({})
        return stock(self, checkpoint)

    def save(stock: Callable[..., None], self: Any, name: str, **kwargs: Any) -> None:
        if self.save_dir and self.save_to_disk:
            held = {
                f"{place}.{key}": value
                for place, loss in _losses(self.model)
                for key, value in loss.state_dict().items()
            }
            if held:
                kwargs[KEY] = held
        stock(self, name, **kwargs)

    wrap(checkpoint.Checkpointer, "save", save)
    wrap(checkpoint.Checkpointer, "_load_model", load)
    wrap(checkpoint.Checkpointer, "_log_incompatible_keys", log)


def is_rib(key: str) -> bool:
    """Whether a key of a state_dict belongs to RIB's statistics."""
    return key.startswith(("rib.", "module.rib."))


def is_attention(key: str) -> bool:
    """Whether a key of a state_dict belongs to an attention that this plugin put there."""
    return "attention" in key.split(".")


def _losses(model: Any) -> Iterator[Tuple[str, RIBLoss]]:
    return ((name, part) for name, part in model.named_modules() if isinstance(part, RIBLoss))


def _split(keys: Sequence[str], ours: Callable[[str], bool]) -> Tuple[List[str], List[str]]:
    """The other keys, and those that are ours."""
    return [key for key in keys if not ours(key)], [key for key in keys if ours(key)]
