// The fused row kernel: device code only. Compiled by nvcc, and by a plain C++ compiler
// after the tests' emulation of thread blocks. What it computes stands in rib.h.
//
// A block works on one row. Its threads read the row once and keep a running softmax average
// (`Average`), the block merges the averages, and a second pass turns the row into the gradient.
#pragma once
#include "rib.h"

namespace rib {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kScratchFloats = 4 * kMaxWarps;  // of the reductions, where shared memory begins

// ---- Numbers in memory

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// V neighbouring numbers, moved by one access.
template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
    T v[V];
};

template <int V, typename T>
__device__ inline void load(const T* from, float (&to)[V]) {
    const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = to_float(pack.v[i]);
}

template <int V>
__device__ inline void store(float* to, const float (&from)[V]) {
    Pack<float, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) pack.v[i] = from[i];
    *reinterpret_cast<Pack<float, V>*>(to) = pack;
}

// logits[i] = scale * (products[i] - half_norms[i])
template <int V>
__device__ inline void load_logits(const float* products, const float* half_norms, float scale,
                                   float (&logits)[V]) {
    float norms[V];
    load<V>(products, logits);
    load<V>(half_norms, norms);
#pragma unroll
    for (int i = 0; i < V; ++i) logits[i] = scale * (logits[i] - norms[i]);
}

// log_p[i], or 0 if there is no marginal.
template <int V>
__device__ inline void load_marginal(const float* log_p, int a, float (&to)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = 0.f;
    if (log_p) load<V>(log_p + a, to);
}

// ---- What a column counts with

// `shifted`: x_a - max of the logits x; what s_a has besides of gamma log phi_a, -gamma log(sum of
// weights), is the same in all columns and left out here. q: log Q_a, p: log P_a.
template <rib_form FORM>
struct Column {
    float score;  // s_a
    float ratio;  // Q_a / P_a, which RIB_CLUSTERS has in the score

    __device__ Column(float shifted, float q, float p, float gamma)
        : score(gamma * (shifted - p)), ratio(0.f) {
        if (FORM == RIB_CLUSTERS) {
            score -= q - p;
        } else {
            ratio = __expf(q - p);
        }
    }
};

// ---- The softmax averages of the columns' scores and ratios, in one pass

struct Average {
    float max;     // of the logits so far, -inf before the first
    float weight;  // sum_a exp(x_a - max)
    float score;   // sum_a exp(x_a - max) s_a
    float ratio;   // sum_a exp(x_a - max) Q_a / P_a, of RIB_EMBEDDING
};

__device__ inline Average empty_average() { return Average{-INFINITY, 0.f, 0.f, 0.f}; }

// exp(-inf - -inf) would be NaN: an empty average counts from 0.
__device__ inline float origin(float max) { return max == -INFINITY ? 0.f : max; }

// The same average, counted from another maximum: every s_a falls by gamma times the difference.
__device__ inline Average counted_from(Average a, float max, float gamma) {
    const float to = origin(max), factor = __expf(a.max - to);
    return Average{max, factor * a.weight,
                   factor * (a.score + gamma * (origin(a.max) - to) * a.weight), factor * a.ratio};
}

__device__ inline Average merge(Average a, Average b, float gamma) {
    const float max = fmaxf(a.max, b.max);
    a = counted_from(a, max, gamma);
    b = counted_from(b, max, gamma);
    return Average{max, a.weight + b.weight, a.score + b.score, a.ratio + b.ratio};
}

template <rib_form FORM, int V>
__device__ inline void include(Average& a, const float (&x)[V], const float (&q)[V],
                               const float (&p)[V], float gamma) {
    float max = a.max;
#pragma unroll
    for (int i = 0; i < V; ++i) max = fmaxf(max, x[i]);
    a = counted_from(a, max, gamma);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float shifted = x[i] - origin(max), e = __expf(shifted);
        const Column<FORM> column(shifted, q[i], p[i], gamma);
        a.weight += e;
        a.score += e * column.score;
        if (FORM == RIB_EMBEDDING) a.ratio += e * column.ratio;
    }
}

template <rib_form FORM>
__device__ inline Average merge_warp(Average a, float gamma) {
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
        Average b;
        b.max = __shfl_xor_sync(0xffffffffu, a.max, distance);
        b.weight = __shfl_xor_sync(0xffffffffu, a.weight, distance);
        b.score = __shfl_xor_sync(0xffffffffu, a.score, distance);
        b.ratio = 0.f;
        if (FORM == RIB_EMBEDDING) b.ratio = __shfl_xor_sync(0xffffffffu, a.ratio, distance);
        a = merge(a, b, gamma);
    }
    return a;
}

// The average of the whole block, in every thread. One barrier: each warp merges the warps'
// averages for itself, so nothing has to be handed back. Uses scratch[0 .. 4 * kMaxWarps).
template <rib_form FORM>
__device__ inline Average merge_block(Average a, float gamma, float* scratch) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int warps = blockDim.x / kWarpSize;
    a = merge_warp<FORM>(a, gamma);
    if (lane == 0) {
        scratch[warp] = a.max;
        scratch[kMaxWarps + warp] = a.weight;
        scratch[2 * kMaxWarps + warp] = a.score;
        scratch[3 * kMaxWarps + warp] = a.ratio;
    }
    __syncthreads();
    a = empty_average();
    if (lane < warps) {
        a = Average{scratch[lane], scratch[kMaxWarps + lane], scratch[2 * kMaxWarps + lane],
                    scratch[3 * kMaxWarps + lane]};
    }
    return merge_warp<FORM>(a, gamma);
}

// ---- The bound

// What loss and gradient need to know of a whole row.
struct Means {
    float max, weight;  // as in the row's Average, but the maximum is finite
    float inverse;      // 1 / weight
    float score;        // sum_a phi_a s_a
    float ratio;        // sum_a phi_a Q_a / P_a, of RIB_EMBEDDING

    __device__ explicit Means(const Average& a)
        : max(origin(a.max)),
          weight(a.weight),
          inverse(1.f / a.weight),
          score(a.score * inverse),
          ratio(a.ratio * inverse) {}
};

template <rib_form FORM>
__device__ inline float loss_of(const Means& means, float gamma) {
    // s_a lacks the -gamma log(weight) of gamma log phi_a: a constant, so the gradient does too.
    const float loss = means.score - gamma * logf(means.weight);
    return FORM == RIB_CLUSTERS ? loss : loss - logf(means.ratio);
}

// The second pass over V columns.
template <rib_form FORM, int V>
__device__ inline void store_gradient(float* row, const float (&x)[V], const float (&q)[V],
                                      const float (&p)[V], const Means& means, float gamma) {
    float gradient[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float shifted = x[i] - means.max;
        const Column<FORM> column(shifted, q[i], p[i], gamma);
        const float phi = __expf(shifted) * means.inverse;
        gradient[i] = phi * (column.score - means.score);
        // In this order: a ratio over u may be infinite where phi is 0.
        if (FORM == RIB_EMBEDDING) gradient[i] += phi - phi * column.ratio * (1.f / means.ratio);
    }
    store<V>(row, gradient);
}

// Rows that no identity stands behind: all threads of the block get the same answer.
__device__ inline bool skip_row(const rib_bound_args& p, float* row, int64_t label) {
    if (label >= 0 && label < p.C) return false;
    for (int a = threadIdx.x; a < (int)p.K; a += blockDim.x) row[a] = 0.f;
    if (threadIdx.x == 0) p.loss[blockIdx.x] = label < 0 ? 0.f : nanf("");
    return true;
}

// With a table of log Q of type T; accesses of V columns. CACHED: logits and log Q stay in
// shared memory between the passes, so both are read from global memory once (log P, which all rows
// share, comes out of the GPU's own caches). A thread reads back only what it wrote, so the cache
// needs no barrier.
// The bounds' 1 asks for room for one block of that size. Without it, ptxas takes 32 registers for
// some GPUs, to have room for two, and spills.
template <typename T, rib_form FORM, int V, bool CACHED>
__global__ void __launch_bounds__(kMaxThreads, 1) bound_rows(rib_bound_args p) {
    RIB_SHARED(float, scratch);
    const int K = (int)p.K, wide = K / V * V;
    float* const cached_x = scratch + kScratchFloats;
    float* const cached_q = cached_x + (K + 3) / 4 * 4;
    float* const row = p.products + blockIdx.x * p.products_pitch;
    const int64_t label = p.labels[blockIdx.x];
    if (skip_row(p, row, label)) return;
    const T* const log_q = static_cast<const T*>(p.log_q) + label * p.log_q_pitch;

    Average average = empty_average();
    for (int a = threadIdx.x * V; a < wide; a += blockDim.x * V) {
        float x[V], q[V], log_p[V];
        load_logits<V>(row + a, p.half_norms + a, p.scale, x);
        load<V>(log_q + a, q);
        load_marginal<V>(p.log_p, a, log_p);
        include<FORM, V>(average, x, q, log_p, p.gamma);
        if (CACHED) {
            store<V>(cached_x + a, x);
            store<V>(cached_q + a, q);
        }
    }
    // The fewer than V columns that are left over, a thread each.
    const int last = wide + threadIdx.x;
    float last_x[1], last_q[1], last_p[1];
    if (last < K) {
        load_logits<1>(row + last, p.half_norms + last, p.scale, last_x);
        load<1>(log_q + last, last_q);
        load_marginal<1>(p.log_p, last, last_p);
        include<FORM, 1>(average, last_x, last_q, last_p, p.gamma);
    }

    const Means means(merge_block<FORM>(average, p.gamma, scratch));
    if (threadIdx.x == 0) p.loss[blockIdx.x] = loss_of<FORM>(means, p.gamma);

    for (int a = threadIdx.x * V; a < wide; a += blockDim.x * V) {
        float x[V], q[V], log_p[V];
        if (CACHED) {
            load<V>(cached_x + a, x);
            load<V>(cached_q + a, q);
        } else {
            load_logits<V>(row + a, p.half_norms + a, p.scale, x);
            load<V>(log_q + a, q);
        }
        load_marginal<V>(p.log_p, a, log_p);
        store_gradient<FORM, V>(row + a, x, q, log_p, means, p.gamma);
    }
    if (last < K) {
        store_gradient<FORM, 1>(row + last, last_x, last_q, last_p, means, p.gamma);
    }
}

}  // namespace rib
