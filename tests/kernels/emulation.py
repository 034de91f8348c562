"""Compiles programs over the emulation of CUDA with g++ and runs them, in four ways."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple, Sequence, Tuple

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "fastreid_rib" / "ops" / "csrc"


class Setup(NamedTuple):
    """A build, and the order in which the threads run."""

    name: str
    flags: Tuple[str, ...]
    order: int
    """Seed; 0: by number."""


PLAIN = Setup("plain, in order", (), 0)
RANDOM = Setup("plain, random order", (), 7)
ASAN = Setup("ASan + UBSan", ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"), 7)
TSAN = Setup("TSan", ("-fsanitize=thread",), 7)
SETUPS = (PLAIN, RANDOM, ASAN, TSAN)

_ENVIRONMENT = {
    # The memory of a program that was ended in the middle of a block is not a leak.
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}


def compile_program(
    source: Path, setup: Setup, program: Path, kernels: Path = KERNELS, strict: bool = True
) -> None:
    """Compiles a program of this folder; without optimisation, as most of the time goes there.

    Args:
        source: the C++ file.
        setup: whose flags are used.
        program: where it goes.
        kernels: the folder of rows.cuh, launch.h and rib.h.
        strict: take a compiler's warning for an error.

    Raises:
        RuntimeError: with what the compiler says.
    """
    command = ["g++", "-std=c++17", "-O0", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command += ["-Werror"] if strict else []
    command += [*setup.flags, f"-I{HERE}", f"-I{kernels}", str(source), "-o", str(program)]
    result = _run(command)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")


def run_program(program: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Runs a compiled program; stdout and stderr come back together, in ``stdout``."""
    command = [str(program), *map(str, arguments)]
    environment = dict(os.environ, **_ENVIRONMENT)
    result = _run(command, env=environment)
    # Kernels that scatter addresses widely (vm.mmap_rnd_bits 32) are too much for older TSan.
    if "ThreadSanitizer: unexpected memory mapping" in result.stdout and shutil.which("setarch"):
        result = _run(["setarch", "--addr-no-randomize", *command], env=environment)
    return result


def complaint(result: "subprocess.CompletedProcess[str]") -> str:
    """What a run found, in a few words; empty if nothing."""
    if result.returncode == 0:
        return ""
    for pattern in (
        r"ERROR: (?:Address|Thread)Sanitizer: (\S+)",
        r"runtime error: (.{0,40})",
        r"WARNING: ThreadSanitizer: ([^(\n]*)",
        r"simt: ([^:(\n]*)",
    ):
        found = re.search(pattern, result.stdout)
        if found:
            return found.group(1).strip()
    failures = len(re.findall("^FAIL", result.stdout, re.MULTILINE))
    if failures:
        return f"{failures} wrong"
    code = result.returncode
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _run(command: Sequence[str], **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # type: ignore[call-overload]
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=300,
        **options,
    )
