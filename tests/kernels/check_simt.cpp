// Small kernels, right ones and wrong ones, to test the emulation itself.
// usage: check_simt KERNEL SEED; prints what the kernel computed.
#include <stdio.h>

#include "cuda_names.h"

#define SHARED(type, name) type* const name = static_cast<type*>(simt::running_block->shared())

// ---- Right

__global__ void sum_warps(float* out) {
    float value = static_cast<float>(threadIdx.x);
    for (int bits = 1; bits < 32; bits *= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
    out[blockIdx.x * blockDim.x + threadIdx.x] = value + 1000.f * gridDim.x;
}

__global__ void left_neighbour(float* out) {
    SHARED(float, shared);
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    __syncthreads();
    out[threadIdx.x] = shared[(threadIdx.x + blockDim.x - 1) % blockDim.x];
}

__global__ void count_threads(float* out) { atomicAdd(out, 1.f); }

__global__ void name_last_block(float* out) {
    if (threadIdx.x == 0) atomicAdd(out, blockIdx.x - out[0]);
}

// ---- Wrong

__global__ void left_neighbour_unsynchronised(float* out) {
    SHARED(float, shared);
    shared[threadIdx.x] = static_cast<float>(threadIdx.x);
    out[threadIdx.x] = threadIdx.x ? shared[threadIdx.x - 1] : 63.f;
}

__global__ void race_between_barriers(float* out) {
    __syncthreads();
    if (threadIdx.x == 0) out[0] = 1.f;
    if (threadIdx.x == 1) out[1] = out[0];
    __syncthreads();
}

__global__ void race_of_blocks(float* out) {
    if (threadIdx.x == 0) out[0] += 1.f;
}

__global__ void barrier_in_branch(float*) {
    if (threadIdx.x < 32) __syncthreads();
}

__global__ void barrier_after_return(float*) {
    if (threadIdx.x == 5) return;
    __syncthreads();
}

__global__ void shuffle_of_half_a_warp(float* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
}

__global__ void different_shuffles(float* out) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, threadIdx.x < 16 ? 1 : 2);
}

__global__ void shuffle_with_next_warp(float* out) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 32);
}

__global__ void write_past_shared(float*) {
    SHARED(float, shared);
    shared[threadIdx.x + 1] = 0.f;
}

__global__ void read_unwritten_shared(float* out) {
    SHARED(float, shared);
    out[threadIdx.x] = shared[threadIdx.x];
}

// ---- Values and the runtime

void print_conversions() {
    for (uint16_t bits :
         {0x0000, 0x8000, 0x0001, 0x03ff, 0x0400, 0x3555, 0x3c00, 0xc000, 0x7bff, 0xfc00, 0x7e00}) {
        printf("%.9g ", __half2float(__half{bits}));
    }
    for (uint16_t bits : {0x0000, 0x8000, 0x0001, 0x3eab, 0x3f80, 0xc000, 0xff80, 0x7fc0}) {
        printf("%.9g ", __bfloat162float(__nv_bfloat16{bits}));
    }
    printf("\n");
}

// Error codes of launches that a GPU refuses as well, each followed by the 0 of the next call.
void print_refusals(float* out) {
    const auto print_error = [] {
        const cudaError_t error = cudaGetLastError(), next = cudaGetLastError();
        printf("%d %d ", error, next);
    };
    const void* const kernel = reinterpret_cast<const void*>(&left_neighbour);
    simt::launch(left_neighbour, 0, 64, 256, out);
    print_error();
    simt::launch(left_neighbour, 1, 1025, 256, out);
    print_error();
    simt::launch(left_neighbour, 1, 64, 48 * 1024 + 4, out);
    print_error();
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 * 1024);
    print_error();
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024 + 4);
    simt::launch(left_neighbour, 1, 64, 48 * 1024 + 4, out);
    print_error();
    printf("%g\n", out[2]);
}

int main(int argc, char** argv) {
    struct Entry {
        const char* name;
        void (*kernel)(float*);
        int blocks;
    };
    const Entry entries[] = {{"sum_warps", sum_warps, 2},
                             {"left_neighbour", left_neighbour, 1},
                             {"count_threads", count_threads, 3},
                             {"name_last_block", name_last_block, 8},
                             {"left_neighbour_unsynchronised", left_neighbour_unsynchronised, 1},
                             {"race_between_barriers", race_between_barriers, 1},
                             {"race_of_blocks", race_of_blocks, 2},
                             {"barrier_in_branch", barrier_in_branch, 1},
                             {"barrier_after_return", barrier_after_return, 1},
                             {"shuffle_of_half_a_warp", shuffle_of_half_a_warp, 1},
                             {"different_shuffles", different_shuffles, 1},
                             {"shuffle_with_next_warp", shuffle_with_next_warp, 1},
                             {"write_past_shared", write_past_shared, 1},
                             {"read_unwritten_shared", read_unwritten_shared, 1}};
    if (argc != 3) {
        fprintf(stderr, "usage: check_simt KERNEL SEED\n");
        return 2;
    }
    simt::order_seed = strtoull(argv[2], nullptr, 10);
    float out[128] = {0.f};
    if (!strcmp(argv[1], "conversions")) return print_conversions(), 0;
    if (!strcmp(argv[1], "refusals")) return print_refusals(out), 0;
    for (const Entry& entry : entries) {
        if (strcmp(argv[1], entry.name)) continue;
        simt::launch(entry.kernel, entry.blocks, 64, 64 * sizeof(float), out);
        for (float value : out) printf("%g ", value);
        printf("\n");
        return 0;
    }
    fprintf(stderr, "no kernel %s\n", argv[1]);
    return 2;
}
