// The CUDA library: real thread blocks under the kernels.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define RIB_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char rib_shared[]; \
    type* const name = reinterpret_cast<type*>(rib_shared)
#define RIB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

// What was it built for: __CUDA_ARCH_LIST__ is a list such as 750,800,900.
#define RIB_TEXT(...) #__VA_ARGS__
#define RIB_EXPANDED(...) RIB_TEXT(__VA_ARGS__)
#define RIB_DESCRIPTION                                          \
    "CUDA " RIB_EXPANDED(__CUDACC_VER_MAJOR__) "." RIB_EXPANDED( \
        __CUDACC_VER_MINOR__) ", architectures " RIB_EXPANDED(__CUDA_ARCH_LIST__)

#include "launch.h"
