"""Compile the kernels of ``csrc`` into plain shared libraries.

Standard library only, and nothing else of this package: ``setup.py`` loads this file by its path,
where neither torch nor the package can be imported.

Environment:
    CXX: the C++ compiler, instead of the g++ or clang++ on PATH.
    NVCC: the CUDA compiler, instead of the nvcc of CUDA_HOME, PATH or /usr/local/cuda.
"""

import contextlib
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

KINDS = ("cpu", "cuda")
SOURCES = Path(__file__).resolve().parent / "csrc"

_FLAGS = {
    # No -march: the source picks the instruction set at run time. No -fopenmp: threads are torch's.
    # Without -fno-trapping-math the compiler vectorises exp badly.
    "cpu": [
        "-O3",
        "-std=c++17",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-fopenmp-simd",
        "-fno-math-errno",
        "-fno-trapping-math",
    ],
    "cuda": [
        "-O3",
        "-std=c++17",
        "-shared",
        "-cudart",
        "static",
        "--threads",
        "0",
        "-Xcompiler",
        "-fPIC,-fvisibility=hidden",
    ],
}
_SOURCE = {"cpu": "rib_cpu.cpp", "cuda": "rib_cuda.cu"}


class BuildError(RuntimeError):
    """Kernels could not be built; the message holds the compiler's own words."""


class NoCompilerError(BuildError):
    """There is no compiler for the kernels that were asked for."""


def library_name(kind: str) -> str:
    """File name of the library of a kind, "cpu" or "cuda"."""
    return f"librib_{kind}.so"


def sources_digest() -> str:
    """40 hexadecimal digits that change with any of the sources."""
    digest = hashlib.sha1()
    for path in sorted(path for path in SOURCES.glob("*") if path.is_file()):
        digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def build(kind: str, folder: Path, architectures: Optional[Sequence[int]] = None) -> bool:
    """Builds a library, unless the folder holds what would come out; safe to call at any time.

    One process builds, others that want the same wait for it. The library appears whole or not at
    all, and a process that has the old one loaded keeps it.

    Args:
        kind: "cpu" or "cuda".
        folder: where it goes; is there.
        architectures: of GPUs, as nvcc numbers them; None: one of each generation that nvcc knows
            (CUDA 11.5 and newer).

    Returns:
        Whether it was built now.

    Raises:
        BuildError: there is no compiler, or it failed.
        OSError: the folder cannot be written.
    """
    command = _command(kind, architectures)
    path = folder / library_name(kind)
    with _locked(folder):
        if path.exists() and is_complete(path) and _build_id(command) in path.read_bytes():
            path.touch()  # loading tries the newest first: what was asked for last
            return False
        for leftover in folder.glob(".build-*"):
            shutil.rmtree(str(leftover), ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=str(folder)) as scratch:
            new = Path(scratch) / path.name
            _compile(kind, command, new)
            new.chmod(0o755)  # whatever the umask: one that others can write would not be loaded
            new.replace(path)
    return True


def compile_library(kind: str, path: Path) -> None:
    """Compiles a library for every generation of GPUs into ``path``, whose folder is there.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    _compile(kind, _command(kind, None), path)


def compiler(kind: str) -> str:
    """Path of the compiler for a kind, "cpu" or "cuda".

    Raises:
        NoCompilerError: there is none.
    """
    if not sys.platform.startswith("linux"):
        raise NoCompilerError(f"the kernels are built on Linux only, this is {sys.platform}")
    variable = "CXX" if kind == "cpu" else "NVCC"
    named = os.environ.get(variable)
    if named:
        candidates = [named]
    elif kind == "cpu":
        candidates = ["g++", "clang++", "c++"]
    else:
        home = os.environ.get("CUDA_HOME")
        candidates = [f"{home}/bin/nvcc"] if home else []
        candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise NoCompilerError(
        f"no compiler for the {kind} kernels: looked for {', '.join(candidates)}; "
        + ("install g++" if kind == "cpu" else "install the CUDA toolkit")
        + f", or set {variable} to the path of a compiler"
    )


def is_complete(path: Path) -> bool:
    """Whether an ELF file is as long as its header says; the loader dies of SIGBUS on a shorter.

    Linkers write the table of sections last, and the header says where it is.
    """
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (offset,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return path.stat().st_size >= offset + size * count


def _command(kind: str, architectures: Optional[Sequence[int]]) -> List[str]:
    """The compiler and its arguments, without the names of files."""
    command = [compiler(kind), *_FLAGS[kind]]
    if kind == "cuda":
        command += _targets(architectures)
        if os.environ.get("CXX"):
            command += ["-ccbin", compiler("cpu")]
    return command


def _targets(architectures: Optional[Sequence[int]]) -> List[str]:
    """Code for each architecture, and PTX of the newest for the GPUs to come."""
    if architectures is None:
        return ["-arch=all-major"]
    wanted = sorted(set(architectures))
    codes = [(one, f"sm_{one}") for one in wanted] + [(wanted[-1], f"compute_{wanted[-1]}")]
    return [f"-gencode=arch=compute_{one},code={code}" for one, code in codes]


def _build_id(command: Sequence[str]) -> bytes:
    """What goes into a library, in 20 bytes: compiler, arguments, sources; no paths."""
    ingredients = [_run([command[0], "--version"]), sources_digest(), *command[1:]]
    return hashlib.sha1("\n".join(ingredients).encode()).digest()


def _compile(kind: str, command: Sequence[str], path: Path) -> None:
    # ELF has a place for such an id, so the library says itself what it was made of.
    build_id = f"--build-id=0x{_build_id(command).hex()}"
    _run([*command, "-Xlinker", build_id, str(SOURCES / _SOURCE[kind]), "-o", str(path)])


def _run(command: Sequence[str]) -> str:
    """What a program prints.

    Raises:
        BuildError: it cannot be started, or fails; with what it printed.
    """
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not start: {error}") from None
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed:\n{result.stdout.strip()}")
    return result.stdout


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where setup.py loads this file too

    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
