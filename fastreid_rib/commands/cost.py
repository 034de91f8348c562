"""The command ``cost``: parameters and multiply-adds of what a config asks for."""

from typing import List

from tabulate import tabulate

from fastreid_rib.integration.search.cost import network_cost, search_table


def main(config_file: str, opts: List[str]) -> int:
    """Prints a table.

    Args:
        config_file: a FastReID config.
        opts: keys and values that change it, as FastReID's scripts take them.

    Returns:
        0; 1 if the network cannot be built or counted, which has been said.
    """
    try:
        print(table(config_file, opts))
    except (ImportError, OSError, ValueError, KeyError) as error:
        print(error)
        return 1
    return 0


def table(config_file: str, opts: List[str]) -> str:
    """What a config's network costs, in Markdown; of a search also the ends of its space.

    Raises:
        ImportError: fvcore is not installed.
        ValueError: a key that does not go.
    """
    from fastreid.config import get_cfg
    from fastreid.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list([*opts, "MODEL.BACKBONE.PRETRAIN", False, "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    height, width = cfg.INPUT.SIZE_TEST
    parts = network_cost(model, (height, width))
    rows = [(name, *map(float, part)) for name, part in parts.items()]
    text = f"An image of {height} x {width}, in evaluation\n\n" + tabulate(
        rows, ("part", "parameters", "multiply-adds"), "pipe", floatfmt=",.0f"
    )
    return f"{text}\n\n{search_table(model.search)}" if cfg.MODEL.SEARCH.ENABLED else text
