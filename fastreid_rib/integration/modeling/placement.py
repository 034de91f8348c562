"""Attention in FastReID's models: where it is put, without changing a key of stock checkpoints.

An attention is a submodule, called ``attention``, of what it stands behind (the last block of a
stage), in front of (a head) or inside (a transformer block's projection to queries and keys). So
it is a parameter of the model before the optimizer is made, is copied with its block, and whoever
takes a backbone apart takes it along. What calls it is a forward hook that is a plain function of
the module it hangs on: a closure would call the original's attention from a copy.
"""

import logging
import re
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from fastreid_rib.attention import ATTENTIONS, DCSMask, build_attention
from fastreid_rib.base.patching import wrap
from fastreid_rib.integration import config
from fastreid_rib.integration.engine import learning_rate
from fastreid_rib.integration.modeling import embedding

logger = logging.getLogger(__name__)

HEAD = "head"
"""The place in front of a head, on the map that it pools."""

BLOCKS = "blocks"
"""The place inside the blocks of a vision transformer."""

_MASK_SETTINGS = ("temperature", "final_temperature", "mask_bias", "rank", "groups")
_STAGE_NAMES = re.compile(r"(layer|stage|conv|s)[1-9]")
# Large enough that every stage has a size of its own, and small enough to cost nothing.
_PROBE_SIZE = (64, 64)

# MGN keeps the stages of a ResNet-50 or 101 in these modules, three copies of the last two. In
# front of the heads of a branch is behind the branch: channels, and the modules of each place.
_MGN_PLACES: Dict[str, Tuple[int, Tuple[str, ...]]] = {
    "layer1": (256, ("backbone.4",)),
    "layer2": (512, ("backbone.5",)),
    "layer3": (1024, ("b1.0", "b2.0", "b3.0")),
    "layer4": (2048, ("b1.1", "b2.1", "b3.1")),
    HEAD: (2048, ("b1", "b2", "b3")),
}


class Stage(NamedTuple):
    """Where a stage of a backbone ends.

    Attributes:
        block: its last block.
        channels: of the map that the block gives.
    """

    block: nn.Module
    channels: int


def extend_backbones(build: Any) -> None:
    """Lets ``build_backbone`` put attention behind the stages that the config names.

    Args:
        build: the module ``fastreid.modeling.backbones.build``.
    """

    def build_backbone(stock: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
        backbone = stock(cfg)
        attention = config.attention(cfg)
        if attention is not None:
            place_in_backbone(backbone, attention, torch.device(cfg.MODEL.DEVICE))
        return backbone

    wrap(build, "build_backbone", build_backbone)


def extend_heads(build: Any) -> None:
    """Lets ``build_heads`` put attention in front of the pooling if the config says so.

    Args:
        build: the module ``fastreid.modeling.heads.build``.
    """

    def build_heads(stock: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
        head = stock(cfg)
        # DCSHead and ChannelAttentionHead have theirs already.
        if cfg.MODEL.HEADS.NAME not in config.ATTENTION_HEADS:
            place_at_head(head, cfg)
        if config.rib_behind_neck(cfg):
            embedding.keep_neck(head)
        return head

    wrap(build, "build_heads", build_heads)


def build_with_attention(architecture: Callable[[Any], nn.Module], cfg: Any) -> nn.Module:
    """Builds a meta-architecture with the attention that its config asks for.

    Args:
        architecture: a class, or a function of the config.
        cfg: a FastReID config.

    Returns:
        ``architecture(cfg)`` with attention in it, whose temperature follows the epochs.

    Raises:
        ValueError: a place that the backbone does not have, or an architecture that left out an
            attention that it was given.
    """
    attention = config.attention(cfg)
    if attention is None:
        return architecture(cfg)
    from fastreid.modeling.meta_arch.mgn import MGN

    if isinstance(architecture, type) and issubclass(architecture, MGN):
        if HEAD in attention.placement and config.rib_before_attention(cfg):
            raise ValueError(
                "MODEL.LOSSES.RIB.EMBEDDING is 'before', but in MGN the attention at the head is "
                "behind each branch, whose map several heads cut up. Write 'after'."
            )
        # It copies stages and loads one into another while it is built.
        model = architecture(config.without_attention(cfg))
        _place_in_branches(model, attention)
    else:
        model = architecture(cfg)
    places = [
        name
        for name, module in model.named_modules()
        if name.split(".")[-1] == "attention"
        and isinstance(module, (ATTENTIONS[attention.name], DCSMask))
    ]
    if len(places) < len(attention.placement):
        raise ValueError(
            f"MODEL.ATTENTION.PLACEMENT is {attention.placement}, but the meta-architecture "
            f"{type(model).__name__} holds attention at {places or 'no place'} only: it does not "
            "use all of the backbone and of the head that it builds, or builds them by itself "
            "instead of by `build_backbone` and `build_heads`."
        )
    logger.info("Attention %s: %s", attention.name, ", ".join(places))
    follow_epochs(model, cfg.SOLVER.MAX_EPOCH)
    return model


def place_in_backbone(
    backbone: nn.Module, attention: config.Attention, device: torch.device
) -> None:
    """Puts attention behind stages of a backbone, or into the blocks of a vision transformer.

    Args:
        backbone: what FastReID built, with pretrained weights if any.
        attention: what the config asks for; "head" in its placement is left to the head.
        device: where it is going to run, and is tried out: syncBN knows GPUs only.

    Raises:
        ValueError: a place that this backbone does not have; the message lists those it has.
    """
    projections = _query_key_projections(backbone)
    if projections:
        _check_tokens(backbone, attention)
        with _aside():
            for projection in projections:
                mask = _build(attention, projection.in_features, BLOCKS)
                projection.add_module("attention", mask)
                projection.register_forward_hook(_mask_queries_and_keys)
        return
    wanted = [place for place in attention.placement if place != HEAD]
    if not wanted:
        return
    stages = find_stages(backbone, device)
    for place in wanted:
        if place not in stages:
            raise ValueError(_no_such_place(place, type(backbone).__name__, [HEAD, *stages]))
    with _aside():
        for place in wanted:
            stage = stages[place]
            place_behind(stage.block, _build(attention, stage.channels, place))


def place_at_head(head: nn.Module, cfg: Any) -> None:
    """Puts attention in front of a head, on the map that it pools, if the config says so.

    Args:
        head: called with the map (B, C, H, W) as its first positional argument.
        cfg: a FastReID config.

    Raises:
        ValueError: RIB is to take its embedding in front of the attention, and cannot.
    """
    attention = config.attention(cfg)
    if attention is None or HEAD not in attention.placement:
        return
    with _aside():
        module = _build(attention, cfg.MODEL.BACKBONE.FEAT_DIM, HEAD)
    if config.rib_before_attention(cfg):
        embedding.keep_pooled(head)
    head.add_module("attention", module)
    head.register_forward_pre_hook(_attend_first)


def place_behind(module: nn.Module, attention: nn.Module) -> None:
    """Makes an attention the last thing that a module does.

    Args:
        module: gives a map (B, C, H, W).
        attention: of the same channels; becomes the submodule ``attention`` of ``module``.
    """
    module.add_module("attention", attention)
    if not isinstance(module, nn.Sequential):  # which calls its new last child by itself
        module.register_forward_hook(_attend_last)


def find_stages(backbone: nn.Module, device: torch.device) -> Dict[str, Stage]:
    """The stages of a backbone that maps images to maps, in order.

    Children that run blocks one after the other and are called layer1, s1, stage1, conv2 and so on
    are stages under these names (ResNet, ResNeXt, ResNeSt; RegNet, EfficientNet; RepVGG; OSNet).
    MobileNet and ShuffleNet have all blocks in ``features``: there the blocks that give maps of one
    size are a stage, called stage1, stage2 and so on.

    Args:
        backbone: called with images (B, 3, H, W). Evaluated once on a small black image.
        device: where; the backbone is brought back afterwards.

    Returns:
        Names and ends of the stages; none if there is neither.
    """
    ends = {
        name: list(child.children())[-1]
        for name, child in backbone.named_children()
        if _STAGE_NAMES.fullmatch(name) and _runs_blocks(child)
    }
    flat: List[nn.Module] = []
    features = getattr(backbone, "features", None)
    if not ends and isinstance(features, nn.Sequential) and _runs_blocks(features):
        flat = list(features)
    if not ends and not flat:
        return {}
    shapes = _output_shapes(backbone, [*ends.values(), *flat], device)
    sizes = [shapes[block][2:] for block in flat] + [torch.Size()]
    last_of_size = [block for i, block in enumerate(flat) if sizes[i] != sizes[i + 1]]
    ends.update((f"stage{i}", block) for i, block in enumerate(last_of_size, start=1))
    return {name: Stage(block, shapes[block][1]) for name, block in ends.items()}


def follow_epochs(model: Any, max_epoch: int) -> None:
    """Lets the attentions of a model know how far the training has come, once an epoch.

    The temperature of DCS's mask falls with it. A hook on the model itself, because that needs no
    hook in the trainer, and works with meta-architectures of other projects as well.

    Args:
        model: a meta-architecture.
        max_epoch: epochs of the training; the last one is at progress 1.
    """
    if any(hasattr(module, "set_progress") for module in model.modules()):
        model.attention_epoch, model.attention_epochs = -1, max_epoch
        model.register_forward_pre_hook(_anneal)


def _place_in_branches(model: nn.Module, attention: config.Attention) -> None:
    """Puts attention into a built MGN: one a branch, where a branch has modules of its own."""
    for place in attention.placement:
        if place not in _MGN_PLACES:
            raise ValueError(_no_such_place(place, type(model).__name__, list(_MGN_PLACES)))
    with _aside():
        for place in attention.placement:
            channels, paths = _MGN_PLACES[place]
            for path in paths:
                module = model.get_submodule(path)
                end = module if place == HEAD else list(module.children())[-1]
                place_behind(end, _build(attention, channels, place))


def _build(attention: config.Attention, channels: int, place: str) -> nn.Module:
    """What stands at a place, which learns at its own rate: a module, or a mask in the blocks."""
    module: nn.Module
    try:
        if place == BLOCKS:
            module = DCSMask(channels, **{key: attention.settings[key] for key in _MASK_SETTINGS})
        else:
            module = build_attention(attention.name, channels, **attention.settings)
    except ValueError as error:  # a width beyond the channels, say: known only here
        raise ValueError(
            f"MODEL.ATTENTION ({attention.name}) does not fit the {channels} channels of "
            f"'{place}': {error}"
        ) from error
    learning_rate.mark(module, attention.lr_factor)
    return module


def _aside() -> Any:
    """Initialises what is built within it from a copy of torch's random state.

    So the other parameters of a seeded run start as they would without attention.
    """
    return torch.random.fork_rng(devices=[])


def _attend_last(module: Any, args: Any, output: Tensor) -> Tensor:
    return module.attention(output)


def _attend_first(module: Any, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    features, *others = args
    return (module.attention(features), *others)


def _mask_queries_and_keys(projection: Any, args: Tuple[Tensor], output: Tensor) -> Tensor:
    """Masks channels of queries and keys, (B, N, 3C) with the values last, by the tokens."""
    mask = projection.attention(args[0]).to(output.dtype)
    queries, keys, values = output.chunk(3, dim=-1)
    return torch.cat((queries * mask, keys * mask, values), dim=-1)


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


def _query_key_projections(backbone: nn.Module) -> List[nn.Linear]:
    """The layers of a vision transformer that give queries, keys and values, block by block."""
    attentions = [getattr(block, "attn", None) for block in getattr(backbone, BLOCKS, ())]
    projections = [getattr(attention, "qkv", None) for attention in attentions]
    return [projection for projection in projections if isinstance(projection, nn.Linear)]


def _check_tokens(backbone: nn.Module, attention: config.Attention) -> None:
    name = type(backbone).__name__
    if HEAD in attention.placement:
        raise ValueError(
            f"{name} gives the head its class token and no map, so attention at the head "
            "would have one position to attend to. Write MODEL.ATTENTION.NAME DCS and "
            f'MODEL.ATTENTION.PLACEMENT ("{BLOCKS}",), which masks the queries and keys of every '
            "block."
        )
    for place in attention.placement:
        if place != BLOCKS:
            raise ValueError(_no_such_place(place, name, [BLOCKS]))
    if attention.name != "DCS":
        raise ValueError(
            f"Inside the blocks of {name} stands its own attention, which MODEL.ATTENTION.NAME DCS "
            f"can mask; {attention.name} is for maps."
        )
    if attention.settings["depthwise"]:
        raise ValueError(
            f"MODEL.ATTENTION.DEPTHWISE is True, a convolution over a map, and {name} has tokens. "
            "Write False."
        )
    bias = attention.settings["mask_bias"]
    if bias <= 0:
        raise ValueError(
            f"MODEL.ATTENTION.MASK_BIAS is {bias:g}, and in evaluation the masks of {name} would "
            "start without a channel: it would attend to nothing. Write a positive one, such as "
            "1.0, which keeps 73 % of the channels in training and all of them in evaluation."
        )


def _no_such_place(place: str, where: str, places: List[str]) -> str:
    return (
        f"MODEL.ATTENTION.PLACEMENT holds '{place}', which {where} does not have. It has "
        f"{', '.join(places)}."
    )


def _runs_blocks(module: nn.Module) -> bool:
    """Whether every child of a module is a block, that is, has children of its own.

    Stems do not: their children are layers.
    """
    children = list(module.children())
    return bool(children) and all(any(True for _ in child.children()) for child in children)


@torch.no_grad()
def _output_shapes(
    backbone: nn.Module, blocks: List[nn.Module], device: torch.device
) -> Dict[nn.Module, torch.Size]:
    shapes: Dict[nn.Module, torch.Size] = {}

    def note(block: nn.Module, args: Any, output: Tensor) -> None:
        shapes[block] = output.shape

    hooks = [block.register_forward_hook(note) for block in blocks]
    home = next(backbone.parameters()).device
    backbone.to(device).eval()  # in training it would change the running statistics
    try:
        backbone(torch.zeros(1, 3, *_PROBE_SIZE, device=device))
    finally:
        backbone.to(home).train()
        for hook in hooks:
            hook.remove()
    return shapes
