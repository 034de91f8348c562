"""Compile the kernels of ``csrc`` into plain shared libraries.

Standard library only, and nothing else of this package: ``setup.py`` loads this file by its path,
where neither torch nor the package can be imported.

Environment:
    CXX: the C++ compiler, instead of the g++ or clang++ on PATH.
    NVCC: the CUDA compiler, instead of the nvcc of CUDA_HOME, PATH or /usr/local/cuda.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional, Sequence

KINDS = ("cpu", "cuda")
"""Of libraries, and of the devices that they work on."""
SOURCES = Path(__file__).resolve().parent / "csrc"

# No -march: the source picks the instruction set at run time. No -fopenmp: threads are torch's.
# Without -fno-trapping-math the compiler vectorises exp badly.
_CPU = "-O3 -std=c++17 -shared -fPIC -fvisibility=hidden -fopenmp-simd -fno-math-errno"
_CUDA = "-O3 -std=c++17 -shared -cudart static --threads 0 -Xcompiler -fPIC,-fvisibility=hidden"
_FLAGS = {"cpu": f"{_CPU} -fno-trapping-math".split(), "cuda": _CUDA.split()}
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


def build(kind: str, folder: Path, architectures: Optional[Sequence[int]] = None) -> Path:
    """Builds a library.

    It appears whole or not at all, and a process that has an old one loaded keeps it.

    Args:
        kind: "cpu" or "cuda".
        folder: where it goes; is there.
        architectures: of GPUs, as nvcc numbers them; None: one of each generation that nvcc knows
            (CUDA 11.5 and newer).

    Returns:
        The file.

    Raises:
        BuildError: there is no compiler, or it failed.
        OSError: the folder cannot be written.
    """
    path = folder / library_name(kind)
    command = build_command(kind, architectures)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=str(folder)) as scratch:
        new = Path(scratch) / path.name
        try:
            result = subprocess.run(
                [*command, "-o", str(new)],
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
        new.chmod(0o755)  # whatever the umask: one that others can write would not be loaded
        new.replace(path)
    return path


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


def build_command(kind: str, architectures: Optional[Sequence[int]] = None) -> List[str]:
    """The compiler and its arguments, without what follows ``-o``; as :func:`build` runs it."""
    command = [compiler(kind), *_FLAGS[kind], str(SOURCES / _SOURCE[kind])]
    if kind == "cpu":
        return command
    if os.environ.get("CXX"):
        command += ["-ccbin", compiler("cpu")]
    if architectures is None:
        return [*command, "-arch=all-major"]
    # Code for each architecture, and PTX of the newest for the GPUs to come.
    wanted = sorted(set(architectures))
    codes = [(one, f"sm_{one}") for one in wanted] + [(wanted[-1], f"compute_{wanted[-1]}")]
    return command + [f"-gencode=arch=compute_{one},code={code}" for one, code in codes]
