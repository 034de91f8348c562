/* C interface of the fused RIB kernel: the same functions in the CUDA and in the CPU library.
 *
 * No torch and no CUDA headers are needed to build against it or to call it. Legend: n images,
 * K clusters, C identities; all pitches in elements.
 *
 * With logits_ia = scale * (products_ia - half_norms_a), phi_i = softmax_a(logits_i), P the
 * marginal of the clusters, or 1 without one, and ratio_ia = Q(a | y_i) / P_a:
 *
 * RIB_CLUSTERS:   s_ia = gamma (log phi_ia - log P_a) - log ratio_ia,
 *                 loss_i = sum_a phi_ia s_ia,
 *                 d loss_i / d logits_ia = phi_ia (s_ia - loss_i).
 * RIB_EMBEDDING:  s_ia = gamma (log phi_ia - log P_a), mean_i = sum_a phi_ia s_ia,
 *                 u_i = sum_a phi_ia ratio_ia, loss_i = mean_i - log u_i,
 *                 d loss_i / d logits_ia = phi_ia (s_ia - mean_i + 1 - ratio_ia / u_i).
 *
 * products_ia = F_i . C_a, half_norms_a = |C_a|^2 / 2 and scale = 2 beta make these the logits
 * -beta |F_i - C_a|^2, up to a constant of the row that cancels in the softmax.
 *
 * Range of RIB_EMBEDDING, whose ratios are formed in float32: log ratio < 80 everywhere, and > -80
 * where phi is.
 */
#ifndef RIB_H
#define RIB_H

#include <stdint.h>

/* Counts the changes of this file that callers must follow. */
#define RIB_ABI_VERSION 4

enum rib_dtype { RIB_F32 = 0, RIB_F16 = 1, RIB_BF16 = 2 };

/* Whose information about the identity is bounded. */
enum rib_form { RIB_CLUSTERS = 0, RIB_EMBEDDING = 1 };

enum rib_error {
    RIB_OK = 0,
    RIB_EARG = -1, /* a pointer, size, pitch, dtype, form or variant is not allowed */
    RIB_EROOM = -2 /* no room for scratch rows in main memory */
};

/* Bits of `variant`; RIB_AUTO leaves the choice to the library. The others are for tests. */
enum rib_variant { RIB_AUTO = -1, RIB_CACHED = 1, RIB_WIDE = 2 };

typedef struct rib_bound_args {
    float* products;         /* (n, K); in: F_i . C_a; out: d loss_i / d logits_ia */
    const float* half_norms; /* (K) */
    const void* log_q;       /* (C, K), of log_q_dtype */
    const float* log_p;      /* (K): log P, the marginal of the clusters; NULL: P = 1 */
    const int64_t* labels;   /* (n); < 0: loss 0 and gradient 0; >= C: loss NaN, gradient 0 */
    float* loss;             /* (n), out, nats */
    int64_t n, K, C;
    int64_t products_pitch, log_q_pitch;
    float scale;         /* 2 beta */
    float gamma;         /* >= 0 */
    int32_t log_q_dtype; /* rib_dtype */
    int32_t form;        /* rib_form */
    int32_t variant;     /* RIB_AUTO, or RIB_CACHED | RIB_WIDE; the CPU ignores it */
    int32_t threads; /* CUDA: of a block, 0 = automatic; CPU: to use, <= 1 = the caller's only */
    int32_t device;  /* CUDA: its number; the CPU ignores it */
    void* stream;    /* CUDA: cudaStream_t; the CPU ignores it */
    void* parallel;  /* CPU: GOMP_parallel of the OpenMP runtime to use, NULL = no threads */
} rib_bound_args;

#define RIB_API __attribute__((visibility("default")))
#ifdef __cplusplus
extern "C" {
#endif
RIB_API int rib_abi(void); /* RIB_ABI_VERSION of the library */
/* 0, a rib_error, or a positive cudaError_t. The work is queued, nothing is waited for. */
RIB_API int rib_bound(const rib_bound_args* args);
RIB_API const char* rib_error_text(int code);
RIB_API const char* rib_describe(void); /* what the library was built for, for people to read */
#ifdef __cplusplus
}
#endif
#endif
