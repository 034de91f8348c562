"""``python -m fastreid_rib doctor``."""

import argparse
import sys
from typing import List, Optional


def main(argv: Optional[List[str]] = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastreid_rib", description="fastreid-rib")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what is installed, repaired, missing")
    parser.parse_args(argv)

    from fastreid_rib import doctor

    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
