"""The commands of ``python -m fastreid_rib``: each is a module, and runs by its ``main``.

The arguments of ``main`` are those of the command line, which ``--help`` explains. It returns an
exit status or None, which is success, and raises what the command line prints as an error.
"""

from typing import Any, Mapping, Sequence


def read_config(config_file: str, opts: Sequence[Any] = ()) -> Any:
    """A FastReID config from a file, with keys and values that change it; raises as FastReID's."""
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    return cfg


def load_weights(model: Any, state: Mapping[str, Any], path: str) -> None:
    """Loads what a file holds of a network; raises ValueError if it is of another one."""
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:  # of other sizes
        raise ValueError(f"{path} is of another network: {error}") from error
    if missing:
        raise ValueError(f"{path} is of another network: it lacks {', '.join(missing[:3])}")
