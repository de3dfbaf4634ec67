// What the logits of positions say of a text, and of another model's: log-probabilities and divergences, in double.
#pragma once

#include <cstdint>

namespace bitnet {

// log(sum(exp(logits))) of one position: logit - this is a token's log-probability.
double log_normalizer(const float* logits, int32_t vocab);

// One position as two models of the same vocabulary see it.
struct PositionComparison {
    double divergence;          // Kullback-Leibler, sum(p_a * log(p_a / p_b)), in nats
    double largest_difference;  // max |a - b|
    double top_a, top_b;        // the likeliest tokens; of equals the first
    double logprob_a, logprob_b;  // of the target; NaN without one
};

// target: a token, or -1.
PositionComparison compare_position(const float* a, const float* b, int32_t vocab, int32_t target);

}  // namespace bitnet
