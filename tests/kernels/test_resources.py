"""nvcc's own account of the kernels: every one compiled for every GPU, none uses local memory."""

import re
import subprocess

import pytest

from fastreid_rib.ops import build

KERNELS = 24  # 2 forms x 3 dtypes x wide or not x cached or not
NOTHING_SPILLED = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


@pytest.mark.all_only
@pytest.mark.today_only  # nvcc knows nothing of Python: once is enough
def test_no_kernel_uses_local_memory(tmp_path):
    try:
        command = build.build_command("cuda")
    except build.NoCompilerError as error:
        pytest.skip(str(error))
    command += ["-Xptxas=-v", "-o", str(tmp_path / "rib.so")]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    assert result.returncode == 0, result.stdout
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", result.stdout)
    architectures = {architecture for _, architecture in kernels}
    assert len(architectures) > 1 and len(set(kernels)) == KERNELS * len(architectures)
    properties = re.findall(r"\d+ bytes stack frame.*", result.stdout)
    assert len(properties) >= len(set(kernels)) and set(properties) == {NOTHING_SPILLED}
