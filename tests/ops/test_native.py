"""Loading compiled kernels: what is found, what is refused, and what is said about it."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastreid_rib.ops import build, native


def unavailable(kind="cpu"):
    with pytest.raises(native.Unavailable) as caught:
        native.load(kind)
    return str(caught.value)


def test_what_is_not_built_is_said_with_the_command_that_builds_it(folders):
    for kind in build.KINDS:
        remedy = f"run `python -m fastreid_rib build-kernels --kind {kind}`"
        assert unavailable(kind) == f"the {kind} kernels are not built; {remedy}"


def test_what_is_built_meanwhile_is_found_once_and_called(folders, standin):
    unavailable()
    path = standin(folders[0] / "librib_cpu.so", description="here")
    library = native.load("cpu")
    assert native.load("cpu") is library and (library.path, library.description) == (path, "here")
    library.bound(native.BoundArgs(n=0))


@pytest.mark.parametrize("newest", [0, 1], ids=["package", "cache"])
def test_the_newest_comes_first(folders, standin, newest):
    paths = [standin(folder / "librib_cpu.so") for folder in folders]
    os.utime(str(paths[1 - newest]), (1, 1))
    assert native.load("cpu").path == paths[newest]


def test_the_other_comes_if_the_newest_is_of_no_use(folders, standin):
    paths = [standin(folder / "librib_cpu.so") for folder in folders]
    contents = bytearray(paths[1].read_bytes())
    contents[18:20] = b"\xf3\x00"  # e_machine: of another processor, RISC-V
    paths[1].write_bytes(contents)
    os.utime(str(paths[0]), (1, 1))
    assert native.load("cpu").path == paths[0]


def test_each_that_is_of_no_use_is_named(folders, standin):
    standin(folders[0] / "librib_cpu.so", abi=7)
    path = standin(folders[1] / "librib_cpu.so", flags=["-DWITHOUT_BOUND"])
    message = unavailable()
    assert f"its C interface is version 7, not {native.ABI_VERSION}" in message
    assert f"{path} cannot be used" in message and "rib_bound" in message
    assert str(folders[0]) in message
    assert message.endswith("run `python -m fastreid_rib build-kernels --kind cpu`")


def test_a_truncated_library_never_reaches_the_loader(folders, standin, tmp_path):
    # In a process of its own: the loader would die of SIGBUS, not raise.
    whole = standin(tmp_path / "whole.so", flags=["-static-libstdc++"])
    size = whole.stat().st_size
    folders[0].mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from fastreid_rib.ops import native\n"
        "native.PACKAGE_FOLDER = path = Path(sys.argv[1])\n"
        "contents = Path(sys.argv[2]).read_bytes()\n"
        "for size in map(int, sys.argv[3:]):\n"
        "    (path / 'librib_cpu.so').write_bytes(contents[:size])\n"
        "    try:\n"
        "        print(size, native.load('cpu').description)\n"
        "    except native.Unavailable as error:\n"
        "        print(size, 'truncated' in str(error))\n"
    )
    sizes = [0, 1, 63, 64, 1000, 4096, size // 2, size - 1, size]
    output = subprocess.run(
        [sys.executable, "-c", code, str(folders[0]), str(whole), *map(str, sizes)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    expected = [f"{part} True" for part in sizes[:-1]] + [f"{size} a stand-in"]
    assert output.splitlines() == expected


def test_a_cache_that_others_can_write_is_refused(folders, standin):
    path = standin(folders[1] / "librib_cpu.so")
    for place in (path, path.parent, path.parent.parent):
        for mode in (0o775, 0o757):
            place.chmod(mode)
            message = unavailable()
            assert f"{place} can be written by others" in message and "chmod go-w" in message
        place.chmod(0o755)
    assert native.load("cpu").path == path


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_cache_of_another_user_is_refused(folders, standin, monkeypatch, what):
    path = standin(folders[1] / "librib_cpu.so")
    place = path if what == "file" else path.parent.parent
    if os.geteuid() == 0:  # whose files everyone trusts
        os.chown(str(place), 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "belongs to another user" in unavailable()


def test_without_a_home_there_is_no_cache(folders, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTREID_RIB_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert "are not built" in unavailable()


def test_the_cache_is_where_the_user_wants_it_and_belongs_to_these_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_RIB_CACHE", str(tmp_path))
    here = native.cache_folder()
    assert here.parent == tmp_path
    shutil.copytree(str(build.SOURCES), str(tmp_path / "csrc"))
    monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
    assert native.cache_folder().name == here.name
    with (tmp_path / "csrc" / "rib.h").open("a") as header:
        header.write("\n")
    assert native.cache_folder().name != here.name


def test_a_call_that_fails_says_what_to_do(folders, standin):
    path = standin(folders[0] / "librib_cuda.so")
    library = native.load("cuda")
    for code, remedy in (
        (35, "update the driver, or build them with an older toolkit: `NVCC="),
        (209, "build-kernels --kind cuda --arch native"),
        (222, "build-kernels --kind cuda --arch native"),
        (700, "the backend 'torch'"),
        (-1, "the backend 'torch'"),
    ):
        with pytest.raises(native.Unavailable) as caught:
            library.bound(native.BoundArgs(n=code))
        message = str(caught.value)
        assert remedy in message and str(path) in message
        assert f"error {code}, what the library says" in message


def test_the_structure_is_that_of_the_header(tmp_path, gxx):
    header = re.sub(r"/\*.*?\*/", "", (build.SOURCES / "rib.h").read_text(), flags=re.DOTALL)
    (body,) = re.findall(r"struct rib_bound_args {(.*?)} rib_bound_args;", header, flags=re.DOTALL)
    fields = [field for field, _ in native.BoundArgs._fields_]
    assert fields == re.findall(r"(\w+)\s*[,;]", body)
    lines, expected = [], []
    for field in fields:
        place = getattr(native.BoundArgs, field)
        lines.append(f"sizeof(rib_bound_args::{field}), offsetof(rib_bound_args, {field})")
        expected.append(f"{place.size} {place.offset}")
    lines.append("sizeof(rib_bound_args), size_t{RIB_ABI_VERSION}")
    expected.append(f"{ctypes.sizeof(native.BoundArgs)} {native.ABI_VERSION}")
    body = "".join(f'printf("%zu %zu\\n", {line});' for line in lines)
    source = tmp_path / "layout.cpp"
    source.write_text(
        f'#include <cstddef>\n#include <cstdio>\n#include "rib.h"\nint main() {{ {body} }}'
    )
    program = str(tmp_path / "layout")
    subprocess.run([gxx, f"-I{build.SOURCES}", str(source), "-o", program], check=True)
    output = subprocess.run([program], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert output.splitlines() == expected


def test_torch_s_openmp_runs_a_function_in_its_threads():
    address = native.gomp_parallel()
    if address is None:
        pytest.skip("torch has no OpenMP runtime here")
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    seen = []
    parallel = ctypes.CFUNCTYPE(None, task, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(address)
    parallel(task(lambda data: seen.append((data, threading.get_ident()))), 1234, 3, 0)
    assert [data for data, _ in seen] == [1234] * 3
    assert len({thread for _, thread in seen}) == 3
