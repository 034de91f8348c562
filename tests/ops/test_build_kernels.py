"""The command build-kernels: what it builds, where to, what it says, its exit status."""

import os
import re

import pytest
import torch

from fastreid_rib.__main__ import main
from fastreid_rib.ops import native


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
    status, (cpu, cuda) = command()
    assert status == 0
    assert cpu.startswith(f"cpu: built: {folders[0] / 'librib_cpu.so'} (CPU")
    assert cuda.startswith("cuda: left out: no compiler") and "set NVCC" in cuda
    assert native.load("cpu").path.parent == folders[0]
    # What is asked for by name has to be built.
    status, (cpu, cuda) = command("--kind", "all")
    assert status == 1 and cuda.startswith("cuda: failed: no compiler")
    assert cpu.startswith("cpu: up to date: ")


def test_what_fails_is_shown(command, tools, standin):
    tools.add("g++", '[ "$1" = --version ] || { echo "the words of the compiler"; exit 1; }')
    tools.add_nvcc("13.0")
    standin(tools.folder / "of_nvcc.so", abi=5)  # a library that cannot be loaded
    status, lines = command()
    assert status == 1 and "the words of the compiler" in lines
    assert lines[0].startswith("cpu: failed: ")
    assert lines[-1].startswith("cuda: failed: ") and "C interface is version 5" in lines[-1]


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
    for arch in ("all", "native", "90,80"):
        assert command("--kind", "cuda", "--arch", arch)[0] == 0
    every, *calls = tools.calls("nvcc")
    assert "-arch=all-major" in every
    codes = [" ".join(re.findall(r",code=(\w+)", call)) for call in calls]
    assert codes == ["sm_86 sm_120 compute_120", "sm_80 sm_90 compute_90"]
