// What the kernels should compute, in float64 and from the definitions, and how far float32 may be
// off.
//
// phi_a = softmax_a(scale (products_a - half_norms_a)),   ratio_a = Q_a / P_a,
// clusters:   s_a = gamma log phi_a - log_q_a + (1 - gamma) log_p_a, loss = sum_a phi_a s_a,
//             gradient_a = phi_a (s_a - loss);
// embedding:  s_a = gamma (log phi_a - log_p_a), mean = sum_a phi_a s_a, u = sum_a phi_a ratio_a,
//             loss = mean - log u, gradient_a = phi_a (s_a - mean + 1) - phi_a ratio_a / u.
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

// The softmax average of s, and phi_a (s_a - average). `sizes` are those of what s is summed of.
inline Bound average(const Softmax& phi, const std::vector<double>& s,
                     const std::vector<double>& sizes, double gamma) {
    const size_t K = s.size();
    double mean = 0.0, magnitude = 0.0, spread = 0.0;
    for (size_t a = 0; a < K; ++a) {
        mean += exp(phi.log_phi[a]) * s[a];
        magnitude += exp(phi.log_phi[a]) * sizes[a];
    }
    for (size_t a = 0; a < K; ++a) spread += exp(phi.log_phi[a]) * fabs(s[a] - mean);
    const double e = phi.relative_error;
    const double mean_error = e * (spread + gamma) + 16.0 * kRounding * magnitude + kTiny;
    Bound result{{mean, mean_error}, {}};
    for (size_t a = 0; a < K; ++a) {
        const double weight = exp(phi.log_phi[a]), difference = s[a] - mean;
        const double size = sizes[a] + fabs(mean);
        result.gradient.push_back(
            {weight * difference,
             weight * (e * (fabs(difference) + gamma) + mean_error + 8.0 * kRounding * size) +
                 kTiny});
    }
    return result;
}

inline Bound clusters_bound(const Softmax& phi, const std::vector<double>& log_q,
                            const std::vector<double>& log_p, double gamma) {
    std::vector<double> s, sizes;
    for (size_t a = 0; a < log_q.size(); ++a) {
        s.push_back(gamma * phi.log_phi[a] - log_q[a] + (1.0 - gamma) * log_p[a]);
        sizes.push_back(fabs(s[a]) + (1.0 + gamma) * fabs(log_p[a]));
    }
    return average(phi, s, sizes, gamma);
}

inline Bound embedding_bound(const Softmax& phi, const std::vector<double>& log_q,
                             const std::vector<double>& log_p, double gamma) {
    const size_t K = log_q.size();
    const double heaviest = exp(*std::max_element(phi.log_phi.begin(), phi.log_phi.end()));
    std::vector<double> s, sizes, joint, errors;  // joint_a = phi_a ratio_a
    double u = 0.0, u_error = 0.0;
    for (size_t a = 0; a < K; ++a) {
        const double weight = exp(phi.log_phi[a]);
        s.push_back(gamma * (phi.log_phi[a] - log_p[a]));
        sizes.push_back(fabs(s[a]) + gamma * fabs(log_p[a]));
        joint.push_back(weight * exp(log_q[a] - log_p[a]));
        const double log_ratio = log_q[a] - log_p[a];
        const double relative = phi.relative_error + kRounding * (16.0 + 4.0 * fabs(log_ratio));
        errors.push_back(exp(log_ratio) * (weight * relative + heaviest * kTiny));
        u += joint[a];
        u_error += errors[a];
    }
    Bound result = average(phi, s, sizes, gamma);
    result.loss.value -= log(u);
    result.loss.tolerance += u_error / u + 8.0 * kRounding * fabs(log(u));
    for (size_t a = 0; a < K; ++a) {
        const double weight = exp(phi.log_phi[a]), posterior = joint[a] / u;
        result.gradient[a].value += weight - posterior;
        result.gradient[a].tolerance += weight * (phi.relative_error + 8.0 * kRounding) +
                                        posterior * (u_error / u + 8.0 * kRounding) +
                                        (errors[a] + heaviest * kTiny) / u;
    }
    return result;
}

#endif
