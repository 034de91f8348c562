"""Puts one bug at a time into the CUDA kernels and shows which way of looking at them notices.

    python tests/kernels/mutate.py              all, as a table in Markdown: ten to twenty minutes
    python tests/kernels/mutate.py 3 17         the mutants of these numbers
    python tests/kernels/mutate.py --list       their names

Exit status 1 if nobody notices one of them, or if the unchanged kernels do not pass.
"""

import argparse
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

from emulation import HERE, KERNELS, SETUPS, Setup, compile_program, complaint, run_program

ROUNDS, SEED = 1, 3
"""Of check_rows."""


class Mutant(NamedTuple):
    """A bug: a text that the source has once, and what stands there instead."""

    name: str
    old: str
    new: str
    file: str = "rows.cuh"


_SCRATCH_BARRIER = """        scratch[3 * kMaxWarps + warp] = a.ratio;
    }
    __syncthreads();
"""
_SUM_BARRIER = "scratch[4 * kMaxWarps + warp] = value;\n    __syncthreads();\n"

MUTANTS = [
    # Threads that meet
    Mutant(
        "no barrier before the warps' averages are merged",
        _SCRATCH_BARRIER,
        _SCRATCH_BARRIER.replace("    __syncthreads();\n", ""),
    ),
    Mutant(
        "that barrier in a branch",
        _SCRATCH_BARRIER,
        _SCRATCH_BARRIER.replace("__syncthreads", "if (warp) __syncthreads"),
    ),
    Mutant(
        "averages of half a warp are merged",
        "int distance = kWarpSize / 2; distance > 0; distance /= 2) {\n        Average",
        "int distance = kWarpSize / 4; distance > 0; distance /= 2) {\n        Average",
    ),
    Mutant(
        "half of the warps are merged",
        "    if (lane < warps) {\n",
        "    if (lane < (warps + 1) / 2) {\n",
    ),
    Mutant(
        "averages of all 32 warps are merged, whatever their number",
        "    if (lane < warps) {\n",
        "    if (lane < kMaxWarps) {\n",
    ),
    Mutant(
        "a shuffle by half a warp only",
        "    a = merge_warp<FORM>(a, gamma);\n    if (lane == 0) {",
        "    if (lane < 16) a = merge_warp<FORM>(a, gamma);\n    if (lane == 0) {",
    ),
    # The softmax average
    Mutant(
        "the weight does not follow the maximum",
        "factor * a.weight,\n",
        "a.weight,\n",
    ),
    Mutant(
        "exp(-inf - -inf) of empty threads",
        "return max == -INFINITY ? 0.f : max;",
        "return max;",
    ),
    Mutant(
        "the maximum starts at 0",
        "Average{-INFINITY, 0.f, 0.f, 0.f}",
        "Average{0.f, 0.f, 0.f, 0.f}",
    ),
    # Rows and columns
    Mutant(
        "one column too many (loop)",
        "for (int a = threadIdx.x * V; a < wide; a += blockDim.x * V) {\n"
        "        float x[V], q[V], log_p[V];\n"
        "        load_logits",
        "for (int a = threadIdx.x * V; a <= wide; a += blockDim.x * V) {\n"
        "        float x[V], q[V], log_p[V];\n"
        "        load_logits",
    ),
    Mutant(
        "one column too many (the last ones)",
        "    if (last < K) {\n        store_gradient<",
        "    if (last <= K) {\n        store_gradient<",
    ),
    Mutant(
        "the last columns are left out of the gradient",
        "    if (last < K) {\n        store_gradient<",
        "    if (last < wide) {\n        store_gradient<",
    ),
    Mutant(
        "rows found without the pitch",
        "    float* const cached_q = cached_x + (K + 3) / 4 * 4;\n"
        "    float* const row = p.products + blockIdx.x * p.products_pitch;",
        "    float* const cached_q = cached_x + (K + 3) / 4 * 4;\n"
        "    float* const row = p.products + blockIdx.x * p.K;",
    ),
    Mutant(
        "the log Q of the image's number, not of its identity",
        "static_cast<const T*>(p.log_q) + label * p.log_q_pitch;\n\n    Average",
        "static_cast<const T*>(p.log_q) + blockIdx.x * p.log_q_pitch;\n\n    Average",
    ),
    Mutant(
        "the cache of another thread is read",
        "            load<V>(cached_x + a, x);",
        "            load<V>(cached_x + (a + V) % wide, x);",
    ),
    Mutant(
        "the cache of log Q overlaps that of the logits",
        "cached_x + (K + 3) / 4 * 4;",
        "cached_x + K / 4 * 4;",
    ),
    Mutant("negative labels are not skipped", "label >= 0 && label < p.C", "label < p.C"),
    Mutant("label C is not skipped", "label >= 0 && label < p.C", "label >= 0 && label <= p.C"),
    Mutant(
        "skipped rows keep what was in them",
        "for (int a = threadIdx.x; a < (int)p.K; a += blockDim.x) row[a] = 0.f;",
        "",
    ),
    Mutant(
        "skipped rows are cleared with their padding",
        "a < (int)p.K; a += blockDim.x) row[a] = 0.f;",
        "a < (int)p.products_pitch; a += blockDim.x) row[a] = 0.f;",
    ),
    # gamma
    Mutant(
        "gamma: the loss without log of the weight",
        "means.score - gamma * logf(means.weight);",
        "means.score;",
    ),
    Mutant(
        "gamma: the sum does not follow the maximum",
        "factor * (a.score + gamma * (origin(a.max) - to) * a.weight)",
        "factor * a.score",
    ),
    Mutant(
        "gamma: the sum follows the maximum the wrong way",
        "gamma * (origin(a.max) - to)",
        "gamma * (to - origin(a.max))",
    ),
    Mutant(
        "gamma: left out of the gradient",
        "x[i] - means.max;\n        const Column<FORM> column(shifted, q[i], p[i], gamma);",
        "x[i] - means.max;\n        const Column<FORM> column(shifted, q[i], p[i], 0.f);",
    ),
    Mutant(
        "gamma: the logit, not its distance from the maximum",
        "column(shifted, q[i], p[i], gamma);\n        a.weight",
        "column(x[i], q[i], p[i], gamma);\n        a.weight",
    ),
    # The marginal
    Mutant(
        "marginal: not read",
        "    if (log_p) load<V>(log_p + a, to);\n",
        "",
    ),
    Mutant(
        "marginal: that of the first columns for all",
        "load<V>(log_p + a, to)",
        "load<V>(log_p, to)",
    ),
    Mutant(
        "marginal: 1 instead of 1 - gamma",
        "gamma * (shifted - p)",
        "gamma * shifted",
    ),
    Mutant(
        "marginal: the last columns do without",
        "last_q);\n        load_marginal<1>(p.log_p, last, last_p);",
        "last_q);\n        load_marginal<1>(nullptr, last, last_p);",
    ),
    # The embedding's form
    Mutant(
        "embedding: the ratios do not follow the maximum",
        ", factor * a.ratio}",
        ", a.ratio}",
    ),
    Mutant(
        "embedding: each lane doubles its own ratios",
        "__shfl_xor_sync(0xffffffffu, a.ratio, distance)",
        "a.ratio",
    ),
    Mutant(
        "embedding: the loss without log u",
        "loss - logf(means.ratio)",
        "loss",
    ),
    Mutant(
        "embedding: the likelihood is not divided by u",
        "phi * column.ratio * (1.f / means.ratio)",
        "phi * column.ratio",
    ),
    Mutant(
        "embedding: the ratio is divided by u before phi multiplies it",
        "phi * column.ratio * (1.f / means.ratio)",
        "phi * (column.ratio * (1.f / means.ratio))",
    ),
    Mutant(
        "embedding: the gradient of the likelihood alone",
        "gradient[i] += phi - phi * column",
        "gradient[i] = phi - phi * column",
    ),
    # Sparse rows
    Mutant(
        "sparse: no barrier before listed columns are overwritten",
        _SUM_BARRIER,
        _SUM_BARRIER.replace("    __syncthreads();\n", ""),
    ),
    Mutant(
        "sparse: no barrier before the corrections are added",
        "means.ratio;\n    __syncthreads();\n    for (int j",
        "means.ratio;\n    for (int j",
    ),
    Mutant(
        "sparse: sums and averages share their scratch",
        _SUM_BARRIER + "    return sum_warp(lane < warps ? scratch[4 * kMaxWarps + lane] : 0.f);",
        _SUM_BARRIER.replace("4 *", "2 *")
        + "    return sum_warp(lane < warps ? scratch[2 * kMaxWarps + lane] : 0.f);",
    ),
    Mutant(
        "sparse: the correction has the wrong sign",
        "floor - q : ",
        "q - floor : ",
    ),
    Mutant(
        "sparse: the mean without the corrections",
        "+= sum_block(correction, scratch)",
        "+= 0.f * sum_block(correction, scratch)",
    ),
    Mutant(
        "sparse: the floor of another identity",
        "floor[i] = p.floor[label];",
        "floor[i] = p.floor[0];",
    ),
    Mutant(
        "sparse: rows of index found by the pitch of log Q",
        "p.index + label * p.index_pitch",
        "p.index + label * p.log_q_pitch",
    ),
    Mutant(
        "sparse: entries of no column are read",
        "        if (index[j] < 0 || index[j] >= K) continue;\n",
        "",
    ),
    Mutant(
        "sparse: corrections are added to columns of the same number",
        "row[index[j]] += slope * corrections[j];",
        "row[j] += slope * corrections[j];",
    ),
    Mutant(
        "sparse: the corrections do without the marginal",
        "load_marginal<1>(p.log_p, index[j], log_p);",
        "load_marginal<1>(nullptr, index[j], log_p);",
    ),
    Mutant(
        "sparse: the marginal of columns of the same number",
        "load_marginal<1>(p.log_p, index[j], log_p);",
        "load_marginal<1>(p.log_p, j, log_p);",
    ),
    Mutant(
        "sparse: the ratios' corrections go to the scores",
        "(FORM == RIB_CLUSTERS ? means.score : means.ratio) +=",
        "means.score +=",
    ),
    Mutant(
        "sparse: the ratios' corrections are not divided by u",
        "1.f : -1.f / means.ratio;",
        "1.f : -1.f;",
    ),
    # The class table
    Mutant(
        "table: plain additions, not atomic ones",
        "atomicAdd(sums + a, phi);",
        "sums[a] += phi;",
    ),
    Mutant(
        "table: no barrier between the images of an identity",
        "        __syncthreads();  // before the next image's averages go to scratch\n",
        "",
    ),
    Mutant(
        "table: overwritten, not added to",
        "                sums[a] += phi;",
        "                sums[a] = phi;",
    ),
    Mutant(
        "table: images by their place, not by the order",
        "ordered ? p.order[place] : place,",
        "place,",
    ),
    Mutant(
        "table: the last image of an identity is left out",
        "for (int64_t place = begin; place < end; ++place)",
        "for (int64_t place = begin; place < end - ordered; ++place)",
    ),
    Mutant(
        "table: rows found by the pitch of the products",
        "p.table + label * p.table_pitch",
        "p.table + label * p.products_pitch",
    ),
    Mutant(
        "table: negentropy by place, not by image",
        "p.negentropy[image]",
        "p.negentropy[place]",
    ),
    Mutant(
        "table: negentropy without the log of the weight",
        "p.negentropy[image] = loss_of<RIB_CLUSTERS>(means, 1.f);",
        "p.negentropy[image] = means.score;",
    ),
    # Launches
    Mutant(
        "a float too little shared memory for the cache",
        "scratch + 2 * sizeof(float) * ((p.K + 3) / 4 * 4);",
        "scratch + 2 * sizeof(float) * ((p.K + 3) / 4 * 4) - sizeof(float);",
        "launch.h",
    ),
    Mutant(
        "shared memory for the m entries, none for the scratch",
        "scratch + sizeof(float) * p.m;",
        "sizeof(float) * p.m;",
        "launch.h",
    ),
    Mutant(
        "more than 48 KiB without asking",
        "if (shared_bytes > 48 * 1024)",
        "if (shared_bytes > 96 * 1024)",
        "launch.h",
    ),
    Mutant(
        "wide accesses whatever the address of log Q",
        " && aligned(p.log_q, 4 * sizeof(T))",
        "",
        "launch.h",
    ),
    Mutant(
        "wide accesses whatever the address of log P",
        "        aligned(p.log_p, 16) &&\n",
        "",
        "launch.h",
    ),
    Mutant(
        "wide accesses whatever the address of the products",
        "p.products_pitch % 4 == 0 && aligned(p.products, 16)",
        "p.products_pitch % 4 == 0",
        "launch.h",
    ),
    Mutant(
        "wide accesses whatever the pitch",
        "p.products_pitch % 4 == 0 && aligned(p.products, 16)",
        "aligned(p.products, 16)",
        "launch.h",
    ),
    Mutant(
        "scratch for four of the five sums",
        "kScratchFloats = 5 * kMaxWarps",
        "kScratchFloats = 4 * kMaxWarps",
    ),
    Mutant(
        "the forms are swapped",
        "p.form == RIB_EMBEDDING ?",
        "p.form != RIB_EMBEDDING ?",
        "launch.h",
    ),
    Mutant(
        "blocks that are not whole warps",
        "asked % kWarpSize || asked < 0",
        "asked < 0",
        "launch.h",
    ),
    Mutant(
        "a launch for no images",
        "    if (p.n == 0) return RIB_OK;\n    if (!pointers_given(p)) return RIB_EARG;\n"
        "    switch (p.log_q_dtype) {\n",
        "    switch (p.log_q_dtype) {\n",
        "launch.h",
    ),
    Mutant(
        "a block for every image, also by identity",
        "p.order ? p.C : p.n",
        "p.n",
        "launch.h",
    ),
]


def mutated(mutant: Mutant) -> Dict[str, str]:
    """The sources with the bug, by name of file.

    Raises:
        ValueError: the text that it replaces is not there, or there more than once.
    """
    sources = unchanged()
    count = sources[mutant.file].count(mutant.old)
    if count != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.file} has this text {count} times, not once:\n"
            f"{mutant.old}\nAdapt the mutant to the source."
        )
    sources[mutant.file] = sources[mutant.file].replace(mutant.old, mutant.new)
    return sources


def unchanged() -> Dict[str, str]:
    """The sources, by name of file."""
    return {path.name: path.read_text() for path in KERNELS.glob("*.*h")}


def look_at(sources: Dict[str, str], setups: Sequence[Setup] = SETUPS) -> List[str]:
    """What each setup has to complain of in these sources; empty where it notices nothing."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text)
        programs: Dict[Sequence[str], Path] = {}
        complaints = []
        for setup in setups:
            if setup.flags not in programs:
                programs[setup.flags] = folder / f"check_rows-{len(programs)}"
                # A bug may well be worth a warning, but it is not the compiler that is tested.
                compile_program(
                    HERE / "check_rows.cpp", setup, programs[setup.flags], folder, strict=False
                )
            result = run_program(programs[setup.flags], ROUNDS, SEED, setup.order)
            complaints.append(complaint(result))
    return complaints


def main() -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="1 is the first")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    args = parser.parse_args()
    if args.list:
        for number, mutant in enumerate(MUTANTS, 1):
            print(number, mutant.name)
        return 0
    if not shutil.which("g++"):
        parser.error("there is no g++ on PATH to compile the kernels with")
    wanted = [MUTANTS[number - 1] for number in args.numbers] or MUTANTS
    names = ["(none)", *(mutant.name for mutant in wanted)]
    print("| injected bug | " + " | ".join(setup.name for setup in SETUPS) + " |")
    print("| --- |" + " --- |" * len(SETUPS))
    unnoticed = []
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = pool.map(look_at, [unchanged(), *map(mutated, wanted)])
        for name, complaints in zip(names, rows):
            print(f"| {name} | " + " | ".join(one or "-" for one in complaints) + " |", flush=True)
            if any(complaints) == (name == "(none)"):
                unnoticed.append(name)
    for name in unnoticed:
        print(f"not as it should be: {name}", file=sys.stderr)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
