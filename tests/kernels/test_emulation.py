"""The CUDA kernels run under an emulation of thread blocks; and the emulation is tested first."""

import contextlib
import re
import shutil

import mutate
import pytest
import torch
from emulation import (
    ASAN,
    HERE,
    PLAIN,
    RANDOM,
    TSAN,
    Setup,
    compile_program,
    complaint,
    run_program,
)

from fastreid_rib.ops import native, proof, rows

# The programs know nothing of Python and torch: to run them on one stack is enough.
pytestmark = [
    pytest.mark.today_only,
    pytest.mark.skipif(
        not shutil.which("g++"), reason="no g++ on PATH to compile the kernels with"
    ),
]

BUGS = ("gamma: left out of the gradient", "the cache of another thread is read")
NEIGHBOURS = [63, *range(63)]
SANITIZERS = [pytest.param(build, marks=pytest.mark.all_only) for build in (ASAN, TSAN)]


class Programs(dict):
    """Paths of the programs by name and build, compiled when asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __missing__(self, key):
        name, build = key
        self[key] = self.folder / f"{name}-{len(self)}"
        compile_program(HERE / f"{name}.cpp", build, self[key])
        return self[key]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """``programs["check_rows", ASAN]``."""
    return Programs(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="module")
def simt(programs):
    """Runs a small kernel: ``simt("sum_warps", PLAIN, order=7)``."""

    def run(kernel, build, order=0):
        return run_program(programs["check_simt", build], kernel, order)

    return run


def numbers(result):
    assert complaint(result) == "", result.stdout
    return [float(number) for number in result.stdout.splitlines()[-1].split()]


# The emulation itself


@pytest.mark.parametrize("build", [PLAIN, *SANITIZERS], ids=lambda build: build.name)
@pytest.mark.parametrize("order", [0, 7])
def test_right_kernels(simt, build, order):
    # Two blocks of two warps: 0 + .. + 31 and 32 + .. + 63, plus 1000 for each block.
    assert numbers(simt("sum_warps", build, order)) == ([2496] * 32 + [3520] * 32) * 2
    assert numbers(simt("left_neighbour", build, order))[:64] == NEIGHBOURS
    assert numbers(simt("count_threads", build, order))[0] == 192


def test_order_of_blocks(simt):
    last = {int(numbers(simt("name_last_block", PLAIN, order))[0]) for order in range(1, 9)}
    assert len(last) > 2
    assert numbers(simt("name_last_block", PLAIN, 0))[0] == 7


def test_race_in_shared_memory(simt):
    kernel = "left_neighbour_unsynchronised"
    # By number, every thread finds what it needs; in a random order some come too early.
    assert numbers(simt(kernel, PLAIN))[:64] == NEIGHBOURS
    assert "nan" in simt(kernel, PLAIN, order=7).stdout


@pytest.mark.all_only
@pytest.mark.parametrize(
    "kernel", ["left_neighbour_unsynchronised", "race_between_barriers", "race_of_blocks"]
)
@pytest.mark.parametrize("order", [0, 7])
def test_races_in_memory(simt, kernel, order):
    assert complaint(simt(kernel, TSAN, order)) == "data race"


@pytest.mark.parametrize("build", [PLAIN, *SANITIZERS], ids=lambda build: build.name)
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("barrier_in_branch", "32 threads at __syncthreads, 0 at a shuffle, 32 returned"),
        ("barrier_after_return", "63 threads at __syncthreads, 0 at a shuffle, 1 returned"),
        ("shuffle_of_half_a_warp", "0 threads at __syncthreads, 16 at a shuffle, 48 returned"),
        ("different_shuffles", "lanes of a warp meet in different shuffles"),
        ("shuffle_with_next_warp", "a shuffle reads a lane that a warp does not have"),
    ],
)
def test_threads_that_do_not_meet(simt, build, kernel, message):
    result = simt(kernel, build)
    assert result.returncode != 0
    assert message in result.stdout
    assert complaint(result) in ("deadlock", message)


@pytest.mark.all_only
def test_overrun_of_shared_memory(simt):
    assert complaint(simt("write_past_shared", ASAN)) == "heap-buffer-overflow"


def test_unwritten_shared_memory_is_nan(simt):
    assert simt("read_unwritten_shared", PLAIN).stdout.count("nan") == 64


def test_conversions(simt):
    half = [0, 0, 2**-24, 1023 * 2**-24, 2**-14, 0x555 * 2**-12, 1, -2, 65504, -float("inf")]
    bfloat = [0, 0, 2**-133, 0xAB * 2**-9, 1, -2, -float("inf")]
    result = simt("conversions", PLAIN).stdout.split()
    assert [float(number) for number in result[:10]] == pytest.approx(half, rel=1e-8, abs=0)
    assert [float(number) for number in result[11:18]] == pytest.approx(bfloat, rel=1e-8, abs=0)
    assert [result[1], result[10], result[12], result[18]] == ["-0", "nan", "-0", "nan"]


def test_launches_that_a_gpu_refuses(simt):
    # 9: configuration, 1: value, as in CUDA; each is reported once. The last launch runs.
    assert numbers(simt("refusals", PLAIN)) == [9, 0, 9, 0, 1, 0, 1, 0, 0, 0, 1]


# The kernels


@pytest.mark.parametrize(
    ("setup", "rounds", "seed"),
    [
        (PLAIN, 3, 1),
        (RANDOM, 6, 2),
        pytest.param(ASAN, 1, 3, marks=pytest.mark.all_only),
        pytest.param(TSAN, 1, 4, marks=pytest.mark.all_only),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_kernels(programs, setup, rounds, seed):
    build = PLAIN if setup is RANDOM else setup
    result = run_program(programs["check_rows", build], rounds, seed, setup.order)
    assert complaint(result) == "", result.stdout[-6000:]
    (cases,) = re.findall(r"(\d+) cases", result.stdout)
    assert int(cases) > 30 + 30 * rounds


# The injected bugs


def test_every_bug_still_has_its_place():
    assert len(mutate.MUTANTS) > 40
    for mutant in mutate.MUTANTS:
        assert mutate.mutated(mutant) != mutate.unchanged(), mutant.name
    with pytest.raises(ValueError, match=r"rows\.cuh has this text 0 times"):
        mutate.mutated(mutate.Mutant("gone", "no such line", ""))


@pytest.mark.all_only
def test_an_injected_bug_is_noticed():
    for name in BUGS:
        (mutant,) = [one for one in mutate.MUTANTS if one.name == name]
        (complaint,) = mutate.look_at(mutate.mutated(mutant), [RANDOM])
        assert "wrong" in complaint, name


@pytest.mark.parametrize(
    "bug", [None, *(pytest.param(bug, marks=pytest.mark.all_only) for bug in BUGS)]
)
def test_kernels_prove_themselves_to_torch(tmp_path, monkeypatch, bug):
    """What a GPU's first use does: ops.proof finds the kernels right, and these bugs in them."""
    mutants = {mutant.name: mutant for mutant in mutate.MUTANTS}
    sources = mutate.mutated(mutants[bug]) if bug else mutate.unchanged()
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    library = tmp_path / "librib_cuda.so"
    setup = Setup("library", ("-shared", "-fPIC"), 0)
    compile_program(HERE / "rib_library.cpp", setup, library, tmp_path, strict=False)
    monkeypatch.setattr(native, "_loaded", {"cuda": native.Library(library)})
    monkeypatch.setattr(rows, "placed", lambda arguments, device: contextlib.nullcontext())
    share = proof.compare("cuda", torch.device("cpu")).share
    assert share > 100 if bug else share < 0.25
