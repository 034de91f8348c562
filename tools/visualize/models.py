"""Models of FastReID from a config and a checkpoint that belong together."""

import re
from pathlib import Path
from typing import Any, List, NamedTuple, Sequence

import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from torch import nn

from visualize import InputError

# In a checkpoint and of no use here: RIB's statistics; constants that old versions saved.
_NOT_NEEDED = re.compile(r"rib\.|pixel_(mean|std)$|.*\.num_batches_tracked$")
_ATTENTION = re.compile(r"(.*?\.?)attention\.")


class Model(NamedTuple):
    """A model that is ready to embed images.

    Attributes:
        name: what its rows are called.
        cfg: its config; MODEL.DEVICE is where it is.
        network: the meta-architecture, in evaluation mode.
    """

    name: str
    cfg: Any
    network: nn.Module


def load_config(path: str, device: str = "", opts: Sequence[str] = ()) -> Any:
    """Reads a config and fits it to this machine.

    Args:
        path: a FastReID config file.
        device: replaces MODEL.DEVICE; "" keeps it if it is there, and takes the CPU if not.
        opts: keys and values in turn, which replace those of the file.

    Raises:
        InputError: the file is missing, or it or ``opts`` hold what FastReID does not know.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no config file {path}.")
    cfg = get_cfg()
    try:
        cfg.merge_from_file(path)
        cfg.merge_from_list(list(opts))
    except Exception as error:  # yacs asserts, yaml and Python have errors of their own
        raise InputError(f"{path} cannot be read as a FastReID config: {error}") from error
    device = device or cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"
    cfg.MODEL.DEVICE = device
    cfg.MODEL.BACKBONE.PRETRAIN = False  # the checkpoint has all weights
    if device == "cpu":
        # The same layer with the same names, which a CPU can run.
        for node in (cfg.MODEL.BACKBONE, cfg.MODEL.HEADS):
            node.NORM = node.NORM.replace("syncBN", "BN")
    # RIB is a part of the training alone, and would want its compiled kernels.
    cfg.MODEL.LOSSES.NAME = tuple(
        name for name in cfg.MODEL.LOSSES.NAME if name not in ("RIB", "RIBLoss")
    )
    cfg.freeze()
    return cfg


def load_model(name: str, cfg: Any, weights: str) -> Model:
    """Builds the model of a config and loads a checkpoint that fits it in full.

    FastReID itself loads whatever fits and logs the rest, so that a picture of a network that was
    half at random would look like any other.

    Args:
        name: what its rows are called.
        cfg: what :func:`load_config` gave.
        weights: path of a checkpoint, of FastReID's model zoo or trained with this plugin.

    Raises:
        InputError: the checkpoint is missing, is none, or is one of another config; or the model
            does not take images of the config's size.
    """
    if not Path(weights).is_file():
        raise InputError(f"{name}: there is no checkpoint {weights or '(no path was given)'}.")
    try:
        network = build_model(cfg)
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(f"{name}: its config cannot be built: {error}") from error
    try:
        _Strict(network, name).load(weights)
    except InputError:
        raise
    except Exception as error:  # what torch raises for a foreign file depends on its bytes
        reason = str(error).split("\n")[0][:300]
        raise InputError(f"{name}: {weights} cannot be read as a checkpoint: {reason}") from error
    network.eval()
    height, width = cfg.INPUT.SIZE_TEST
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, height, width, device=cfg.MODEL.DEVICE))
    except Exception as error:  # whatever a layer makes of a size that it cannot take
        raise InputError(
            f"{name}: the model cannot take images of INPUT.SIZE_TEST {height} x {width} "
            f"(trained with SIZE_TRAIN {' x '.join(map(str, cfg.INPUT.SIZE_TRAIN))}): {error}"
        ) from error
    return Model(name, cfg, network)


class _Strict(Checkpointer):
    """FastReID's way of loading, which fails where that would warn."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__(network)
        self.name = name

    def _load_model(self, checkpoint: Any) -> Any:
        checkpoint.pop("rib", None)  # its statistics, which the training alone needs
        weights = checkpoint["model"]
        if all(key.startswith("module.") for key in weights):
            weights = {key[len("module.") :]: value for key, value in weights.items()}
        checkpoint["model"] = {
            key: value for key, value in weights.items() if not _NOT_NEEDED.match(key)
        }
        # The trainer sets NUM_CLASSES by the data, so the config may have another number of rows.
        for path, module in self.model.named_modules():
            rows = weights.get(f"{path}.weight")
            if hasattr(module, "cls_layer") and rows is not None:
                module.weight = nn.Parameter(module.weight.new_empty(rows.shape))
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        shapes = [f"{key} {got} for {own}" for key, got, own in incompatible.incorrect_shapes]
        wrong = {key for key, *_ in incompatible.incorrect_shapes}
        missing = [
            key
            for key in incompatible.missing_keys
            if key not in wrong and not _NOT_NEEDED.match(key)
        ]
        extra = list(incompatible.unexpected_keys)
        if not (shapes or missing or extra):
            return
        asked, held = _places(missing), _places(extra)
        lines = [f"{self.name}: the checkpoint is one of another config."]
        if held:
            lines.append(
                f"It holds attention at {', '.join(held)} that the config does not ask for: write "
                "MODEL.ATTENTION as it was in the training."
            )
        if asked:
            lines.append(
                f"The config asks for attention at {', '.join(asked)}, which the checkpoint was "
                'trained without: write MODEL.ATTENTION.NAME "" or as it was in the training.'
            )
        if any("pos_embed" in text for text in shapes):
            lines.append("A ViT takes images of INPUT.SIZE_TRAIN of its training alone.")
        for what, keys in (
            ("missing in it", missing),
            ("left over", extra),
            ("of another shape", shapes),
        ):
            if keys:
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                lines.append(f"{len(keys)} tensors are {what}: {', '.join(keys[:3])}{more}.")
        lines.append("FastReID writes the config that it trained with to OUTPUT_DIR/config.yaml.")
        raise InputError("\n  ".join(lines))


def _places(keys: Sequence[str]) -> List[str]:
    """Modules that hold the attentions among some keys of a checkpoint."""
    found = (_ATTENTION.match(key) for key in keys)
    return sorted({match.group(1).rstrip(".") or "the model" for match in found if match})
