// Choosing the next token of one sequence. Order: logit bias, penalties, temperature, top_k, top_p, min_p; temperature 0
// takes the arg max after bias and penalties. The same seed gives the same tokens.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/head.h"

namespace bitnet {

struct SamplingOptions {
    float temperature = 0.7f;
    int32_t top_k = 40;               // 0 = all
    float top_p = 0.9f;               // 1 = all
    float min_p = 0.0f;               // of the likeliest token's probability; 0 = off
    float repetition_penalty = 1.0f;  // prompt and generated tokens: logit / p if positive, * p if negative
    float presence_penalty = 0.0f;    // generated tokens: subtracted once
    float frequency_penalty = 0.0f;   // generated tokens: subtracted per occurrence
    uint64_t seed = 0;
};

struct Sampled {
    int32_t token = 0;
    float logprob = 0;                               // NaN if not asked for
    std::vector<std::pair<int32_t, float>> top;      // likeliest first
};

class Sampler {
public:
    Sampler(const SamplingOptions& options, std::vector<std::pair<int32_t, float>> logit_bias, const std::vector<int32_t>& prompt);

    // n_logprobs: -1 none, else how many of the likeliest tokens to report with the chosen one. Log-probabilities are those of
    // the model's own distribution, before bias, penalties and filters, from the exact head.
    Sampled sample(const LogitRow& row, int n_logprobs);
    void accept(int32_t token);

    // Bit t % 32 of word t / 32 allows token t; tokens beyond the mask are not allowed. Empty = all allowed.
    void set_mask(std::vector<uint32_t> mask) { mask_ = std::move(mask); }

private:
    struct Candidate {
        int32_t token;
        float logit;
    };
    struct Seen {
        bool in_prompt = false;
        int32_t generated = 0;
    };

    float adjust(int32_t token, float logit) const;  // bias and penalties
    std::vector<Candidate> best_candidates(const LogitRow& row);  // exact, likeliest first
    static std::vector<Candidate> chosen_of(std::vector<FoundToken> found, size_t count);
    int32_t draw(const LogitRow& row, std::vector<Candidate> candidates);
    double uniform();

    SamplingOptions options_;
    std::unordered_map<int32_t, float> bias_;
    std::unordered_map<int32_t, Seen> seen_;
    std::vector<uint32_t> mask_;
    std::vector<float> adjusted_;  // [vocab] approximate logits after bias, penalties and mask
    uint64_t state_;
};

}  // namespace bitnet
