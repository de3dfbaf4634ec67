#include "model/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace bitnet {

double log_normalizer(const float* logits, int32_t vocab) {
    const double max = *std::max_element(logits, logits + vocab);
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++) sum += std::exp(logits[i] - max);
    return max + std::log(sum);
}

PositionComparison compare_position(const float* a, const float* b, int32_t vocab, int32_t target) {
    const double normalizer_a = log_normalizer(a, vocab), normalizer_b = log_normalizer(b, vocab);
    double divergence = 0, largest = 0;
    for (int32_t i = 0; i < vocab; i++) {
        const double log_a = a[i] - normalizer_a, log_b = b[i] - normalizer_b;
        divergence += std::exp(log_a) * (log_a - log_b);
        largest = std::max(largest, std::fabs(static_cast<double>(a[i]) - b[i]));
    }
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    return {std::max(divergence, 0.0),  // rounding can leave a sliver below zero
            largest,
            static_cast<double>(std::max_element(a, a + vocab) - a),
            static_cast<double>(std::max_element(b, b + vocab) - b),
            target < 0 ? kNone : a[target] - normalizer_a,
            target < 0 ? kNone : b[target] - normalizer_b};
}

}  // namespace bitnet
