// The CPU library: what rib.h says, vectorised, with threads over rows. Plain C++17, links nothing.
//
// A row of products and one of log Q are read from memory once; the passes over a row after the
// first find it in the second-level cache. The loops are plain, the compiler vectorises them
// (-fopenmp-simd, which links no OpenMP) once per instruction set, and the machine's set is picked
// at run time.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <tuple>

#include "arguments.h"

// Instruction sets to compile for besides the portable code: 0 none, 1 AVX2, 2 AVX-512 too.
#ifndef __x86_64__
#undef RIB_MAX_ISA
#define RIB_MAX_ISA 0
#elif !defined(RIB_MAX_ISA)
#define RIB_MAX_ISA 2
#endif
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

// What a row needs is inlined into the functions that carry an instruction set.
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
    const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
    // Exponents count from 15 instead of 127. A product is right for subnormals too.
    const float magnitude = from_bits(rest << 13) * 0x1p112f;
    // All ones in the exponent: infinite or NaN. Arithmetic, since a branch stops vectorisation.
    const uint32_t special = (0u - ((rest + 0x0400u) >> 15)) & 0x7f800000u;
    return from_bits(to_bits(magnitude) | special | sign);
}

// 2^x for x <= 128 with a relative error of about 1e-7; 0 below -126.5, infinite from 127.5 on; NaN
// stays NaN.
RIB_INLINE float power_of_2(float x) {
    x = x < -127.f ? -127.f : x;
    const float shift = 0x1.8p23f;  // a sum with it is rounded to a whole number k, in its low bits
    const float shifted = x + shift, rest = x - (shifted - shift);
    // Of the polynomials of degree 6 with value 1 at 0, the nearest to 2^rest for |rest| <= 1/2.
    float power = 1.5353362e-4f;
    power = power * rest + 1.3398875e-3f;
    power = power * rest + 9.6184369e-3f;
    power = power * rest + 5.5503324e-2f;
    power = power * rest + 2.4022648e-1f;
    power = power * rest + 6.9314718e-1f;
    power = power * rest + 1.f;
    return power * from_bits((to_bits(shifted) - to_bits(shift) + 127u) << 23);  // times 2^k
}

// While this lives, denormal results become 0: they would slow the matrix product that follows by
// far more than they are worth. Denormal input counts, whatever torch.set_flush_denormal says:
// subnormal float16 numbers pass through it.
class FlushDenormals {
   public:
#ifdef __x86_64__
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr((saved_ | kFlushResults) & ~kFlushInput); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

   private:
    static constexpr unsigned kFlushResults = 0x8000, kFlushInput = 0x0040;
    const unsigned saved_;
#else
    FlushDenormals() {}
#endif
};

// ---- One row

constexpr float kBits = 1.44269504f;  // log2(e): a nat in bits

// Logits in bits: x_a = scale (products_a - half_norms_a), the logits times log2(e). Powers of 2
// spare the exponential a multiplication and part of its rounding.
struct Logits {
    const float* products;
    const float* half_norms;
    float scale;

    Logits(const float* products, const float* half_norms, float scale)
        : products(products), half_norms(half_norms), scale(scale * kBits) {}
    RIB_INLINE float operator[](int64_t a) const { return scale * (products[a] - half_norms[a]); }
};

// A log P that is 0 everywhere: what is done with it costs nothing.
struct Zeros {
    RIB_INLINE float operator[](int64_t) const { return 0.f; }
};

// Columns begin..end-1 of a row of log Q as float32, at their places in what is returned: where
// they are, or `into`. A loop of its own, since inside a longer one it is not vectorised.
RIB_INLINE const float* unpacked(const float* log_q, float*, int64_t, int64_t) { return log_q; }
template <typename T>
RIB_INLINE const float* unpacked(const T* log_q, float* into, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t a = begin; a < end; ++a) into[a] = to_float(log_q[a]);
    return into;
}

// What a column counts with. `bits`: logit_a - max; what s_a has besides of gamma log phi_a,
// -gamma log(sum of weights), is the same in all columns and left out here.
template <rib_form form>
struct Column {
    float score;  // s_a
    float ratio;  // Q_a / P_a, which RIB_CLUSTERS has in the score

    RIB_INLINE Column(float bits, float log_q, float log_p, float gamma_bits)
        : score(gamma_bits * (bits - kBits * log_p)), ratio(0.f) {
        const float log_ratio = log_q - log_p;
        if (form == RIB_CLUSTERS) {
            score -= log_ratio;
        } else {
            // Too large a ratio makes the loss infinite, and not any number.
            const float ratio_bits = kBits * log_ratio;
            ratio = power_of_2(ratio_bits > 128.f ? 128.f : ratio_bits);
        }
    }
};

// The softmax averages of the columns' scores and ratios.
struct Average {
    double weight = 0;  // sum_a weights_a
    double score = 0;   // sum_a weights_a s_a
    double ratio = 0;   // sum_a weights_a Q_a / P_a, of RIB_EMBEDDING

    float mean() const { return static_cast<float>(score / weight); }
    float inverse() const { return static_cast<float>(1 / weight); }
    template <rib_form form>
    float loss(float gamma) const {
        const double loss = score / weight - gamma * std::log(weight);
        return static_cast<float>(form == RIB_CLUSTERS ? loss : loss - std::log(ratio / weight));
    }
};

// Also writes weights_a = exp(logit_a - max), scores_a = weights_a s_a and, of RIB_EMBEDDING only,
// ratios_a = weights_a Q_a / P_a.
// `scores` is x.products: a column is read before it is written.
template <rib_form form, typename T, typename LogP>
RIB_INLINE Average average(const Logits x, const T* log_q, const LogP log_p, int64_t K, float gamma,
                           float* weights, float* scores, float* ratios) {
    // A float32 sum over 100,000 columns would lose a digit; one over a chunk does not.
    constexpr int64_t kChunk = 1024;
    const float gamma_bits = gamma * 0.693147181f;
    float max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int64_t a = 0; a < K; ++a) max = x[a] > max ? x[a] : max;
    Average total;
    for (int64_t begin = 0; begin < K; begin += kChunk) {
        const int64_t end = K - begin < kChunk ? K : begin + kChunk;
        const float* const q = unpacked(log_q, weights, begin, end);
        float weight_sum = 0, score_sum = 0, ratio_sum = 0;
#pragma omp simd reduction(+ : weight_sum, score_sum, ratio_sum)
        for (int64_t a = begin; a < end; ++a) {
            const float bits = x[a] - max;
            const float weight = power_of_2(bits);
            const Column<form> column(bits, q[a], log_p[a], gamma_bits);
            const float score = weight * column.score, ratio = weight * column.ratio;
            weights[a] = weight;
            scores[a] = score;
            if (form == RIB_EMBEDDING) ratios[a] = ratio;
            weight_sum += weight;
            score_sum += score;
            ratio_sum += ratio;
        }
        total.weight += weight_sum;
        total.score += score_sum;
        total.ratio += ratio_sum;
    }
    return total;
}

// Floats of scratch that bound_row needs, for each thread.
int64_t bound_scratch(const rib_bound_args& p) { return p.form == RIB_EMBEDDING ? 2 * p.K : p.K; }

template <rib_form form, typename T, typename LogP>
RIB_INLINE float bound_row_of(float* products, const T* log_q, const LogP log_p, float* scratch,
                              const rib_bound_args& p) {
    const int64_t K = p.K;
    float *const weights = scratch, *const ratios = form == RIB_EMBEDDING ? scratch + K : nullptr;
    const Logits x(products, p.half_norms, p.scale);
    const Average total = average<form>(x, log_q, log_p, K, p.gamma, weights, products, ratios);
    const float inverse = total.inverse(), mean = total.mean();
    if (form == RIB_CLUSTERS) {
#pragma omp simd
        for (int64_t a = 0; a < K; ++a) products[a] = inverse * (products[a] - mean * weights[a]);
    } else {
        const float inverse_ratio = static_cast<float>(1 / total.ratio);
#pragma omp simd
        for (int64_t a = 0; a < K; ++a) {
            products[a] =
                inverse * (products[a] - (mean - 1.f) * weights[a]) - inverse_ratio * ratios[a];
        }
    }
    return total.loss<form>(p.gamma);
}

// Turns a row of products into the gradient and returns the loss. `scratch`: of bound_scratch().
template <typename T>
RIB_INLINE float bound_row(float* products, const T* log_q, float* scratch,
                           const rib_bound_args& p) {
    if (p.form == RIB_EMBEDDING) {
        return p.log_p ? bound_row_of<RIB_EMBEDDING>(products, log_q, p.log_p, scratch, p)
                       : bound_row_of<RIB_EMBEDDING>(products, log_q, Zeros(), scratch, p);
    }
    return p.log_p ? bound_row_of<RIB_CLUSTERS>(products, log_q, p.log_p, scratch, p)
                   : bound_row_of<RIB_CLUSTERS>(products, log_q, Zeros(), scratch, p);
}

// ---- One row, once per instruction set

template <typename T>
using BoundRow = float (*)(float* products, const T* log_q, float* scratch, const rib_bound_args&);

struct RowFunctions {
    const char* description;
    std::tuple<BoundRow<float>, BoundRow<Float16>, BoundRow<BFloat16>> bound;
};

// Functions picked by hand and not target_clones, which need glibc and a recent compiler.
#define RIB_ROW_FUNCTIONS(isa, description, attributes)                                       \
    namespace isa {                                                                           \
    template <typename T>                                                                     \
    attributes float bound(float* products, const T* log_q, float* scratch,                   \
                           const rib_bound_args& p) {                                         \
        return bound_row(products, log_q, scratch, p);                                        \
    }                                                                                         \
    const RowFunctions rows = {description, {bound<float>, bound<Float16>, bound<BFloat16>}}; \
    }

RIB_ROW_FUNCTIONS(portable, "CPU, portable code", )
#if RIB_MAX_ISA >= 1
RIB_ROW_FUNCTIONS(avx2, "CPU, AVX2", __attribute__((target("avx2,fma"))))
#endif
#if RIB_MAX_ISA >= 2
RIB_ROW_FUNCTIONS(avx512, "CPU, AVX-512",
                  __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))))
#endif

const RowFunctions& row_functions() {
#if RIB_MAX_ISA >= 2
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return avx512::rows;
    }
#endif
#if RIB_MAX_ISA >= 1
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::rows;
#endif
    return portable::rows;
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
    const RowFunctions& functions = row_functions();
    const int threads = threads_for(p.n, p.K, p.threads, p.parallel);
    const int64_t size = bound_scratch(p);
    const std::unique_ptr<float[]> scratch(new (std::nothrow) float[threads * size]);
    if (!scratch) return RIB_EROOM;
    for_each(p.n, threads, p.parallel, [&](int64_t i, int thread) {
        float* const products = p.products + i * p.products_pitch;
        const int64_t label = p.labels[i];
        if (label < 0 || label >= p.C) {
            memset(products, 0, p.K * sizeof(float));
            p.loss[i] = label < 0 ? 0.f : NAN;
            return;
        }
        const T* const log_q = static_cast<const T*>(p.log_q) + label * p.log_q_pitch;
        float* const own = scratch.get() + thread * size;
        p.loss[i] = std::get<BoundRow<T>>(functions.bound)(products, log_q, own, p);
    });
    return RIB_OK;
}

int bound(const rib_bound_args* args) {
    if (!args) return RIB_EARG;
    const rib_bound_args& p = *args;
    if (!rib::sizes_fit(p)) return RIB_EARG;
    if (p.n == 0) return RIB_OK;
    if (!rib::pointers_given(p)) return RIB_EARG;
    if (p.log_q_dtype == RIB_F16) return bound_of<Float16>(p);
    if (p.log_q_dtype == RIB_BF16) return bound_of<BFloat16>(p);
    return bound_of<float>(p);
}

}  // namespace

extern "C" {
int rib_abi(void) { return RIB_ABI_VERSION; }
int rib_bound(const rib_bound_args* args) { return bound(args); }
const char* rib_describe(void) { return row_functions().description; }
const char* rib_error_text(int code) {
    if (code == RIB_EARG) return "an argument is not allowed";
    if (code == RIB_EROOM) return "no memory for a row of numbers or two for each thread";
    return code == RIB_OK ? "no error" : "unknown error";
}
}
