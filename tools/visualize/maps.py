"""Where a model looks: Grad-CAM, attention, and the share of channels that DCS keeps.

Grad-CAM (Selvaraju et al., ICCV 2017) weights the channels of a map by the mean gradient of a
score. For retrieval there is no class whose score to take: identities of the test set have none. We
take the length of the embedding. Its gradient is that of the cosine similarity to a picture with
the same embedding, so a position is hot where it makes the picture similar to its like.

The package grad-cam (1.5.7) installs beside every torch, but explains the outputs of modules that
it is told, a module a backbone (FastReID's ResNet never calls its ``layer4``, only the blocks in
it), averages the maps of several, as MGN's branches are, and computes the gradients of all weights.
What FastReID's backbones and heads have in common is the input of a head, with whatever attention
stands in front of it. On a ResNet's last block the package gives the same map.

Legend: B images, C channels, h x w positions of a map, N tokens (the class token first).
"""

import re
from contextlib import ExitStack
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
from fastreid.modeling.heads import REID_HEADS_REGISTRY, EmbeddingHead
from torch import Tensor, nn

from fastreid_rib.attention import DCSMask, SelfAttention
from visualize import InputError

# Names of modules that hold an attention, and the places that they are; the last five are MGN's.
_PLACES = (
    (r"heads", "head"),
    (r"((?:layer|stage|conv|s)\d)\.\d+", r"\1"),
    (r"4\.\d+", "layer1"),
    (r"5\.\d+", "layer2"),
    (r"(b\d)\.0\.\d+", r"layer3 \1"),
    (r"(b\d)\.1\.\d+", r"layer4 \1"),
    (r"(b\d)", r"head \1"),
)


class Map(NamedTuple):
    """Something to lay over a batch of images.

    Attributes:
        title: what it shows, and of which part of the model.
        values: (B, h, w), float32, >= 0, on the CPU.
        share: whether values are shares 0..1, which are shown as they are; others relative to
            their highest.
    """

    title: str
    values: Tensor
    share: bool = False


class Explanation(NamedTuple):
    """What a model made of a batch.

    Attributes:
        embeddings: (B, dim), float32, on the CPU.
        maps: to lay over the images.
        kept: the mean share of channels that each DCS mask keeps, by its place.
    """

    embeddings: Tensor
    maps: List[Map]
    kept: Dict[str, float]


def explain(network: nn.Module, images: Tensor) -> Explanation:
    """Embeds images and says where the model looked.

    Args:
        network: a FastReID meta-architecture in evaluation mode.
        images: (B, 3, H, W), 0..255, on the device of the model.

    Returns:
        A Grad-CAM for each map that a head pools (MGN: each branch) or for the patches of a ViT;
        the attention that each position receives, for each DCS and SelfAttention, or that the
        class token of a ViT pays; the share of channels that DCS keeps.

    Raises:
        InputError: the model has neither maps nor patch tokens.
    """
    seen: Dict[nn.Module, Tensor] = {}
    heads = {name: m for name, m in network.named_modules() if _is_head(m)}
    attentions = {n: m for n, m in network.named_modules() if isinstance(m, SelfAttention)}
    inside = [getattr(attention, "mask", None) for attention in attentions.values()]
    masks = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, DCSMask) and not any(module is mask for mask in inside)
    }
    transformer = _transformer(network)
    with ExitStack() as stack:

        def keep_input(module: nn.Module, args: Tuple[Any, ...]) -> None:
            seen[module] = args[0]

        def keep_output(module: nn.Module, args: Any, output: Tensor) -> None:
            seen[module] = output

        def watch(handle: Any) -> None:
            stack.callback(handle.remove)

        for module in [*heads.values(), *attentions.values()]:
            watch(module.register_forward_pre_hook(keep_input))
        outputs = list(masks.values())
        if transformer is not None:
            # Of the last block only the class token is used, so the patches matter up to its norm.
            last = transformer.blocks[-1]
            outputs += [last.norm1, last.attn.attn_drop]
        for module in outputs:
            watch(module.register_forward_hook(keep_output))
        with torch.enable_grad():
            embeddings = network(images.clone())  # it normalises them in place

    if not isinstance(embeddings, Tensor):
        raise InputError(
            f"In evaluation {type(network).__name__} gives a {type(embeddings).__name__}, and no "
            "tensor of embeddings."
        )
    # An image's gradient depends on no other image.
    score = embeddings.float().norm(dim=1).sum()
    if transformer is not None:
        maps = [_token_cam(score, seen[last.norm1], transformer)]
    else:
        maps = _branch_cams(score, {n: seen[m] for n, m in heads.items() if m in seen})
    if not maps:
        raise InputError(
            f"{type(network).__name__} gives its heads no map of more than one position, and has "
            "no patch tokens, so there is nothing to show where it looks. Is INPUT.SIZE_TEST too "
            "small, or are its heads not in FastReID's registry?"
        )
    kept: Dict[str, float] = {}
    if transformer is not None:
        weights = seen[last.attn.attn_drop].detach()  # (B, heads, N, N)
        paid = _grid(weights.mean(dim=1)[:, 0, 1:], transformer)
        maps.append(_map("attention of the class token", paid))
    for name, module in attentions.items():
        x = seen[module].detach()
        explanation = module.explain(x)
        # How much of each position goes into all others: the mean over the rows.
        place = _place(name)
        received = explanation.weights.mean(dim=1).reshape(-1, *x.shape[2:])
        maps.append(_map(f"attention {place}", received))
        if explanation.kept is not None:
            share = explanation.kept.reshape(-1, *x.shape[2:])
            maps.append(_map(f"channels kept {place}", share, share=True))
            kept[place] = float(share.mean())
    if masks and transformer is not None:
        shares = {_place(n): seen[m].detach().mean(dim=2)[:, 1:] for n, m in masks.items()}
        kept.update((place, float(share.mean())) for place, share in shares.items())
        mean = torch.stack(list(shares.values())).mean(dim=0)
        title = f"channels kept in {len(masks)} blocks"
        maps.append(_map(title, _grid(mean, transformer), share=True))
    return Explanation(embeddings.detach().float().cpu(), maps, kept)


def grad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of a map.

    Args:
        features: (B, C, h, w).
        gradient: of the score, the same shape.

    Returns:
        (B, h, w), >= 0.
    """
    return (features * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1).clamp(min=0)


def _token_cam(score: Tensor, tokens: Tensor, transformer: Any) -> Map:
    """Grad-CAM on the patch tokens, whose positions form a grid as those of a map do."""
    (gradient,) = torch.autograd.grad(score, [tokens])
    features, gradient = (
        _grid(x.detach()[:, 1:].transpose(1, 2), transformer) for x in (tokens, gradient)
    )
    return _map("Grad-CAM", grad_cam(features, gradient))


def _branch_cams(score: Tensor, pooled: Dict[str, Tensor]) -> List[Map]:
    """A Grad-CAM for each whole map that a head pools; none if there is no map."""
    maps = {name: x for name, x in pooled.items() if x.dim() == 4 and x[0, 0].numel() > 1}
    # MGN's other heads pool stripes of these; what they add to the gradient is in it.
    largest = max((x[0, 0].numel() for x in maps.values()), default=0)
    whole = {_branch(name): x for name, x in maps.items() if x[0, 0].numel() == largest}
    gradients = torch.autograd.grad(score, list(whole.values())) if whole else ()
    return [
        _map(f"Grad-CAM {branch}", grad_cam(x.detach(), gradient))
        for (branch, x), gradient in zip(whole.items(), gradients)
    ]


def _map(title: str, values: Tensor, share: bool = False) -> Map:
    return Map(title.strip(), values.detach().float().cpu(), share)


def _is_head(module: nn.Module) -> bool:
    registered = [c for c in REID_HEADS_REGISTRY._obj_map.values() if isinstance(c, type)]
    return isinstance(module, (EmbeddingHead, *registered))


def _branch(head: str) -> str:
    """b1_head: b1; the only head of a model: nothing."""
    return "" if head == "heads" else head.replace("_head", "")


def _place(attention: str) -> str:
    """The place of an attention by its module's name, as MODEL.ATTENTION.PLACEMENT has it."""
    parts = [part for part in attention.split(".") if part not in ("backbone", "attention")]
    path = ".".join(parts)
    for pattern, place in _PLACES:
        if re.fullmatch(pattern, path):
            return re.sub(pattern, place, path)
    return path


def _transformer(network: nn.Module) -> Any:
    """The backbone if it is FastReID's vision transformer, or one built as that, else None."""
    backbone = getattr(network, "backbone", None)
    blocks = getattr(backbone, "blocks", None)
    known = blocks is not None and len(blocks) > 0 and hasattr(blocks[-1], "norm1")
    return backbone if known and hasattr(getattr(blocks[-1], "attn", None), "attn_drop") else None


def _grid(tokens: Tensor, transformer: Any) -> Tensor:
    """Patch tokens (..., N - 1) as a map (..., h, w)."""
    patches = transformer.patch_embed
    return tokens.reshape(*tokens.shape[:-1], patches.num_y, patches.num_x)
