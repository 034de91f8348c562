"""Names in FastReID's registry of heads for attention at the head."""

from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead


@REID_HEADS_REGISTRY.register()
class DCSHead(EmbeddingHead):
    """``EmbeddingHead`` that pools what DCS-Attention makes of the map.

    Another name for ``MODEL.ATTENTION.NAME DCS`` with ``PLACEMENT ("head",)``; the settings in
    ``MODEL.ATTENTION`` hold for it, and ``build_heads`` puts the attention there.
    """


@REID_HEADS_REGISTRY.register()
class ChannelAttentionHead(EmbeddingHead):
    """``EmbeddingHead`` that pools what a channel attention makes of the map.

    Another name for ``MODEL.ATTENTION.NAME`` set to the one in ``MODEL.ATTENTION.CHANNEL``, with
    ``PLACEMENT ("head",)``; ``build_heads`` puts it there.
    """
