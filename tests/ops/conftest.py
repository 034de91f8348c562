"""Compilers for the tests of building and loading: quick ones, broken ones, ones of other age."""

import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

from fastreid_rib.ops import build, native

# The C interface without kernels: a call returns its n.
STANDIN = """
#include "rib.h"
#ifndef ABI
#define ABI RIB_ABI_VERSION
#define DESCRIPTION "a stand-in"
#endif
extern "C" {
RIB_API int rib_abi(void) { return ABI; }
#ifndef WITHOUT_BOUND
RIB_API int rib_bound(const rib_bound_args *args) { return static_cast<int>(args->n); }
#endif
RIB_API const char *rib_error_text(int) { return "what the library says"; }
RIB_API const char *rib_describe(void) { return DESCRIPTION; }
}
"""


@pytest.fixture
def gxx():
    """Path of the real g++."""
    found = shutil.which("g++")
    if not found:
        pytest.skip("needs g++")
    return found


@pytest.fixture
def standin(tmp_path, gxx):
    """Compiles a library without kernels: ``standin(path, abi=1, description="")``."""

    environment = dict(os.environ)  # before `tools` takes the assembler off PATH

    def compile_standin(path, abi=native.ABI_VERSION, description="a stand-in", flags=()):
        source = tmp_path / "standin.cpp"
        source.write_text(STANDIN)
        path.parent.mkdir(parents=True, exist_ok=True)
        defines = [f"-DABI={abi}", f'-DDESCRIPTION="{description}"', f"-I{build.SOURCES}"]
        command = [gxx, "-shared", "-fPIC", *defines, *flags, source, "-o", path]
        subprocess.run([str(part) for part in command], check=True, env=environment)
        path.chmod(0o755)
        return path

    return compile_standin


class Tools:
    """A PATH of its own with the programs that are asked for, each of which keeps a log."""

    def __init__(self, folder, gxx, standin):
        self.folder = folder
        self.real_path = os.environ["PATH"]
        self._gxx = gxx
        self._standin = standin

    def add(self, name, body):
        script = self.folder / name
        log = self.folder / f"{name}.log"
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{textwrap.dedent(body)}\n')
        script.chmod(0o755)
        return script

    def add_gxx(self):
        """The real one, that takes less time over it."""
        return self.add("g++", f'PATH="{self.real_path}"\nexec {self._gxx} "$@" -O0')

    def add_nvcc(self, release):
        """One that gives out a library of no use."""
        library = self._standin(self.folder / "of_nvcc.so", description="of nvcc")
        return self.add(
            "nvcc",
            f"""
            if [ "$1" = --version ]; then echo "release {release}"; exit; fi
            PATH="{self.real_path}"
            while [ "$1" != -o ]; do shift; done
            exec cp {library} "$2"
            """,
        )

    def calls(self, name):
        """The arguments of each compilation so far."""
        log = self.folder / f"{name}.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if " -o " in line]


@pytest.fixture
def tools(tmp_path, gxx, standin, monkeypatch):
    """An empty PATH to put programs into; no nvcc outside it is found either."""
    folder = tmp_path / "bin"
    folder.mkdir()
    made = Tools(folder, gxx, standin)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("NVCC", "nvcc")  # without it, /usr/local/cuda is looked at too
    monkeypatch.setenv("PATH", str(folder))
    return made


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The package's folder of libraries and the user's, both inside ``tmp_path``, not there yet."""
    package = tmp_path / "package" / "lib"
    package.parent.mkdir()
    monkeypatch.setattr(native, "PACKAGE_FOLDER", package)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setenv("FASTREID_RIB_CACHE", str(tmp_path / "cache"))
    return package, Path(native.cache_folder())
