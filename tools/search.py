"""Searches the widths of a backbone, derives a network, and trains it: one command.

    python tools/search.py --config-file configs/search/synthetic.yml
    python tools/search.py --config-file FILE --start config MODEL.SEARCH.TARGET 0.4

Both trainings are runs of tools/train_net.py: the search with MODEL.SEARCH.ENABLED True, and then
OUTPUT_DIR/searched.yml, which FastReID's own train_net.py trains as well.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def main():
    """Runs what the command line asks for; a training that fails ends it with its status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--start",
        choices=("supernet", "config"),
        default="supernet",
        help="where the derived network starts: from the supernet's weights (the default), or as "
        "the config says, from pretrained weights or from scratch",
    )
    parser.add_argument("--only-search", action="store_true", help="do not train what was found")
    parser.add_argument("--resume", action="store_true", help="go on with what was interrupted")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")
    args = parser.parse_args()

    folder = output_folder(args.config_file, args.opts)
    run(args, args.config_file, [*args.opts, "MODEL.SEARCH.ENABLED", "True"])
    if args.only_search:
        return
    start = ["MODEL.WEIGHTS", ""] if args.start == "config" else []
    run(args, str(folder / "searched.yml"), start)


def output_folder(config_file, opts):
    """OUTPUT_DIR of the search."""
    import fastreid_rib  # noqa: F401  before FastReID, also where the .pth file is not installed

    # isort: split
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.merge_from_list(opts)
    return Path(cfg.OUTPUT_DIR)


def run(args, config_file, opts):
    """One training; its failure is this program's."""
    command = [sys.executable, str(REPOSITORY / "tools" / "train_net.py")]
    command += ["--config-file", config_file, "--num-gpus", str(args.num_gpus)]
    command += ["--resume"] * args.resume
    status = subprocess.run(command + opts, env=os.environ).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
