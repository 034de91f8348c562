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

TOOLKITS = {
    # release: what its nvcc has code for, what of it is built
    "11.7": ([35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87], [60, 70, 75, 80, 86]),
    "12.4": (
        [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90],
        [60, 70, 75, 80, 86, 89, 90],
    ),
    "13.0": ([75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121], [75, 80, 86, 89, 90, 100, 120]),
}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "libraries"
    made.mkdir()
    return made


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the sources that may be changed."""
    copy = tmp_path / "csrc"
    shutil.copytree(str(build.SOURCES), str(copy))
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


def test_the_library_can_be_loaded_and_is_built_once(folder, tools):
    tools.add_gxx()
    assert build.build("cpu", folder) is True
    assert native.Library(folder / "librib_cpu.so").description.startswith("CPU")
    assert build.build("cpu", folder) is False
    assert len(tools.calls("g++")) == 1 and files(folder) == ["librib_cpu.so"]


def test_it_is_built_anew_when_the_sources_or_the_compiler_have_changed(folder, tools, sources):
    tools.add_gxx()
    build.build("cpu", folder)
    with (sources / "rib.h").open("a") as header:
        header.write("// changed\n")
    assert build.build("cpu", folder) is True
    tools.add_gxx('if [ "$1" = --version ]; then echo "another version"; exit; fi')
    assert build.build("cpu", folder) is True
    assert build.build("cpu", folder) is False


def test_where_the_sources_lie_makes_no_difference(folder, tools, sources, monkeypatch, tmp_path):
    # pip builds elsewhere than in the installed package.
    tools.add_gxx()
    build.build("cpu", folder)
    monkeypatch.setattr(build, "SOURCES", sources.rename(tmp_path / "elsewhere"))
    assert build.build("cpu", folder) is False


def test_a_truncated_library_is_built_anew(folder, tools):
    tools.add_gxx()
    build.build("cpu", folder)
    path = folder / "librib_cpu.so"
    os.truncate(str(path), path.stat().st_size - 100)
    assert build.build("cpu", folder) is True
    assert native.Library(path).description.startswith("CPU")


def test_what_is_asked_for_becomes_the_newest(folder, tools):
    # Loading tries the newest first.
    tools.add_gxx()
    build.build("cpu", folder)
    path = folder / "librib_cpu.so"
    os.utime(str(path), (1, 1))
    build.build("cpu", folder)
    assert path.stat().st_mtime > 1


def test_the_library_cannot_be_written_by_others_whatever_the_umask(folder, tools):
    tools.add_gxx()
    before = os.umask(0)
    try:
        build.build("cpu", folder)
    finally:
        os.umask(before)
    assert (folder / "librib_cpu.so").stat().st_mode & 0o777 == 0o755


def test_a_compiler_that_fails_is_quoted_and_leaves_what_was_there(folder, tools, sources):
    tools.add_gxx()
    build.build("cpu", folder)
    before = (folder / "librib_cpu.so").read_bytes()
    (sources / "rib_cpu.cpp").write_text("#error the words of the compiler\n")
    with pytest.raises(build.BuildError, match="the words of the compiler"):
        build.build("cpu", folder)
    assert files(folder) == ["librib_cpu.so"]
    assert (folder / "librib_cpu.so").read_bytes() == before


def test_processes_that_want_the_same_share_one_build(folder, tools):
    tools.add_gxx("sleep 0.2")
    processes = [start_building(folder) for _ in range(5)]
    outputs = sorted(process.communicate()[0].strip() for process in processes)
    assert outputs == ["False"] * 4 + ["True"]
    assert len(tools.calls("g++")) == 1
    assert native.Library(folder / "librib_cpu.so").description.startswith("CPU")


def test_a_build_that_is_killed_leaves_nothing_half_written(folder, tools):
    # Writes half a library, and then takes forever.
    tools.add(
        "g++",
        f"""
        PATH="{tools.real_path}"
        if [ "$1" = --version ]; then echo 1; exit; fi
        while [ "$1" != -o ]; do shift; done
        echo half > "$2"
        exec sleep 600
        """,
    )
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


@pytest.mark.parametrize("release", TOOLKITS)
def test_each_toolkit_builds_for_the_gpus_it_knows(folder, tools, release):
    known, expected = TOOLKITS[release]
    tools.add_nvcc(release, known)
    build.build("cuda", folder)
    (call,) = tools.calls("nvcc")
    gencode = re.findall(r"-gencode=arch=compute_(\d+),code=(\w+)", call)
    newest = expected[-1]
    codes = [(str(one), f"sm_{one}") for one in expected]
    assert gencode == [*codes, (str(newest), f"compute_{newest}")]
    listed = " ".join(f"sm_{one}" for one in expected)
    assert f'-DRIB_DESCRIPTION="CUDA {release}, {listed}, PTX {newest}"' in call


def test_gpus_can_be_named_and_others_make_another_build(folder, tools):
    tools.add_nvcc("13.0", [80, 90])
    build.build("cuda", folder, [90, 80, 90])
    build.build("cuda", folder, [90])
    both, one = (re.findall(r",code=(\w+)", call) for call in tools.calls("nvcc"))
    assert both == ["sm_80", "sm_90", "compute_90"] and one == ["sm_90", "compute_90"]


def test_a_gpu_that_nvcc_does_not_know_is_refused(folder, tools):
    nvcc = tools.add_nvcc("13.0", [75, 80])
    with pytest.raises(build.BuildError) as caught:
        build.build("cuda", folder, [70, 80])
    assert str(caught.value).startswith(f"{nvcc} (CUDA 13.0) cannot build for 70: it knows 75, 80.")
    assert "NVCC" in str(caught.value) and files(folder) == []


def test_a_toolkit_that_knows_none_of_ours_is_refused(folder, tools):
    tools.add_nvcc("10.0", [30, 35])
    with pytest.raises(build.BuildError, match="cannot build for any of ours: it knows 30, 35"):
        build.build("cuda", folder)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], []),
        (["8.6", "8.0", "8.6"], [80, 86]),
        (["10.3", "12.0"], [100]),  # too new for this nvcc
        (["6.1"], [61]),  # too old: the build will say so
        (["[N/A]"], []),
    ],
)
def test_the_gpus_of_the_machine(tools, capabilities, expected):
    tools.add_nvcc("12.7", [75, 80, 86, 90, 100])
    tools.add_nvidia_smi(*capabilities)
    assert build.native_architectures() == expected


def test_a_driver_that_does_not_answer_is_no_gpu(tools):
    assert build.native_architectures() == []
    tools.add("nvidia-smi", "echo NVIDIA-SMI has failed 12.0; exit 9")
    assert build.native_architectures() == []


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


def test_the_host_compiler_that_is_named_is_nvcc_s_too(folder, tools, monkeypatch):
    tools.add_nvcc("13.0", [90])
    mine = tools.add("mine", "")
    monkeypatch.setenv("CXX", str(mine))
    build.build("cuda", folder)
    assert f"-ccbin {mine}" in tools.calls("nvcc")[0]
