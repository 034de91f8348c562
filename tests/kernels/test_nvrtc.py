"""NVRTC, the compiler that torch brings along, takes the kernels too, without a CUDA toolkit.

Nothing uses it yet; it is the way out where no nvcc builds for an old driver, so the source is kept
free of what NVRTC does not have: the headers of the C++ library and of the host.
"""

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest

from fastreid_rib.ops.build import SOURCES

PROGRAM = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define INFINITY __int_as_float(0x7f800000)  // of <math.h>, which NVRTC lacks
#define RIB_SHARED(type, name)                                  \\
    extern __shared__ __align__(16) unsigned char rib_shared[]; \\
    type* const name = reinterpret_cast<type*>(rib_shared)
#include "rows.cuh"
template __global__ void rib::bound_rows<float, RIB_CLUSTERS, 4, true>(rib_bound_args);
template __global__ void rib::bound_rows<__half, RIB_EMBEDDING, 4, false>(rib_bound_args);
template __global__ void rib::bound_rows<__nv_bfloat16, RIB_CLUSTERS, 1, true>(rib_bound_args);
"""
KERNELS = 3 + 1  # those above, and the one that is no template


def installed(pattern):
    """The first file of that name among what pip installed from NVIDIA; skips without."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in spec.submodule_search_locations] if spec else []
    found = sorted(path for folder in folders for path in folder.rglob(pattern))
    if not found:
        pytest.skip(f"no {pattern} beside torch: a torch without CUDA")
    return found[0]


@pytest.fixture(scope="module")
def nvrtc():
    library = ctypes.CDLL(str(installed("libnvrtc.so.*")))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def to_ptx(nvrtc, source, options):
    """The PTX of a program, or NVRTC's log as an AssertionError."""
    program = ctypes.c_void_p()

    def text_of(kind):
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, text)
        return text.value.decode()

    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"rib.cu", 0, None, None)
    encoded = [option.encode() for option in options]
    code = nvrtc.nvrtcCompileProgram(
        program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded)
    )
    assert code == 0, f"{nvrtc.nvrtcGetErrorString(code).decode()}\n{text_of('ProgramLog')}"
    return text_of("PTX")


@pytest.mark.all_only
def test_kernels_compile_at_run_time(nvrtc):
    headers = installed("cuda_fp16.h").parent
    options = [f"-I{SOURCES}", f"-I{headers}", "-std=c++17", "-arch=compute_75"]
    ptx = to_ptx(nvrtc, PROGRAM, options)
    assert len(set(re.findall(r"\.entry (\w+)", ptx))) == KERNELS
    assert "cvt.f32.f16" in ptx
