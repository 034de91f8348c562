// The CUDA library's source over the emulation: rib_cuda.cu's counterpart without a GPU.
#ifndef RIB_TESTS_RIB_EMULATED_H
#define RIB_TESTS_RIB_EMULATED_H

#include "cuda_names.h"

#define RIB_SHARED(type, name) type* const name = static_cast<type*>(simt::running_block->shared())
#define RIB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    simt::launch(kernel, grid, block, shared_bytes, __VA_ARGS__)

#include "launch.h"

#endif
