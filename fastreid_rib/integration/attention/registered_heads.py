"""Heads with attention in front of their pooling, in FastReID's registry."""

from typing import Any

from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead

from fastreid_rib.integration import attention


class _AttentionHead(EmbeddingHead):
    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        attention.place_at_head(self, cfg)


@REID_HEADS_REGISTRY.register()
class DCSHead(_AttentionHead):
    """``EmbeddingHead`` that pools what DCS-Attention makes of the map.

    Another name for ``MODEL.ATTENTION.NAME DCS`` with ``PLACEMENT ("head",)``; the settings in
    ``MODEL.ATTENTION`` hold for it.
    """


@REID_HEADS_REGISTRY.register()
class ChannelAttentionHead(_AttentionHead):
    """``EmbeddingHead`` that pools what a channel attention makes of the map.

    Another name for ``MODEL.ATTENTION.NAME`` set to the one in ``MODEL.ATTENTION.CHANNEL``, with
    ``PLACEMENT ("head",)``.
    """
