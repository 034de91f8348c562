"""Compiling the kernels: for which GPUs, one build for all who ask, nothing half-written."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastreid_rib.ops import build, native


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "libraries"
    made.mkdir()
    return made


@pytest.fixture
def sources(tmp_path, monkeypatch, standin):
    """A copy of the sources that may be changed, with a CPU library that compiles at once."""
    copy = tmp_path / "csrc"
    shutil.copytree(str(build.SOURCES), str(copy))
    (copy / "rib_cpu.cpp").write_text(standin.source)
    monkeypatch.setattr(build, "SOURCES", copy)
    return copy


def start_building(folder):
    # By its path, as setup.py does: it takes no torch, so the processes start at once.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(build.__file__).parent)!r})\n"
        "import build, pathlib\n"
        "print(build.build('cpu', pathlib.Path(sys.argv[1])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_it_is_built_when_something_has_changed_and_only_then(
    folder, tools, sources, monkeypatch, tmp_path
):
    tools.add_gxx()
    before = os.umask(0)
    try:
        assert build.build("cpu", folder) is True
    finally:
        os.umask(before)
    path = folder / "librib_cpu.so"
    assert path.stat().st_mode & 0o777 == 0o755  # else others could write it, and it is refused
    assert native.Library(path).description == "a stand-in"
    os.utime(str(path), (1, 1))
    # pip builds elsewhere than in the installed package: where the sources lie is no difference.
    sources = sources.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build.build("cpu", folder) is False and len(tools.calls("g++")) == 1
    assert path.stat().st_mtime > 1  # what is asked for is the newest, which loading tries first
    os.truncate(str(path), path.stat().st_size - 100)
    assert build.build("cpu", folder) is True
    with (sources / "rib.h").open("a") as header:
        header.write("// changed\n")
    assert build.build("cpu", folder) is True
    tools.add_gxx('if [ "$1" = --version ]; then echo "another version"; exit; fi')
    assert build.build("cpu", folder) is True
    assert build.build("cpu", folder) is False and files(folder) == ["librib_cpu.so"]


def test_a_compiler_that_fails_is_quoted_and_leaves_what_was_there(folder, tools, sources):
    tools.add_gxx()
    (folder / "librib_cpu.so").write_bytes(b"of an earlier build")
    (sources / "rib_cpu.cpp").write_text("#error the words of the compiler\n")
    with pytest.raises(build.BuildError, match="the words of the compiler"):
        build.build("cpu", folder)
    assert files(folder) == ["librib_cpu.so"]
    assert (folder / "librib_cpu.so").read_bytes() == b"of an earlier build"


def test_processes_that_want_the_same_share_one_build(folder, tools):
    tools.add_gxx("sleep 0.2")
    processes = [start_building(folder) for _ in range(3)]
    outputs = sorted(process.communicate()[0].strip() for process in processes)
    assert outputs == ["False"] * 2 + ["True"]
    assert len(tools.calls("g++")) == 1


def test_a_build_that_is_killed_leaves_nothing_half_written(folder, tools):
    # Writes half a library, and then takes forever.
    half = """
        PATH="{}"
        if [ "$1" = --version ]; then echo 1; exit; fi
        while [ "$1" != -o ]; do shift; done
        echo half > "$2"
        exec sleep 600
    """
    tools.add("g++", half.format(tools.real_path))
    process = start_building(folder)
    while not list(folder.rglob("librib_cpu.so")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "librib_cpu.so").exists()
    tools.add_gxx()
    assert build.build("cpu", folder) is True
    assert files(folder) == ["librib_cpu.so"]


def test_for_one_gpu_of_each_generation_or_those_that_are_named(folder, tools, monkeypatch):
    tools.add_nvcc("13.0")
    mine = tools.add("mine", "")
    monkeypatch.setenv("CXX", str(mine))  # nvcc's host compiler too
    build.build("cuda", folder)
    build.build("cuda", folder, [90, 80, 90])
    every, named = tools.calls("nvcc")
    assert "-arch=all-major" in every and f"-ccbin {mine}" in every and "-gencode" not in every
    codes = re.findall(r"-gencode=arch=compute_(\d+),code=(\w+)", named)
    assert codes == [("80", "sm_80"), ("90", "sm_90"), ("90", "compute_90")]
    assert "-arch" not in named


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
