"""The command ``cost``: parameters and multiply-adds of what a config asks for."""

from typing import List

from tabulate import tabulate

from fastreid_rib.commands import read_config
from fastreid_rib.integration.search.cost import network_cost, search_table


def main(config_file: str, opts: List[str]) -> None:
    """Prints a table in Markdown; of a search also the ends of its space.

    Raises:
        ImportError: fvcore is not installed.
        ValueError: a key that does not go.
    """
    cfg = read_config(config_file, [*opts, "MODEL.BACKBONE.PRETRAIN", False, "MODEL.DEVICE", "cpu"])
    from fastreid.modeling import build_model

    model = build_model(cfg)
    height, width = cfg.INPUT.SIZE_TEST
    parts = network_cost(model, (height, width))
    print(f"An image of {height} x {width}, in evaluation\n")
    rows = [(name, *map(float, part)) for name, part in parts.items()]
    print(tabulate(rows, ("part", "parameters", "multiply-adds"), "pipe", floatfmt=",.0f"))
    if cfg.MODEL.SEARCH.ENABLED:
        print(f"\n{search_table(model.search)}")
