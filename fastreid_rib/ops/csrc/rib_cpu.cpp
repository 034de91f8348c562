// The CPU library: what rib.h says, vectorised, threads over rows. Plain C++17, nothing linked.
//
// A row is read from memory once: pass A goes through it in chunks that fit the first-level cache
// and averages over its softmax, pass B finds it in the second-level cache and turns it into the
// gradient. The loops are plain; the compiler vectorises them (-fopenmp-simd, which links nothing)
// once per instruction set, and the machine's is picked when the library is loaded.
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "rib.h"

// RIB_MAX_ISA: 0 leaves the portable code only, 1 adds AVX2, 2 (default) AVX-512 too. For tests.
#ifndef RIB_MAX_ISA
#define RIB_MAX_ISA 2
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#else
#undef RIB_MAX_ISA
#define RIB_MAX_ISA 0
#endif

// The bodies have to end up inside the functions that carry the instruction set.
#define RIB_INLINE inline __attribute__((always_inline))

namespace {

// ---- Numbers

RIB_INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

RIB_INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// bfloat16 and float16 as they lie in memory. Not _Float16: g++ has it from version 12 only, and
// without hardware for it calls a function per number.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

RIB_INLINE float to_float(float value) { return value; }
RIB_INLINE float to_float(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }
RIB_INLINE float to_float(Float16 value) {
    const uint32_t sign = uint32_t{value.bits} << 16 & 0x80000000u;
    const uint32_t magnitude = value.bits & 0x7fffu;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    uint32_t bits = (magnitude << 13) + (112u << 23);  // exponents count from 127 instead of 15
    bits = magnitude >= 0x7c00u ? bits | 0x7f800000u : bits;
    bits = magnitude < 0x0400u ? to_bits(subnormal) : bits;
    return from_bits(bits | sign);
}

// exp(x) for x <= 0, relative error about 1e-7; 0 below -88; NaN stays NaN. x = k log 2 + r with
// |r| <= log(2) / 2, and exp(r) from a polynomial (Cephes' expf).
RIB_INLINE float exp_nonpositive(float x) {
    x = x < -88.f ? -88.f : x;
    const float shifter = 0x1.8p23f;  // the lowest bit of a sum with it counts ones
    const float shifted = x * 1.44269504f + shifter;
    const float k = shifted - shifter;
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // log 2 in two parts
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * from_bits((to_bits(shifted) - to_bits(shifter) + 127u) << 23);
}

// Denormal results become 0 while this lives: they would slow the matrix product that follows by
// far more than they are worth.
class FlushDenormals {
public:
#if defined(__x86_64__)
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8000u); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

private:
    const unsigned saved_;
#endif
};

// ---- One row

// Columns in a chunk: its products, half norms and log Q fit the first-level cache. Sums in float32
// stay within a chunk, those over chunks are in float64: a float32 sum over 100,000 columns loses
// a digit.
constexpr int64_t kChunk = 1024;

// x_a = scale (products_a - half_norms_a).
struct Logits {
    const float* products;
    const float* half_norms;
    float scale;

    RIB_INLINE float operator[](int64_t a) const { return scale * (products[a] - half_norms[a]); }
};

// A table of log Q that is 0 everywhere.
struct Zeros {
    RIB_INLINE float operator[](int64_t) const { return 0.f; }
};

// The average over softmax(x) of s_a = gamma (x_a - max) - log Q_a. The -gamma log(weight) that
// gamma log phi_a has besides is the same for all columns.
struct Average {
    float max = std::numeric_limits<float>::lowest();
    double weight = 0;  // sum_a exp(x_a - max)
    double sum = 0;     // sum_a exp(x_a - max) s_a

    float mean() const { return static_cast<float>(sum / weight); }
    float inverse() const { return static_cast<float>(1 / weight); }
    float value(float gamma) const {
        return static_cast<float>(sum / weight - gamma * log(weight));
    }

    // Counts from a maximum that is not below the present one.
    void raise(float to, float gamma) {
        const double distance = static_cast<double>(max) - to, factor = exp(distance);
        sum = factor * (sum + gamma * distance * weight);
        weight *= factor;
        max = to;
    }
};

template <typename LogQ>
RIB_INLINE Average average_over(const Logits x, const LogQ log_q, int64_t K, float gamma) {
    Average average;
    for (int64_t begin = 0; begin < K; begin += kChunk) {
        const int64_t end = begin + kChunk < K ? begin + kChunk : K;
        float max = average.max;
#pragma omp simd reduction(max : max)
        for (int64_t a = begin; a < end; ++a) max = x[a] > max ? x[a] : max;
        if (max > average.max) average.raise(max, gamma);
        float weight = 0, sum = 0;
#pragma omp simd reduction(+ : weight, sum)
        for (int64_t a = begin; a < end; ++a) {
            const float shifted = x[a] - max, e = exp_nonpositive(shifted);
            weight += e;
            sum += e * (gamma * shifted - to_float(log_q[a]));
        }
        average.weight += weight;
        average.sum += sum;
    }
    return average;
}

// Turns a row of products into the gradient, returns the loss.
template <typename T>
RIB_INLINE float bound_row(float* products, const T* log_q, const rib_bound_args& p) {
    const Logits x{products, p.half_norms, p.scale};
    const float gamma = p.gamma;
    const Average average = average_over(x, log_q, p.K, gamma);
    const float max = average.max, inverse = average.inverse(), mean = average.mean();
#pragma omp simd
    for (int64_t a = 0; a < p.K; ++a) {
        const float shifted = x[a] - max;
        products[a] =
            exp_nonpositive(shifted) * inverse * (gamma * shifted - to_float(log_q[a]) - mean);
    }
    return average.value(gamma);
}

// Adds the soft assignment of an image to `sums`, returns its negative entropy.
RIB_INLINE float table_row(const float* products, float* sums, const rib_table_args& p) {
    const Logits x{products, p.half_norms, p.scale};
    const Average average = average_over(x, Zeros(), p.K, 1.f);
    const float max = average.max, inverse = average.inverse();
#pragma omp simd
    for (int64_t a = 0; a < p.K; ++a) sums[a] += exp_nonpositive(x[a] - max) * inverse;
    return average.value(1.f);
}

// ---- One row, once per instruction set

struct RowFunctions {
    const char* description;
    float (*bound_f32)(float*, const float*, const rib_bound_args&);
    float (*bound_f16)(float*, const Float16*, const rib_bound_args&);
    float (*bound_bf16)(float*, const BFloat16*, const rib_bound_args&);
    float (*table)(const float*, float*, const rib_table_args&);

    float bound(float* products, const float* log_q, const rib_bound_args& p) const {
        return bound_f32(products, log_q, p);
    }
    float bound(float* products, const Float16* log_q, const rib_bound_args& p) const {
        return bound_f16(products, log_q, p);
    }
    float bound(float* products, const BFloat16* log_q, const rib_bound_args& p) const {
        return bound_bf16(products, log_q, p);
    }
};

// Explicit functions and not target_clones: those need glibc, and g++ 12 for x86-64 levels.
#define RIB_ROW_FUNCTIONS(name, description, attribute)                                     \
    namespace name {                                                                        \
    template <typename T>                                                                   \
    attribute float bound(float* products, const T* log_q, const rib_bound_args& p) {       \
        return bound_row(products, log_q, p);                                               \
    }                                                                                       \
    attribute float table(const float* products, float* sums, const rib_table_args& p) {    \
        return table_row(products, sums, p);                                                \
    }                                                                                       \
    const RowFunctions kRows = {description, bound<float>, bound<Float16>, bound<BFloat16>, \
                                table};                                                     \
    }

RIB_ROW_FUNCTIONS(portable, "CPU, portable code", )
#if RIB_MAX_ISA >= 1
RIB_ROW_FUNCTIONS(avx2, "CPU, AVX2", __attribute__((target("avx2,fma"))))
#endif
#if RIB_MAX_ISA >= 2
RIB_ROW_FUNCTIONS(avx512, "CPU, AVX-512",
                  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,"
                                        "prefer-vector-width=512"))))
#endif

const RowFunctions& rows() {
#if RIB_MAX_ISA >= 2
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return avx512::kRows;
    }
#endif
#if RIB_MAX_ISA >= 1
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kRows;
#endif
    return portable::kRows;
}

// ---- All rows

// How many threads pay: starting them costs about as much as some ten thousand columns.
int threads_for(int64_t n, int64_t K, int32_t threads, const void* parallel) {
    constexpr int64_t kWorthThreads = 32768;
    if (!parallel || threads <= 1 || n * K < kWorthThreads) return 1;
    return static_cast<int>(threads < n ? threads : n);
}

// Calls body(item, thread) for every item in 0..count-1, each once, in threads of the OpenMP
// runtime at `parallel` (its GOMP_parallel). The runtime may start fewer threads than it is asked
// for, so items are handed out as threads come for them.
template <typename Body>
void for_each(int64_t count, int threads, void* parallel, const Body& body) {
    struct Job {
        const Body& body;
        const int64_t count;
        std::atomic<int64_t> next{0};
        std::atomic<int> thread{0};

        static void run(void* data) {
            Job& job = *static_cast<Job*>(data);
            const FlushDenormals flush;
            const int thread = job.thread++;
            for (int64_t item; (item = job.next++) < job.count;) job.body(item, thread);
        }
    } job{body, count};
    using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
    if (threads > 1) {
        reinterpret_cast<GompParallel>(parallel)(Job::run, &job, threads, 0);
    } else {
        Job::run(&job);
    }
}

template <typename T>
int bound_of(const rib_bound_args& p) {
    const RowFunctions& row_functions = rows();
    const int threads = threads_for(p.n, p.K, p.threads, p.parallel);
    // A sparse row is written out first, one row for each thread: K is small enough for that even
    // where C K is not.
    const std::unique_ptr<float[]> dense(p.index ? new (std::nothrow) float[threads * p.K]
                                                 : nullptr);
    if (p.index && !dense) return RIB_EROOM;
    for_each(p.n, threads, p.parallel, [&](int64_t i, int thread) {
        float* const products = p.products + i * p.products_pitch;
        const int64_t label = p.labels[i];
        if (label < 0 || label >= p.C) {
            memset(products, 0, p.K * sizeof(float));
            p.loss[i] = label < 0 ? 0.f : NAN;
            return;
        }
        const T* const log_q = static_cast<const T*>(p.log_q) + label * p.log_q_pitch;
        if (!p.index) {
            p.loss[i] = row_functions.bound(products, log_q, p);
            return;
        }
        float* const row = dense.get() + thread * p.K;
        const int32_t* const index = p.index + label * p.index_pitch;
        for (int64_t a = 0; a < p.K; ++a) row[a] = p.floor[label];
        for (int64_t j = 0; j < p.m; ++j) {
            if (index[j] >= 0 && index[j] < p.K) row[index[j]] = to_float(log_q[j]);
        }
        p.loss[i] = row_functions.bound(products, row, p);
    });
    return RIB_OK;
}

int bound(const rib_bound_args* args) {
    if (!args) return RIB_EARG;
    const rib_bound_args& p = *args;
    const int64_t listed = p.index ? p.m : p.K;
    if (p.n < 0 || p.K < 1 || p.C < 1 || p.products_pitch < p.K || listed < 1 || listed > p.K ||
        p.log_q_pitch < listed || (p.index && (!p.floor || p.index_pitch < listed)) ||
        p.log_q_dtype < RIB_F32 || p.log_q_dtype > RIB_BF16) {
        return RIB_EARG;
    }
    if (p.n == 0) return RIB_OK;
    if (!p.products || !p.half_norms || !p.log_q || !p.labels || !p.loss) return RIB_EARG;
    if (p.log_q_dtype == RIB_F16) return bound_of<Float16>(p);
    if (p.log_q_dtype == RIB_BF16) return bound_of<BFloat16>(p);
    return bound_of<float>(p);
}

int table(const rib_table_args* args) {
    if (!args) return RIB_EARG;
    const rib_table_args& p = *args;
    if (p.n < 0 || p.K < 1 || p.C < 1 || p.products_pitch < p.K || p.table_pitch < p.K ||
        !p.order != !p.starts) {
        return RIB_EARG;
    }
    if (p.n == 0) return RIB_OK;
    if (!p.products || !p.half_norms || !p.labels || !p.table || !p.negentropy) return RIB_EARG;
    const RowFunctions& row_functions = rows();
    const int threads = threads_for(p.n, p.K, p.threads, p.parallel);
    // Identities are dealt out to shares, and a share adds its images one after the other: the sums
    // come out the same with any number of threads, with and without `order`, which is not read.
    const int64_t shares = threads > 1 ? 4 * threads : 1;
    for_each(shares, threads, p.parallel, [&](int64_t share, int) {
        for (int64_t i = 0; i < p.n; ++i) {
            const int64_t label = p.labels[i];
            if (label < 0 || label >= p.C) {
                if (share == 0) p.negentropy[i] = 0.f;
            } else if (label % shares == share) {
                p.negentropy[i] = row_functions.table(p.products + i * p.products_pitch,
                                                      p.table + label * p.table_pitch, p);
            }
        }
    });
    return RIB_OK;
}

}  // namespace

extern "C" {
int rib_abi(void) { return RIB_ABI_VERSION; }
int rib_bound(const rib_bound_args* args) { return bound(args); }
int rib_table(const rib_table_args* args) { return table(args); }
const char* rib_describe(void) { return rows().description; }
const char* rib_error_text(int code) {
    if (code == RIB_EARG) return "an argument is not allowed";
    if (code == RIB_EROOM) return "no memory for a row of log Q for each thread";
    return code == RIB_OK ? "no error" : "unknown error";
}
}
