#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "model/statistics.h"
#include "platform/errors.h"

namespace bitnet {

namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// Candidates that are always rescored exactly, also where the bound alone would admit fewer: they are what sampling with the
// usual top_k draws from.
constexpr size_t kMinCandidates = 64;

bool likelier(float logit_a, int32_t a, float logit_b, int32_t b) { return logit_a > logit_b || (logit_a == logit_b && a < b); }

}  // namespace

Sampler::Sampler(const SamplingOptions& options, std::vector<std::pair<int32_t, float>> logit_bias,
                 const std::vector<int32_t>& prompt)
    : options_(options), bias_(logit_bias.begin(), logit_bias.end()), state_(options.seed) {
    if (options_.repetition_penalty != 1.0f)
        for (int32_t token : prompt) seen_[token].in_prompt = true;
}

void Sampler::accept(int32_t token) {
    if (options_.repetition_penalty != 1.0f || options_.presence_penalty != 0.0f || options_.frequency_penalty != 0.0f)
        seen_[token].generated++;
}

float Sampler::adjust(int32_t token, float logit) const {
    if (const auto bias = bias_.find(token); bias != bias_.end()) logit += bias->second;
    if (const auto it = seen_.find(token); it != seen_.end()) {
        logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
        if (it->second.generated > 0)
            logit -= options_.presence_penalty + options_.frequency_penalty * static_cast<float>(it->second.generated);
    }
    return logit;
}

std::vector<Sampler::Candidate> Sampler::best_candidates(const LogitRow& row) {
    const int32_t vocab = row.vocab_size();
    adjusted_.assign(row.approximate(), row.approximate() + vocab);
    if (!mask_.empty())
        for (int32_t t = 0; t < vocab; t++) {
            const size_t word = static_cast<size_t>(t) / 32;
            if (word >= mask_.size() || !(mask_[word] >> (t % 32) & 1)) adjusted_[static_cast<size_t>(t)] = kForbidden;
        }
    // adjust() stretches differences by at most this factor, and so the error bound.
    const float stretch = std::max(options_.repetition_penalty, 1.0f / options_.repetition_penalty);
    const auto touch = [&](int32_t token) {
        float& logit = adjusted_[static_cast<size_t>(token)];
        if (logit != kForbidden) logit = adjust(token, row.approximate()[token]);
    };
    for (const auto& entry : bias_) touch(entry.first);
    for (const auto& entry : seen_)
        if (!bias_.count(entry.first)) touch(entry.first);
    // An additive change rounds once more in f32.
    const auto bound = [&](int32_t token) {
        const float logit = adjusted_[static_cast<size_t>(token)];
        return row.bound(token) * stretch + 1e-6f * std::fabs(logit);
    };

    // The best `count` by approximate logit (a heap whose root is the worst kept), and the best lower bound.
    // With top_k some more than that, since the int8 scores may swap neighbours at its edge.
    const int32_t top_k = options_.temperature > 0 ? options_.top_k : 0;
    const size_t count = std::max(kMinCandidates, static_cast<size_t>(int64_t{top_k} + top_k / 4 + 16));
    const auto worst_last = [](const Candidate& a, const Candidate& b) { return likelier(a.logit, a.token, b.logit, b.token); };
    std::vector<Candidate> best;
    float lower = kForbidden;
    for (int32_t t = 0; t < vocab; t++) {
        const float logit = adjusted_[static_cast<size_t>(t)];
        if (logit == kForbidden) continue;
        if (best.size() == count && logit <= best.front().logit) continue;
        lower = std::max(lower, logit - bound(t));
        if (best.size() == count) {
            std::pop_heap(best.begin(), best.end(), worst_last);
            best.back() = {t, logit};
        } else {
            best.push_back({t, logit});
        }
        std::push_heap(best.begin(), best.end(), worst_last);
    }
    if (best.empty()) throw InvalidRequestError("no token is allowed: the constraint excludes the whole vocabulary");
    // Also every other token that the bound does not exclude from being the arg max.
    if (best.size() == count) {
        std::vector<bool> kept(static_cast<size_t>(vocab));
        for (const Candidate& c : best) kept[static_cast<size_t>(c.token)] = true;
        for (int32_t t = 0; t < vocab; t++) {
            const float logit = adjusted_[static_cast<size_t>(t)];
            if (logit != kForbidden && logit + bound(t) >= lower && !kept[static_cast<size_t>(t)]) best.push_back({t, logit});
        }
    }
    for (Candidate& c : best) c.logit = adjust(c.token, row.exact(c.token));
    std::sort(best.begin(), best.end(), worst_last);
    return best;
}

Sampled Sampler::sample(const LogitRow& row, int n_logprobs) {
    std::vector<Candidate> candidates = best_candidates(row);
    Sampled result;
    result.token = options_.temperature <= 0 ? candidates.front().token : draw(row, std::move(candidates));
    result.logprob = std::numeric_limits<float>::quiet_NaN();
    if (n_logprobs >= 0) {
        const std::vector<float> logits = row.exact_all();
        const double normaliser = log_normalizer(logits.data(), row.vocab_size());
        result.logprob = static_cast<float>(logits[static_cast<size_t>(result.token)] - normaliser);
        std::vector<int32_t> order(logits.size());
        for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int32_t>(i);
        const size_t n = std::min(static_cast<size_t>(n_logprobs), order.size());
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(), [&](int32_t a, int32_t b) {
            return likelier(logits[static_cast<size_t>(a)], a, logits[static_cast<size_t>(b)], b);
        });
        for (size_t i = 0; i < n; i++)
            result.top.emplace_back(order[i], static_cast<float>(logits[static_cast<size_t>(order[i])] - normaliser));
    }
    return result;
}

// Draws from softmax(logits / temperature) cut by top_k, top_p and min_p.
int32_t Sampler::draw(const LogitRow& row, std::vector<Candidate> candidates) {
    const size_t n_exact = candidates.size();
    if (options_.top_k > 0) {
        candidates.resize(std::min(candidates.size(), static_cast<size_t>(options_.top_k)));
    } else if (n_exact < static_cast<size_t>(row.vocab_size())) {
        // The whole vocabulary takes part: the rest with approximate logits, which are tiny beside the candidates'.
        for (const Candidate& c : candidates) adjusted_[static_cast<size_t>(c.token)] = kForbidden;
        for (int32_t t = 0; t < row.vocab_size(); t++)
            if (adjusted_[static_cast<size_t>(t)] != kForbidden) candidates.push_back({t, adjusted_[static_cast<size_t>(t)]});
    }

    const double max = candidates.front().logit, temperature = options_.temperature;
    std::vector<double> weights(candidates.size());
    double total = 0;
    for (size_t i = 0; i < candidates.size(); i++) total += weights[i] = std::exp((candidates[i].logit - max) / temperature);

    if (options_.top_p < 1.0f && options_.top_p * total < total) {
        // Only the exact part is sorted; reach into the rest when it does not hold enough probability.
        double held = 0;
        size_t n = 0;
        while (n < std::min(n_exact, candidates.size()) && held < options_.top_p * total) held += weights[n++];
        if (held < options_.top_p * total && n < candidates.size()) {
            std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
                return likelier(a.logit, a.token, b.logit, b.token);
            });
            held = 0;
            for (n = 0; n < candidates.size() && held < options_.top_p * total; n++)
                held += weights[n] = std::exp((candidates[n].logit - candidates.front().logit) / temperature);
        }
        candidates.resize(std::max<size_t>(n, 1));
        weights.resize(candidates.size());
        total = held;
    }
    if (options_.min_p > 0) {
        double kept = 0;
        size_t n = 0;
        for (size_t i = 0; i < candidates.size(); i++)
            if (weights[i] >= options_.min_p * weights.front()) {
                candidates[n] = candidates[i];
                kept += weights[n++] = weights[i];
            }
        candidates.resize(n);
        total = kept;
    }

    double target = uniform() * total;
    for (size_t i = 0; i < candidates.size(); i++) {
        target -= weights[i];
        if (target < 0) return candidates[i].token;
    }
    return candidates.front().token;  // rounding left a sliver beyond the last one
}

// SplitMix64 (Steele, Lea, Flood 2014): one step a token, any 64-bit seed is good.
double Sampler::uniform() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    return static_cast<double>(z >> 11) * 0x1.0p-53;
}

}  // namespace bitnet
