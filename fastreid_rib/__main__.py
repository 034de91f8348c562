"""``python -m fastreid_rib doctor`` and ``python -m fastreid_rib build-kernels``."""

import argparse
import sys
from typing import List, Optional


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastreid_rib", description="fastreid-rib")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what is installed, repaired, missing")
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
        help="for which GPUs: native, all, or numbers as in 75,80 "
        "(default: native; all, if there is no GPU)",
    )
    kernels.add_argument(
        "--into",
        choices=("package", "cache"),
        help="where to (default: the installed package, or the user's cache if that cannot be "
        "written)",
    )
    arguments = parser.parse_args(argv)

    if arguments.command == "build-kernels":
        from fastreid_rib import build_kernels

        return build_kernels.main(arguments.kind, arguments.arch, arguments.into)

    from fastreid_rib import doctor

    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
