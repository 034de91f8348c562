"""Networks to compare a derived one with: of the same cost, but not searched.

    python tools/research/search_controls.py --config-file configs/search/synthetic.yml --target 0.5

prints widths that MODEL.SEARCH.WIDTHS takes: uniform ones (each group the same share of its widest,
as near as its widths allow) and random ones.

    python tools/research/search_controls.py --config-file FILE --supernet logs/model_final.pth

also cuts the weights of a supernet to each of them, and writes these beside it for MODEL.WEIGHTS,
as a search does for what it derives.
"""

import argparse
import sys
from pathlib import Path

import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

# isort: split
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model

from fastreid_rib.base.safe_reads import read_safely
from fastreid_rib.integration.run.checkpoints import is_rib
from fastreid_rib.integration.search.results import weights_of
from fastreid_rib.search.cost import all_choices

SLACK = 0.05
"""A random network costs at most this share less than the limit."""


def supernet(config_file, opts, weights=None):
    """The supernet of a config's search, whose ``search.cost`` knows all its networks.

    Args:
        config_file: of the search.
        opts: keys and values in turn.
        weights: file of a checkpoint of it; None: random ones.

    Raises:
        SystemExit: the checkpoint is of another network; the message names what differs.
    """
    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list([*opts, "MODEL.SEARCH.ENABLED", True, "MODEL.SEARCH.TARGET", 1.0])
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.DEVICE = "cpu"
    state = {}
    if weights:
        state = read_safely(weights)["model"]
        cfg.MODEL.HEADS.NUM_CLASSES = len(state.get("heads.weight", ()))
    cfg.freeze()
    model = build_model(cfg)
    if weights:
        _load(model, state, weights)
    return model


def _load(model, state, path):
    """Loads a checkpoint; what is missing in it would be cut from random weights in silence."""
    # RIB's statistics and choices of widths are not a part of what is cut.
    state = {name: value for name, value in state.items() if not is_rib(name)}
    missing, left = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith("search.")]
    for text, names in (("lacks", missing), ("holds what the network has not:", left)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            sys.exit(
                f"search_controls: {path} {text} {', '.join(names[:3])}{more}. Give the checkpoint "
                "of a search (OUTPUT_DIR/model_final.pth), and the config and keys of that search"
            )


def uniform(cost, limit):
    """The network nearest to one share of all widths, of those that cost at most a limit.

    Args:
        cost: of a space.
        limit: multiply-adds an image.

    Returns:
        A width for each group. Of the shares, the largest that can be afforded.
    """
    best = None
    for share in torch.linspace(0, 1, 1001).tolist():
        widths = {
            group: min(options, key=lambda width: abs(width - share * options[0]))
            for group, options in cost.space.groups.items()
        }
        if cost.of(widths) <= limit:
            best = widths
    return best


def random(cost, limit, count, seed=0):
    """Networks drawn from all that cost at most a limit, and at least 1 - SLACK of it.

    Returns:
        ``count`` different ones.
    """
    choices, costs = all_choices(cost)
    fitting = torch.nonzero((costs <= limit) & (costs >= (1 - SLACK) * limit))[:, 0]
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(seed))
    drawn = fitting[order[:count]].tolist()
    return [{group: int(widths[i]) for group, widths in choices.items()} for i in drawn]


def main():
    """Prints the controls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--target", type=float, default=0.5, help="share of the widest's cost")
    parser.add_argument("--random", type=int, default=5, metavar="N", help="random ones (5)")
    parser.add_argument("--supernet", metavar="FILE", help="a checkpoint to cut weights from")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")
    args = parser.parse_args()

    model = supernet(args.config_file, args.opts, args.supernet)
    cost = model.search.cost
    limit = args.target * cost.widest
    named = [("uniform", uniform(cost, limit))]
    named += [(f"random {i}", widths) for i, widths in enumerate(random(cost, limit, args.random))]
    for name, widths in named:
        share = float(cost.of(widths)) / cost.widest
        print(f"{name:10} {share:.3f}  {tuple(widths.values())}")
        if args.supernet:
            path = Path(args.supernet).with_name(f"{name.replace(' ', '_')}.pth")
            torch.save({"model": weights_of(model, cost.space, widths)}, path)


if __name__ == "__main__":
    main()
