"""nvcc's own account of the kernels: every one compiled for every GPU, none uses local memory."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastreid_rib.ops import build

# 2 forms x 3 dtypes x wide or not x cached or not of the bound, and the table's.
KERNELS = 24 + 1

NOTHING_SPILLED = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


@pytest.fixture(scope="module")
def nvcc():
    try:
        return build.compiler("cuda")
    except build.NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reports(nvcc, tmp_path_factory):
    """What ptxas says, by architecture."""
    folder = tmp_path_factory.mktemp("cubins")

    def compile_for(architecture):
        command = [nvcc, "-O3", "-std=c++17", "-cubin", f"-arch=sm_{architecture}"]
        command += ["-Xptxas=-v", "-Xptxas=--warn-on-local-memory-usage"]
        command += [str(build.SOURCES / "rib_cuda.cu"), "-o", str(folder / f"{architecture}.cubin")]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    wanted = sorted(set(build.ARCHITECTURES) & build.known_architectures(nvcc))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(wanted, pool.map(compile_for, wanted)))


@pytest.mark.all_only
@pytest.mark.today_only  # nvcc knows nothing of Python: once is enough
def test_no_kernel_uses_local_memory(reports):
    assert reports
    for architecture, report in reports.items():
        kernels = re.findall(rf"Compiling entry function '(\w+)' for 'sm_{architecture}'", report)
        properties = re.findall(r"\d+ bytes stack frame.*", report)
        assert len(set(kernels)) == KERNELS, report
        assert len(properties) >= KERNELS, report
        assert set(properties) == {NOTHING_SPILLED}, report
