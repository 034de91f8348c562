"""What attention costs: module by module, and as a share of the training step.

The modules stand at the last map of a ResNet-50 for 256 x 128 (2048 x 16 x 8) and in a block of a
ViT-B/16; beside them FastReID's ``Non_local`` and torch's ``MultiheadAttention``. The step is BoT's
(ResNet-50, 256 x 128). Batches are of 16 images, not 64: at full width one module takes seconds.
"""

import functools
import statistics

import torch
from benchmarks.bot import make_step
from benchmarks.harness import REPOSITORY, interleaved, medians, peak_bytes, ratio, seconds
from fastreid.config import get_cfg
from fastreid.layers.non_local import Non_local
from fastreid.modeling.backbones import build_backbone
from torch import nn

from fastreid_rib.attention import build_attention

BATCH, IDENTITIES = 16, 751
MAP = (2048, 16, 8)
VIT_TOKENS, VIT_CHANNELS, VIT_HEADS = 129, 768, 12
WIDTHS = (128, 256)
IMAGE_SIZE = [256, 128]

STEPS = {
    "DCS, width 128, head": {"NAME": "DCS", "WIDTH": 128},
    "DCS, width 256, head": {"NAME": "DCS", "WIDTH": 256},
    "DCS, width 128, layer3": {"NAME": "DCS", "WIDTH": 128, "PLACEMENT": ("layer3",)},
    "DCS, width 256, layer3": {"NAME": "DCS", "WIDTH": 256, "PLACEMENT": ("layer3",)},
    "DCS, head": {"NAME": "DCS"},
    "SE, head": {"NAME": "SE"},
    "ECA, head": {"NAME": "ECA"},
}
"""What is measured in the training step: keys of MODEL.ATTENTION; the head is the default place."""


class Multihead(nn.Module):
    """torch's ``MultiheadAttention`` as self-attention, added to a map or to tokens."""

    def __init__(self, channels, heads):
        """Projects queries, keys, values and results, each with channels x channels weights."""
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x):
        """The input and what its positions take from each other."""
        tokens = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x
        change, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + (change.transpose(1, 2).reshape(x.shape) if x.dim() == 4 else change)


def on_the_map():
    """The modules for the last map, by name."""
    channels = MAP[0]
    widths = [("", {}), *((f", width {width}", {"width": width}) for width in WIDTHS)]
    modules = {
        f"{name}{ending}": build_attention(name, channels, **settings)
        for name in ("DCS", "SelfAttention")
        for ending, settings in widths
    }
    modules.update({name: build_attention(name, channels) for name in ("SE", "ECA", "CBAM")})
    modules["Non_local"] = Non_local(channels, "BN")  # one channel inside, whatever the map has
    modules["Multihead"] = Multihead(channels, 8)
    return modules


def in_a_block():
    """A block of a ViT as it is, with masked queries and keys, and modules that could follow it."""
    modules = {"block": vit_block(""), "block with DCS": vit_block("DCS")}
    modules.update({name: build_attention(name, VIT_CHANNELS) for name in ("DCS", "SelfAttention")})
    modules["Multihead"] = Multihead(VIT_CHANNELS, VIT_HEADS)
    return modules


def vit_block(attention):
    """The first block of a ViT-B/16, made by FastReID."""
    cfg = get_cfg()
    cfg.merge_from_file(str(REPOSITORY / "configs" / "Market1501" / "vit_B16.yml"))
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.PRETRAIN = "cpu", False
    cfg.MODEL.ATTENTION.NAME, cfg.MODEL.ATTENTION.PLACEMENT = attention, ("blocks",)
    cfg.MODEL.ATTENTION.MASK_BIAS = 1.0
    return build_backbone(cfg).blocks[0]


def measure_modules(modules, shape, base, budget):
    """Times, memory and parameters of modules in training.

    Args:
        modules: name -> module.
        shape: of the input, without the batch.
        base: the name whose time is 1.
        budget: seconds for forward and backward together; half of it more for forward alone.

    Returns:
        name -> milliseconds, ratio to ``base`` of forward and backward, peak bytes of both (with
        the gradients of input and parameters), number of parameters.
    """
    x = torch.randn(BATCH, *shape, requires_grad=True)
    gradient = torch.randn(x.shape)

    def both(module):
        torch.autograd.grad(module(x), [x, *module.parameters()], gradient)

    for module in modules.values():
        module.train()
    steps = {name: functools.partial(both, module) for name, module in modules.items()}
    times = interleaved(steps, budget)
    forward = medians(
        interleaved({name: functools.partial(m, x) for name, m in modules.items()}, budget / 2)
    )
    return {
        name: {
            "milliseconds": {"both": 1e3 * value, "forward": 1e3 * forward[name]},
            "ratio": ratio(times, name, base),
            "peak bytes": peak_bytes(steps[name]),
            "parameters": sum(p.numel() for p in modules[name].parameters()),
        }
        for name, value in medians(times).items()
    }


def measure_steps(pairs):
    """Seconds of the step without and with each attention, pair by pair.

    Each has pairs of its own, so that both halves of a pair see the same machine; which comes first
    changes from pair to pair.

    Args:
        pairs: how many of them for each.

    Returns:
        name -> list of (seconds without, seconds with).
    """
    # Without RIB in the loss: its few percent would only hide what attention costs.
    without = make_step(BATCH, IDENTITIES, {}, IMAGE_SIZE)
    results = {}
    for name, attention in STEPS.items():
        keys = {f"MODEL.ATTENTION.{key}": value for key, value in attention.items()}
        attending = make_step(BATCH, IDENTITIES, keys, IMAGE_SIZE)
        without(), attending()
        results[name] = []
        for number in range(pairs):
            if number % 2:
                after = seconds(attending)
                results[name].append((seconds(without), after))
            else:
                results[name].append((seconds(without), seconds(attending)))
    return results


def measure(budget, pairs):
    """Everything, in one dictionary; prints it."""
    results = {
        "map": measure_modules(on_the_map(), MAP, "SelfAttention", budget),
        "block": measure_modules(in_a_block(), (VIT_TOKENS, VIT_CHANNELS), "block", budget),
    }
    show_modules(f"last map, {size_of(*MAP)}; ratio to SelfAttention", results["map"])
    tokens = size_of(VIT_TOKENS, VIT_CHANNELS)
    show_modules(f"block of ViT-B/16, {tokens}; ratio to the block", results["block"])
    results["steps_without_and_with"] = measure_steps(pairs)
    show_steps(results["steps_without_and_with"])
    return results


def size_of(*shape):
    """A batch of inputs of a shape, for a title."""
    return " x ".join(str(number) for number in (BATCH, *shape))


def show_modules(title, results):
    """Prints the modules of one place as a table."""
    print(f"\n{title}")
    print(f"  {'':24}{'both ms':>10}{'forward':>10}{'ratio':>8}{'peak MiB':>10}{'parameters':>12}")
    for name, result in results.items():
        times = result["milliseconds"]
        print(
            f"  {name:24}{times['both']:10.2f}{times['forward']:10.2f}{result['ratio']:8.3f}"
            f"{result['peak bytes'] / 2**20:10.1f}{result['parameters']:12}"
        )


def show_steps(steps):
    """Prints the ratios of the training steps."""
    print(f"\ntraining step with / without: BoT, ResNet-50, {size_of(3, *IMAGE_SIZE)}")
    for name, results in steps.items():
        ratios = sorted(after / before for before, after in results)
        print(
            f"  {name:24}{statistics.median(ratios):8.3f}"
            f"  ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs)"
        )
