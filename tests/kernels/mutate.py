"""Puts one bug at a time into the CUDA kernels and shows which way of looking at them notices.

    python tests/kernels/mutate.py              all, as a table in Markdown: ten to twenty minutes
    python tests/kernels/mutate.py 3 17         the mutants of these numbers
    python tests/kernels/mutate.py --list       their names

Exit status 1 if nobody notices one of them, or if the unchanged kernels do not pass.
"""

import argparse
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

from emulation import HERE, KERNELS, SETUPS, Setup, compile_program, complaint, run_program

ROUNDS, SEED = 1, 3
"""Of check_rows."""


class Mutant(NamedTuple):
    """A bug: a text that the source has once, and what stands there instead."""

    name: str
    old: str
    new: str
    file: str = "rows.cuh"


def read_mutants() -> List[Mutant]:
    """The bugs of mutants.txt, which says how they are written."""
    entries = (HERE / "mutants.txt").read_text().split("\n=== ")[1:]
    found = []
    for entry in entries:
        title, body = entry.split("\n", 1)
        old, new = (body.rstrip("\n") + "\n").split("\n---\n")
        file, name = title.split(": ", 1)
        found.append(Mutant(name, old, new.rstrip("\n"), file))
    return found


MUTANTS = read_mutants()


def mutated(mutant: Mutant) -> Dict[str, str]:
    """The sources with the bug, by name of file.

    Raises:
        ValueError: the text that it replaces is not there, or there more than once.
    """
    sources = unchanged()
    count = sources[mutant.file].count(mutant.old)
    if count != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.file} has this text {count} times, not once:\n"
            f"{mutant.old}\nAdapt the mutant to the source."
        )
    sources[mutant.file] = sources[mutant.file].replace(mutant.old, mutant.new)
    return sources


def unchanged() -> Dict[str, str]:
    """The sources, by name of file."""
    return {path.name: path.read_text() for path in KERNELS.glob("*.*h")}


def look_at(sources: Dict[str, str], setups: Sequence[Setup] = SETUPS) -> List[str]:
    """What each setup has to complain of in these sources; empty where it notices nothing."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text)
        programs: Dict[Sequence[str], Path] = {}
        complaints = []
        for setup in setups:
            if setup.flags not in programs:
                programs[setup.flags] = folder / f"check_rows-{len(programs)}"
                # A bug may well be worth a warning, but it is not the compiler that is tested.
                compile_program(
                    HERE / "check_rows.cpp", setup, programs[setup.flags], folder, strict=False
                )
            result = run_program(programs[setup.flags], ROUNDS, SEED, setup.order)
            complaints.append(complaint(result))
    return complaints


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="1 is the first")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    args = parser.parse_args()
    if args.list:
        for number, mutant in enumerate(MUTANTS, 1):
            print(number, mutant.name)
        return 0
    if not shutil.which("g++"):
        parser.error("there is no g++ on PATH to compile the kernels with")
    wanted = [MUTANTS[number - 1] for number in args.numbers] or MUTANTS
    names = ["(none)", *(mutant.name for mutant in wanted)]
    print("| injected bug | " + " | ".join(setup.name for setup in SETUPS) + " |")
    print("| --- |" + " --- |" * len(SETUPS))
    unnoticed = []
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = pool.map(look_at, [unchanged(), *map(mutated, wanted)])
        for name, complaints in zip(names, rows):
            print(f"| {name} | " + " | ".join(one or "-" for one in complaints) + " |", flush=True)
            if any(complaints) == (name == "(none)"):
                unnoticed.append(name)
    for name in unnoticed:
        print(f"not as it should be: {name}", file=sys.stderr)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
