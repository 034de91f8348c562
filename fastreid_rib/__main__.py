"""``python -m fastreid_rib doctor``, ``build-kernels``, ``export``, ``cost``, ``information``."""

import argparse
import importlib
import sys
from typing import Any, List, Optional


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command and returns its exit status; what it cannot do it says, in a line."""
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    module = importlib.import_module(f"fastreid_rib.commands.{command.replace('-', '_')}")
    try:
        return module.main(**arguments) or 0
    except (ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
        print(f"{command}: {error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    """A command is a module of ``commands``; its arguments are those of the module's ``main``."""
    parser = argparse.ArgumentParser(prog="python -m fastreid_rib", description="fastreid-rib")
    commands = parser.add_subparsers(dest="command", required=True)
    examining = commands.add_parser(
        "doctor", help="what is installed, repaired, missing; what would stop or spoil a training"
    )
    _add_config(examining, help="of a training that is to be looked at")
    kernels = commands.add_parser(
        "build-kernels",
        help="compile the kernels of the loss on this machine",
        epilog="The compilers are g++ or clang++, and nvcc; CXX and NVCC name others.",
    )
    kernels.add_argument(
        "--kind",
        choices=("cpu", "cuda", "all"),
        help="which (default: each for which there is a compiler)",
    )
    kernels.add_argument(
        "--arch",
        help="for which GPUs: native (those of this machine), numbers as in 75,80, or all (the "
        "default: one of each generation)",
    )
    kernels.add_argument(
        "--into",
        choices=("package", "cache"),
        help="where to (default: the installed package, or the user's cache if that cannot be "
        "written)",
    )
    exporting = commands.add_parser(
        "export",
        help="write a checkpoint and its config for FastReID without this plugin",
        epilog="What RIB keeps for its next epochs is left out. Attention is part of the network "
        "and stays: such a model needs the plugin.",
    )
    exporting.add_argument("checkpoint", help="a checkpoint, as in logs/model_final.pth")
    trained = "the config it was trained with (default: config.yaml beside the checkpoint)"
    _add_config(exporting, help=trained, opts=False)
    exporting.add_argument(
        "--output",
        dest="folder",
        metavar="FOLDER",
        required=True,
        help="where both go; nothing is overwritten",
    )
    exporting.add_argument(
        "--embedding-dim",
        type=int,
        metavar="N",
        help="fit the neck to the training set: N numbers an image that tell identities apart "
        "best; 0: as many as can",
    )
    told = "parameters and multiply-adds of the network that a config asks for"
    _add_config(commands.add_parser("cost", help=told), required=True)
    informing = commands.add_parser(
        "information",
        help="draw the information plane of a training, epoch by epoch, from its checkpoints",
        epilog="What the embeddings keep of the pixels, what they tell about the identity, and the "
        "bounds. SOLVER.CHECKPOINT_PERIOD says how many checkpoints a training writes.",
    )
    informing.add_argument("folder", metavar="RUN_FOLDER", help="of the training, as in logs")
    trained = "the config it was trained with (default: config.yaml in the folder)"
    _add_config(informing, help=trained)
    return parser


def _add_config(parser: argparse.ArgumentParser, opts: bool = True, **settings: Any) -> None:
    parser.add_argument("--config-file", "--config", metavar="FILE", **settings)
    if opts:
        parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of it")


if __name__ == "__main__":
    sys.exit(main())
