"""The command ``cost``: parameters and multiply-adds of what a config asks for."""

from typing import Any, List

from fastreid_rib.integration.search.cost import network_cost


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
    cfg = _config(config_file, opts)
    from fastreid.modeling import build_model

    model = build_model(cfg)
    size = tuple(cfg.INPUT.SIZE_TEST)
    lines = [
        f"An image of {size[0]} x {size[1]}, in evaluation",
        "",
        "| part | parameters | multiply-adds |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {part.parameters:,} | {part.multiply_adds:,.0f} |"
        for name, part in network_cost(model, size).items()
    ]
    if cfg.MODEL.SEARCH.ENABLED:
        cost = model.search.cost
        lines += ["", "| network of the search | multiply-adds | of the widest |"]
        lines += ["| --- | --- | --- |"]
        ends = {"widest": cost.widest, "aimed at": model.search.target, "narrowest": cost.narrowest}
        lines += [f"| {name} | {n:,.0f} | {n / cost.widest:.3f} |" for name, n in ends.items()]
    return "\n".join(lines)


def _config(config_file: str, opts: List[str]) -> Any:
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(opts)
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.DEVICE = "cpu"
    return cfg
