// The names of CUDA that the kernels and their launches use, on top of the emulation.
#ifndef RIB_TESTS_CUDA_NAMES_H
#define RIB_TESTS_CUDA_NAMES_H

#include <math.h>

#include <map>

#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx simt::thread_index
#define blockIdx simt::block_index
#define blockDim simt::block_size
#define gridDim simt::grid_size

// ---- Threads that meet

inline void __syncthreads() { simt::running_block->barrier(); }

SIMT_UNWATCHED inline float __shfl_xor_sync(unsigned mask, float value, int bits) {
    if (mask != 0xffffffffu)
        simt::running_block->die("a shuffle of less than a warp, which is not emulated");
    uint64_t raw = 0;
    memcpy(&raw, &value, sizeof value);
    raw = simt::running_block->exchange(raw, static_cast<unsigned>(bits));
    memcpy(&value, &raw, sizeof value);
    return value;
}

// With C++ atomics, so that ThreadSanitizer knows it as one; relaxed, as CUDA's orders nothing.
inline float atomicAdd(float* address, float value) {
    uint32_t* const bits = reinterpret_cast<uint32_t*>(address);
    uint32_t seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
    float before;
    do {
        memcpy(&before, &seen, sizeof before);
        const float after = before + value;
        memcpy(&wanted, &after, sizeof wanted);
    } while (!__atomic_compare_exchange_n(bits, &seen, wanted, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return before;
}

// ---- Arithmetic

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

inline float __half2float(__half value) {
    const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
    const float sign = value.bits >> 15 ? -1.f : 1.f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf(static_cast<float>(fraction), -24);
    return sign * ldexpf(static_cast<float>(1024 + fraction), exponent - 25);
}

// ---- Runtime

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9,
                      cudaErrorInvalidDevice = 101;
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace simt {

// One device, with the shared memory of an H100 unless a test gives it less.
struct Device {
    static constexpr size_t kDefaultShared = 48 * 1024;
    size_t max_shared = 227 * 1024;
    cudaError_t last_error = cudaSuccess;
    std::map<const void*, size_t> allowed_shared;  // of the kernels that asked for more
};
inline Device device;

// Like kernel<<<grid, threads, shared_bytes>>>(args...), which refuses the same launches.
template <typename... Parameters, typename... Args>
void launch(void (*kernel)(Parameters...), int64_t grid, int64_t threads, size_t shared_bytes,
            Args... args) {
    const auto allowed = device.allowed_shared.find(reinterpret_cast<const void*>(kernel));
    const size_t room =
        allowed == device.allowed_shared.end() ? Device::kDefaultShared : allowed->second;
    if (grid < 1 || grid > INT32_MAX || threads < 1 || threads > kMaxThreads) {
        device.last_error = cudaErrorInvalidConfiguration;
    } else if (shared_bytes > room) {
        device.last_error = cudaErrorInvalidValue;
    } else {
        run_grid(static_cast<unsigned>(grid), static_cast<unsigned>(threads), shared_bytes,
                 [&] { kernel(args...); });
    }
}

}  // namespace simt

inline cudaError_t cudaGetLastError() { return std::exchange(simt::device.last_error, 0); }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulated device"; }
inline cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : 0; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
    if (device) return cudaErrorInvalidDevice;
    *value = static_cast<int>(simt::device.max_shared);
    return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
    if (bytes < 0 || static_cast<size_t>(bytes) > simt::device.max_shared) {
        return simt::device.last_error = cudaErrorInvalidValue;
    }
    simt::device.allowed_shared[kernel] = static_cast<size_t>(bytes);
    return cudaSuccess;
}

#endif
