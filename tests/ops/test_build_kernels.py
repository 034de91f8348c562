"""Compiling the kernels, and the command build-kernels: what is built, where to, what is said."""

import os
import re
import shutil
import sys

import pytest
import torch

from fastreid_rib.__main__ import main
from fastreid_rib.ops import build, native


@pytest.fixture
def command(folders, tools, capsys):
    """Runs the command; its exit status, and the lines it printed."""

    def run(*arguments):
        status = main(["build-kernels", *arguments])
        return status, capsys.readouterr().out.splitlines()

    return run


def test_it_builds_what_there_is_a_compiler_for_into_the_package(command, tools, folders):
    status, lines = command()
    assert status == 1 and [line.split(":")[1] for line in lines] == [" left out"] * 2
    tools.add_gxx()
    before = os.umask(0)
    try:
        status, (cpu, cuda) = command()
    finally:
        os.umask(before)
    path = folders[0] / "librib_cpu.so"
    assert status == 0 and cpu.startswith(f"cpu: built: {path} (CPU")
    assert cuda.startswith("cuda: left out: no compiler") and "set NVCC" in cuda
    assert native.load("cpu").path == path and list(folders[0].iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755  # else others could write it, and it is refused
    # What is asked for by name has to be built.
    status, (cpu, cuda) = command("--kind", "all")
    assert status == 1 and cuda.startswith("cuda: failed: no compiler")


def test_what_fails_is_shown_and_leaves_what_was_there(command, tools, standin, folders):
    half = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; echo "its own words"; exit 1'
    tools.add("g++", half)
    tools.add_nvcc("13.0")
    standin(tools.folder / "of_nvcc.so", abi=5)  # a library that cannot be loaded
    before = standin(folders[0] / "librib_cpu.so")
    status, lines = command()
    assert status == 1 and "its own words" in lines
    assert lines[0].startswith("cpu: failed: ")
    assert lines[-1].startswith("cuda: failed: ") and "C interface is version 5" in lines[-1]
    assert native.load("cpu").path == before
    assert {path.name for path in folders[0].iterdir()} == {"librib_cpu.so", "librib_cuda.so"}


@pytest.mark.parametrize("into", ["cache", None])
def test_the_cache_takes_what_the_package_cannot(command, tools, folders, monkeypatch, into):
    tools.add_gxx()
    package, cache = folders
    if into is None:
        monkeypatch.setattr(native, "PACKAGE_FOLDER", package.parent / "read-only" / "lib")
        status, (line,) = command("--into", "package")
        assert status == 1 and "cannot be written" in line and "--into cache" in line
    before = os.umask(0)  # whatever it is, the cache can be loaded from
    try:
        status, lines = command("--kind", "cpu", *(["--into", into] if into else []))
    finally:
        os.umask(before)
    assert (status, native.load("cpu").path) == (0, cache / "librib_cpu.so")
    assert str(cache) in lines[0] and not package.exists()


def test_for_which_gpus(command, tools, monkeypatch):
    tools.add_nvcc("12.4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for arch, words in (
        ("native", "torch sees no GPU here; name the architectures"),
        ("8.0", "native, all, or numbers as in 75,80; got '8.0'"),
    ):
        status, (line,) = command("--kind", "cuda", "--arch", arch)
        assert status == 1 and words in line
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(8, 6), (12, 0)].__getitem__)
    mine = tools.add("mine", "")
    monkeypatch.setenv("CXX", str(mine))  # nvcc's host compiler too
    for arch in ("all", "native", "90,80,90"):
        assert command("--kind", "cuda", "--arch", arch)[0] == 0
    every, *calls = tools.calls("nvcc")
    assert "-arch=all-major" in every and f"-ccbin {mine}" in every and "-gencode" not in every
    codes = [re.findall(r"arch=compute_(\d+),code=(\w+)", call) for call in calls]
    assert codes == [
        [("86", "sm_86"), ("120", "sm_120"), ("120", "compute_120")],
        [("80", "sm_80"), ("90", "sm_90"), ("90", "compute_90")],
    ]


def test_compilers_are_found_or_named(tools, monkeypatch):
    for kind, words in (("cpu", r"g\+\+, clang\+\+, c\+\+; .* set CXX"), ("cuda", "set NVCC")):
        with pytest.raises(build.NoCompilerError, match=words):
            build.compiler(kind)
    clang = tools.add("clang++", "")
    assert build.compiler("cpu") == str(clang)
    mine = tools.add("mine", "")
    monkeypatch.setenv("CXX", str(mine))
    assert build.compiler("cpu") == str(mine)
    monkeypatch.setenv("CXX", "not-there")
    with pytest.raises(build.NoCompilerError, match="looked for not-there"):
        build.compiler("cpu")
    monkeypatch.delenv("NVCC")
    home = tools.folder / "home"
    (home / "bin").mkdir(parents=True)
    shutil.copy(str(mine), str(home / "bin" / "nvcc"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build.compiler("cuda") == str(home / "bin" / "nvcc")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(build.NoCompilerError, match="on Linux only, this is win32"):
        build.compiler("cpu")
