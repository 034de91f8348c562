"""What networks cost: multiply-adds of what they really compute, counted by fvcore; parameters."""

from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Tuple

import torch
from tabulate import tabulate
from torch import nn

from fastreid_rib.attention import build_attention
from fastreid_rib.base.kept import evaluated, runs
from fastreid_rib.integration import config
from fastreid_rib.integration.attention.insertion import attached
from fastreid_rib.search import Cost, Space, WidthSearch

COUNTED = ("conv", "linear", "addmm", "matmul", "bmm", "baddbmm", "einsum")
"""Operations of fvcore that are multiply-adds; norms and activations are a percent beside them."""


def counted(module: nn.Module, *inputs: Any) -> Dict[str, float]:
    """Multiply-adds of one evaluation of every submodule, by its path; "": of the whole.

    Args:
        module: any; its modes are as before, after.
        inputs: what it is called with.

    Raises:
        ImportError: fvcore is not installed; the message says what to write.
    """
    try:
        import fvcore.nn
    except ImportError as error:
        raise ImportError(
            "FLOPs are counted by fvcore, which is not installed. Write: pip install fvcore"
        ) from error
    analysis = fvcore.nn.FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with evaluated(module):
        found = analysis.by_module_and_operator()
    return {
        path: float(sum(operators[name] for name in COUNTED)) for path, operators in found.items()
    }


def cost_of(model: Any, space: Space, cfg: Any, device: torch.device) -> Cost:
    """What networks of a space cost: the backbone, with attention there and at the head.

    Args:
        model: a meta-architecture with the widest backbone, on ``device``.
        space: the backbone's groups.
        cfg: a FastReID config; INPUT.SIZE_TEST is the size that counts.
        device: where to try it out.

    Raises:
        ValueError: attention that does not fit one of the widths.
        ImportError: there is attention to be counted, and no fvcore.
    """
    attention = config.asked_attention(cfg)
    extra: Dict[str, List[float]] = {}
    constant = 0.0
    backbone, images = model.backbone, torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST, device=device)
    placed = attached(backbone)
    shapes = {run.name: run.read for run in runs(backbone, images, placed)} if placed else {}
    for name, shape in shapes.items():
        group = space.blocks.get(name.rpartition(".")[0])
        if group is None:
            module = backbone.get_submodule(name)
            constant += counted(module, torch.zeros(shape, device=device))[""]
            continue
        assert attention is not None
        costs = []
        for width in space.groups[group]:
            try:
                one = build_attention(attention.name, width, **attention.settings).to(device)
            except ValueError as error:
                raise ValueError(
                    f"MODEL.ATTENTION ({attention.name}) does not fit {width} channels, a width "
                    f"that MODEL.SEARCH offers for '{group}': {error}"
                ) from error
            costs.append(counted(one, torch.zeros(1, width, *shape[2:], device=device))[""])
        before = extra.get(group, [0.0] * len(costs))
        extra[group] = [old + new for old, new in zip(before, costs)]
    at_head = getattr(getattr(model, "heads", None), "attention", None)
    if at_head is not None:
        with evaluated(backbone):
            features = backbone(images)
        constant += counted(at_head, features)[""]
    return Cost(backbone, space, images, extra, constant, apart=list(shapes))


class NetworkCost(NamedTuple):
    """Of a part of a network.

    Attributes:
        parameters: how many numbers are learnt.
        multiply_adds: an image, in evaluation.
    """

    parameters: int
    multiply_adds: float

    def without(self, part: "NetworkCost") -> "NetworkCost":
        """Of the rest, without a part."""
        return NetworkCost(
            self.parameters - part.parameters, self.multiply_adds - part.multiply_adds
        )


def network_cost(model: Any, size: Tuple[int, int]) -> Dict[str, NetworkCost]:
    """Counts the parts of a meta-architecture.

    Args:
        model: built by FastReID.
        size: rows and columns of an image.

    Returns:
        "backbone", "attention" and "head" (what is neither: heads, and branches as MGN has them;
        the classifier of the training identities is among its parameters and not run in
        evaluation), and "in all".

    Raises:
        ImportError: fvcore is not installed.
    """
    adds = counted(model, torch.zeros(1, 3, *size, device=model.device))
    modules = dict(model.named_modules())

    def of(paths: Iterable[str]) -> NetworkCost:
        numbers = [p.numel() for path in paths for p in modules[path].parameters()]
        return NetworkCost(sum(numbers), sum(adds[path] for path in paths))

    paths = list(attached(model))
    whole, attention = of([""]), of(paths)
    backbone = of(["backbone"]).without(of([p for p in paths if p.startswith("backbone.")]))
    head = whole.without(backbone).without(attention)
    return {"backbone": backbone, "attention": attention, "head": head, "in all": whole}


def search_table(search: WidthSearch, derived: Mapping[str, int] = {}) -> str:
    """What the networks of a search cost, and one of some widths if any, in Markdown."""
    cost = search.cost
    networks = {"widest": cost.widest, "aimed at": search.target}
    if derived:
        networks["derived"] = float(cost.of(derived))
    networks["narrowest"] = cost.narrowest
    rows = [(name, number, number / cost.widest) for name, number in networks.items()]
    headers = ("network", "multiply-adds an image", "of the widest")
    return tabulate(rows, headers, "pipe", floatfmt=("", ",.0f", ".3f"))
