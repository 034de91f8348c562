// What the kernels should compute, in float64 and from the definitions, and how far float32 may be
// off.
//
// phi_a = softmax_a(scale (products_a - half_norms_a)),   s_a = gamma log phi_a - log_q_a,
// loss = sum_a phi_a s_a,   gradient_a = phi_a (s_a - loss).
#ifndef RIB_TESTS_REFERENCE_H
#define RIB_TESTS_REFERENCE_H

#include <math.h>
#include <stddef.h>

#include <algorithm>
#include <vector>

constexpr double kRounding = 1.0 / (1 << 24);  // of float32, relative
constexpr double kTiny = 1e-37;                // float32 loses precision below

struct Bounded {
    double value, tolerance;
};

struct Softmax {
    std::vector<double> log_phi;
    double relative_error;  // of a float32 phi: the rounding of its logit, and a few of its own
};

inline Softmax softmax(const std::vector<double>& products, const std::vector<double>& half_norms,
                       double scale) {
    std::vector<double> logits(products.size());
    double largest = 0.0;
    for (size_t a = 0; a < logits.size(); ++a) {
        logits[a] = scale * (products[a] - half_norms[a]);
        largest = std::max(largest, fabs(logits[a]));
    }
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (double logit : logits) sum += exp(logit - max);
    Softmax result{logits, kRounding * (4.0 * largest + 64.0)};
    for (double& logit : result.log_phi) logit -= max + log(sum);
    return result;
}

struct Bound {
    Bounded loss;
    std::vector<Bounded> gradient;
};

// `offset` is the largest |log Q| that the kernel adds and takes away again: a sparse table's
// floor.
inline Bound bound(const Softmax& phi, const std::vector<double>& log_q, double gamma,
                   double offset) {
    const size_t K = log_q.size();
    std::vector<double> s(K);
    double loss = 0.0, magnitude = offset, spread = 0.0;
    for (size_t a = 0; a < K; ++a) {
        s[a] = gamma * phi.log_phi[a] - log_q[a];
        loss += exp(phi.log_phi[a]) * s[a];
        magnitude += exp(phi.log_phi[a]) * fabs(s[a]);
    }
    for (size_t a = 0; a < K; ++a) spread += exp(phi.log_phi[a]) * fabs(s[a] - loss);
    const double e = phi.relative_error;
    const double loss_error = e * (spread + gamma) + 16.0 * kRounding * magnitude + kTiny;
    Bound result{{loss, loss_error}, {}};
    for (size_t a = 0; a < K; ++a) {
        const double weight = exp(phi.log_phi[a]), difference = s[a] - loss;
        const double size = fabs(s[a]) + fabs(loss) + offset;
        result.gradient.push_back(
            {weight * difference,
             weight * (e * (fabs(difference) + gamma) + loss_error + 8.0 * kRounding * size) +
                 kTiny});
    }
    return result;
}

inline Bounded negentropy(const Softmax& phi) {
    const std::vector<double> zeros(phi.log_phi.size(), 0.0);
    return bound(phi, zeros, 1.0, 0.0).loss;
}

#endif
