"""FastReID's head with attention to the parts of its map: ``MODEL.HEADS.NAME: "PartHead"``.

It trains as FastReID's EmbeddingHead. Each evaluation by FastReID's trainer first fits the parts to
the training set, as :class:`fastreid_rib.attention.PartAttention` says, and a checkpoint that is
written after it holds them, as the last one does always. The next step of a training forgets them:
they are of other weights.
"""

import logging
from typing import Any, Callable, Dict, List, Optional

from fastreid.modeling.heads.build import REID_HEADS_REGISTRY
from fastreid.modeling.heads.embedding_head import EmbeddingHead
from torch import Tensor
from torch.utils.data import Subset

from fastreid_rib.attention import PartAttention
from fastreid_rib.attention.parts import has_parts
from fastreid_rib.base.kept import generators_kept
from fastreid_rib.base.patching import wrap
from fastreid_rib.integration.training_set import embed, training_pictures

logger = logging.getLogger(__name__)

_IMAGES = 512  # whose positions are clustered


@REID_HEADS_REGISTRY.register()
class PartHead(EmbeddingHead):
    """FastReID's head, which gives (B, (1 + K) d) in evaluation once its parts are fitted.

    Until then it gives what FastReID's head does.

    Raises:
        ValueError: the config has a neck with fewer dimensions, or MGN.
    """

    def __init__(self, cfg: Any) -> None:
        if cfg.MODEL.META_ARCHITECTURE == "MGN":
            raise ValueError(
                "MODEL.HEADS.NAME PartHead needs a network of one head, and MGN has several. Write "
                "EmbeddingHead."
            )
        if cfg.MODEL.HEADS.EMBEDDING_DIM:
            raise ValueError(
                "MODEL.HEADS.NAME PartHead projects the parts by itself, and MODEL.HEADS."
                f"EMBEDDING_DIM is {cfg.MODEL.HEADS.EMBEDDING_DIM}. Write 0, or EmbeddingHead."
            )
        super().__init__(cfg)
        self.parts = PartAttention()

    def forward(self, features: Tensor, targets: Optional[Tensor] = None) -> Any:
        """As FastReID's head; in evaluation the parts' embeddings.

        Args:
            features: (B, C, H, W).
            targets: (B,), int64, in training.
        """
        if self.training:
            if not has_parts(features):
                raise ValueError(
                    "MODEL.HEADS.NAME PartHead attends to the parts of a map (B, C, H, W), and "
                    f"this backbone gives {tuple(features.shape)}, one position. Write "
                    "EmbeddingHead."
                )
            self.parts.forget()
        elif self.parts.fitted:
            return self.parts(features, self.pool_layer(features).flatten(1))
        return super().forward(features, targets)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not any(key.startswith(prefix + "parts.") for key in state_dict):
            logger.info(
                "PartHead: the checkpoint has no parts. An evaluation by FastReID's trainer fits "
                "them; until then the head gives the vector after its neck"
            )


def fit(cfg: Any, model: Any) -> None:
    """Fits the parts of a model's PartHead to its training set, if they are not fitted.

    With several ranks it calls collectives: each embeds its share of the pictures.

    Args:
        cfg: of the model; DATASETS.NAMES is what it was trained on.
        model: on its device. Its modes, and all random generators, are as before afterwards.

    Raises:
        ValueError: the model has several heads, or they cannot be fitted to this training set.
    """
    model = getattr(model, "module", model)  # of DistributedDataParallel, whose ranks go in step
    heads = [module for module in model.modules() if isinstance(module, PartHead)]
    if not heads or heads[0].parts.fitted:
        return
    if len(heads) > 1:
        raise ValueError(
            f"MODEL.HEADS.NAME PartHead needs a network of one head, and {type(model).__name__} "
            f"has {len(heads)}. Write EmbeddingHead."
        )
    (head,) = heads

    def pooled(features: Tensor) -> Tensor:
        return head.parts.pool(features, head.pool_layer(features).flatten(1))

    names = ", ".join(cfg.DATASETS.NAMES)
    logger.info(f"PartHead: fits its parts to the training set, DATASETS.NAMES {names}")
    with generators_kept():
        data = training_pictures(cfg)
        some = Subset(data, range(0, len(data), max(1, len(data) // _IMAGES)))
        try:
            head.parts.find_parts(embed(model, head, lambda features: features, some, cfg)[0])
            vectors, labels = embed(model, head, pooled, data, cfg)
            head.parts.fit(vectors, labels)
        except ValueError as error:
            raise ValueError(
                f"MODEL.HEADS.NAME PartHead cannot be fitted to DATASETS.NAMES {names}: {error}. "
                "Write EmbeddingHead."
            ) from error
    logger.info(f"PartHead: the parts are fitted to {len(labels)} pictures")


def extend_trainer(defaults: Any) -> None:
    """Lets FastReID's trainer fit the parts before it evaluates, and before its last checkpoint."""

    def test(stock: Callable[..., Dict[str, Any]], cls: Any, cfg: Any, model: Any) -> Any:
        fit(cfg, model)
        return stock(cls, cfg, model)

    def fit_at_the_end(trainer: Any) -> None:
        if trainer.epoch + 1 >= trainer.max_epoch:
            fit(trainer.cfg, trainer.model)

    def build_hooks(stock: Callable[..., List[Any]], self: Any) -> List[Any]:
        hooks = stock(self)
        writes = [isinstance(hook, defaults.hooks.PeriodicCheckpointer) for hook in hooks]
        place = writes.index(True) if any(writes) else len(hooks)  # of rank 0, of others
        hooks.insert(place, defaults.hooks.CallbackHook(after_epoch=fit_at_the_end))
        return hooks

    wrap(defaults.DefaultTrainer, "test", test)
    wrap(defaults.DefaultTrainer, "build_hooks", build_hooks)
