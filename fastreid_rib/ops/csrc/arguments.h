// What the arguments of rib_bound must be, whatever computes: the checks of both libraries.
#pragma once
#include "rib.h"

namespace rib {

inline bool sizes_fit(const rib_bound_args& p) {
    return p.n >= 0 && p.K >= 1 && p.C >= 1 && p.products_pitch >= p.K && p.log_q_pitch >= p.K &&
           p.log_q_dtype >= RIB_F32 && p.log_q_dtype <= RIB_BF16 && p.form >= RIB_CLUSTERS &&
           p.form <= RIB_EMBEDDING;
}

// Asked for where there are images: without any, nothing is read or written.
inline bool pointers_given(const rib_bound_args& p) {
    return p.products && p.half_norms && p.log_q && p.labels && p.loss;
}

}  // namespace rib
