// The host side of the CUDA library: checks, the choice of a kernel, launches, the C interface.
// Compiled after rib_cuda.cu's headers, or after the tests' emulation of them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "arguments.h"
#include "rows.cuh"

#ifndef RIB_DESCRIPTION
#define RIB_DESCRIPTION "CUDA"
#endif

namespace rib {

inline bool aligned(const void* pointer, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline int launch(void (*kernel)(rib_bound_args), const rib_bound_args& args, int threads,
                  size_t shared_bytes) {
    if (shared_bytes > 48 * 1024) {  // beyond that a kernel has to ask
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                       static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    RIB_LAUNCH(kernel, static_cast<unsigned>(args.n), static_cast<unsigned>(threads), shared_bytes,
               static_cast<cudaStream_t>(args.stream), args);
    return cudaGetLastError();
}

// Makes torch's device the current one here too, and asks how much shared memory a block may have.
inline int use_device(int device, size_t* shared_limit) {
    int limit = 0;
    cudaGetLastError();  // what an earlier call left behind is not this one's
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) {
        error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    }
    *shared_limit = static_cast<size_t>(limit);
    return error;
}

// Threads of a block, about four accesses each, if the caller does not say; 0 if what it says is
// not allowed.
inline int block_threads(int asked, int64_t accesses) {
    if (asked) return asked % kWarpSize || asked < 0 || asked > kMaxThreads ? 0 : asked;
    const int64_t threads = (accesses / 4 + kWarpSize - 1) / kWarpSize * kWarpSize;
    return static_cast<int>(threads < 64 ? 64 : threads > kMaxThreads ? kMaxThreads : threads);
}

template <typename T, rib_form FORM>
int bound_of(const rib_bound_args& p) {
    size_t limit = 0;
    if (const int error = use_device(p.device, &limit)) return error;
    const size_t scratch = kScratchFloats * sizeof(float);
    const size_t cache = scratch + 2 * sizeof(float) * ((p.K + 3) / 4 * 4);
    const bool may_be_wide = p.products_pitch % 4 == 0 && aligned(p.products, 16) &&
                             aligned(p.half_norms, 16) && aligned(p.log_p, 16) &&
                             p.log_q_pitch % 4 == 0 && aligned(p.log_q, 4 * sizeof(T));
    const bool may_be_cached = cache <= limit;
    const bool is_auto = p.variant == RIB_AUTO;
    const bool wide = is_auto ? may_be_wide : p.variant & RIB_WIDE;
    const bool cached = is_auto ? may_be_cached : p.variant & RIB_CACHED;
    const int threads = block_threads(p.threads, wide ? p.K / 4 : p.K);
    if (!threads || (wide && !may_be_wide) || (cached && !may_be_cached)) return RIB_EARG;
    if (cached) {
        return launch(wide ? bound_rows<T, FORM, 4, true> : bound_rows<T, FORM, 1, true>, p,
                      threads, cache);
    }
    return launch(wide ? bound_rows<T, FORM, 4, false> : bound_rows<T, FORM, 1, false>, p, threads,
                  scratch);
}

template <typename T>
int bound_of(const rib_bound_args& p) {
    return p.form == RIB_EMBEDDING ? bound_of<T, RIB_EMBEDDING>(p) : bound_of<T, RIB_CLUSTERS>(p);
}

constexpr int64_t kMaxColumns = INT32_MAX / 8;  // columns are counted in 32 bits
constexpr int64_t kMaxBlocks = INT32_MAX;

inline int bound(const rib_bound_args* args) {
    if (!args) return RIB_EARG;
    const rib_bound_args& p = *args;
    if (!sizes_fit(p) || p.n > kMaxBlocks || p.K > kMaxColumns || p.variant < RIB_AUTO ||
        p.variant > (RIB_CACHED | RIB_WIDE)) {
        return RIB_EARG;
    }
    if (p.n == 0) return RIB_OK;
    if (!pointers_given(p)) return RIB_EARG;
    switch (p.log_q_dtype) {
        case RIB_F32:
            return bound_of<float>(p);
        case RIB_F16:
            return bound_of<__half>(p);
        case RIB_BF16:
            return bound_of<__nv_bfloat16>(p);
    }
    return RIB_EARG;
}

}  // namespace rib

extern "C" {
int rib_abi(void) { return RIB_ABI_VERSION; }
int rib_bound(const rib_bound_args* args) { return rib::bound(args); }
const char* rib_describe(void) { return RIB_DESCRIPTION; }
const char* rib_error_text(int code) {
    if (code == RIB_EARG) return "an argument is not allowed";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}
}
