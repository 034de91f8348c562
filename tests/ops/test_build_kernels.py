"""The command build-kernels: what it builds, where to, what it says, its exit status."""

import os
import re

import pytest

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
    tools.add_gxx()
    status, (cpu, cuda) = command()
    assert status == 0
    assert cpu.startswith(f"cpu: built: {folders[0] / 'librib_cpu.so'} (CPU")
    assert cuda.startswith("cuda: left out: no compiler") and "set NVCC" in cuda
    assert native.load("cpu").path.parent == folders[0]
    assert command()[1][0].startswith("cpu: up to date: ")


def test_it_fails_if_nothing_could_be_built(command):
    status, lines = command()
    assert status == 1 and [line.split(":")[1] for line in lines] == [" left out"] * 2


@pytest.mark.parametrize("kind", ["cuda", "all"])
def test_what_is_asked_for_by_name_has_to_be_built(command, tools, kind):
    tools.add_gxx()
    status, lines = command("--kind", kind)
    assert status == 1 and lines[-1].startswith("cuda: failed: no compiler")
    assert len(lines) == (2 if kind == "all" else 1)


def test_the_words_of_a_failing_compiler_are_shown(command, tools):
    tools.add("g++", '[ "$1" = --version ] || { echo "the words of the compiler"; exit 1; }')
    status, lines = command()
    assert status == 1 and "the words of the compiler" in lines
    assert lines[0].startswith("cpu: failed: ")


def test_a_library_that_cannot_be_loaded_is_a_failure(command, tools, standin, folders):
    tools.add_nvcc("13.0", [90])
    standin(tools.folder / "of_nvcc.so", abi=5)
    status, (line,) = command("--kind", "cuda")
    assert status == 1
    assert line.startswith("cuda: failed: ") and "C interface is version 5" in line


@pytest.mark.parametrize("into", ["cache", None])
def test_the_cache_takes_what_the_package_cannot(command, tools, folders, monkeypatch, into):
    tools.add_gxx()
    package, cache = folders
    if into is None:
        monkeypatch.setattr(native, "PACKAGE_FOLDER", package.parent / "read-only" / "lib")
    status, lines = command("--kind", "cpu", *(["--into", into] if into else []))
    assert (status, native.load("cpu").path) == (0, cache / "librib_cpu.so")
    assert str(cache) in lines[0] and not package.exists()


def test_the_cache_can_be_loaded_from_whatever_the_umask(command, tools, folders):
    tools.add_gxx()
    before = os.umask(0)
    try:
        assert command("--kind", "cpu", "--into", "cache")[0] == 0
    finally:
        os.umask(before)
    assert native.load("cpu").path.parent == folders[1]


def test_a_package_that_cannot_be_written_is_named(command, tools, folders, monkeypatch):
    tools.add_gxx()
    monkeypatch.setattr(native, "PACKAGE_FOLDER", folders[0].parent / "read-only" / "lib")
    status, (line,) = command("--into", "package")
    assert status == 1 and "cannot be written" in line and "--into cache" in line


@pytest.mark.parametrize(
    ("gpus", "arch", "expected"),
    [
        (["8.6"], [], "sm_86 compute_86"),
        (["8.6"], ["--arch", "all"], "sm_80 sm_86 sm_90 compute_90"),
        (["8.6"], ["--arch", "native"], "sm_86 compute_86"),
        (["8.6"], ["--arch", "90,80"], "sm_80 sm_90 compute_90"),
        ([], [], "sm_80 sm_86 sm_90 compute_90"),
    ],
)
def test_for_the_gpus_of_the_machine_or_those_named(command, tools, gpus, arch, expected):
    tools.add_nvcc("12.4", [80, 86, 90])
    tools.add_nvidia_smi(*gpus)
    assert command("--kind", "cuda", *arch)[0] == 0
    (call,) = tools.calls("nvcc")
    assert " ".join(re.findall(r",code=(\w+)", call)) == expected


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("native", "nvidia-smi finds no GPU here; name the architectures"),
        ("8.0", "native, all, or numbers as in 75,80; got '8.0'"),
        ("70", "cannot build for 70: it knows 80, 90"),
    ],
)
def test_gpus_it_cannot_build_for(command, tools, arch, words):
    tools.add_nvcc("12.4", [80, 90])
    status, (line,) = command("--kind", "cuda", "--arch", arch)
    assert status == 1 and words in line
