// The output head: int8 scores of the whole vocabulary, exact logits from the model's own rows, and the search for the
// likeliest tokens, which gives what Sampler::best_candidates finds on the CPU.
#pragma once

#include "cuda/ternary.cuh"

namespace bitnet::cuda {

struct Int8Head {
    const int8_t* values;       // [vocab][stride]
    size_t stride;              // a multiple of 64
    const float *scales, *error_norms, *row_norms;  // [vocab]
    int vocab;
};

constexpr int kHeadThreads = 256;

// scores[o][r] = float(dot) * (row scale * x scale) for outputs o. A warp takes 16 rows and up to 8 kTiles outputs; element
// 64 c + 16 t + i of rows and outputs meets in lane 4g + t, so that both are read 16 bytes at a time.
// grid: rows / 128, groups of 8 kTiles outputs.
template <int kTiles>
BITNET_KERNEL(kHeadThreads) head_scores(Int8Head head, Operand x, int n_outputs, float* scores) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
    const int first_row = (static_cast<int>(blockIdx.x) * (kHeadThreads / kWarp) + warp) * 16, first_output = static_cast<int>(blockIdx.y) * 8 * kTiles;
    if (first_row >= head.vocab) return;  // the whole warp
    const auto row_at = [&](int row) {
        return reinterpret_cast<const uint4*>(head.values + static_cast<size_t>(row < head.vocab ? row : head.vocab - 1) * head.stride) + t;
    };
    const uint4 *upper = row_at(first_row + g), *lower = row_at(first_row + g + 8);
    int sums[kTiles][4];
    BITNET_UNROLL for (int n = 0; n < kTiles; n++)
        BITNET_UNROLL for (int j = 0; j < 4; j++) sums[n][j] = 0;
    const int n_steps = static_cast<int>(head.stride / 64);
    BITNET_UNROLL_BY_4 for (int step = 0; step < n_steps; step++) {
        const uint4 a = load_streaming(upper + 4 * step), b = load_streaming(lower + 4 * step);
        BITNET_UNROLL for (int n = 0; n < kTiles; n++) {
            const int output = first_output + n * 8 + g;
            uint4 v = make_uint4(0, 0, 0, 0);
            if (output < n_outputs) v = reinterpret_cast<const uint4*>(x.values + static_cast<size_t>(output) * x.stride)[4 * step + t];
            multiply_tile<false>(sums[n], a.x, b.x, a.y, b.y, v.x, v.y);
            multiply_tile<false>(sums[n], a.z, b.z, a.w, b.w, v.z, v.w);
        }
    }
    BITNET_UNROLL for (int n = 0; n < kTiles; n++)
        BITNET_UNROLL for (int j = 0; j < 4; j++) {
            const int row = first_row + g + 8 * (j / 2), output = first_output + n * 8 + 2 * t + j % 2;
            if (row < head.vocab && output < n_outputs)
                scores[static_cast<size_t>(output) * head.vocab + row] = static_cast<float>(sums[n][j]) * (head.scales[row] * x.scales[output]);
        }
}

// hidden [n_outputs][n] to int8, for head_scores.
BITNET_KERNEL(kRowThreads) quantise_hidden(const float* hidden, int n, Operand out, float* spare, int* not_finite) {
    float* row = row_buffer(spare, n);
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) row[i] = hidden[static_cast<size_t>(blockIdx.x) * n + i];
    quantise(row, n, out, static_cast<int>(blockIdx.x), not_finite);
}

// One row of the head times one hidden state, in 32 lanes (dot_f32, dot_f16 and dot_bf16 of the CPU), on every lane.
BITNET_DEVICE float exact_logit(const DenseRows& rows, int row, const float* hidden, int n, int lane) {
    const uint8_t* data = rows.data + static_cast<size_t>(row) * rows.row_bytes;
    float sum = 0;
    BITNET_UNROLL_BY_8 for (int i = lane; i < n; i += kWarp) sum = fma_(element(rows.type, data, i), hidden[i], sum);
    return sum_lanes(sum);
}

// out [n_outputs][vocab]; a warp takes one row for all outputs. grid: vocab / 8.
BITNET_KERNEL(kHeadThreads) exact_logits(DenseRows rows, int vocab, const float* hidden, int n, int n_outputs, float* out) {
    const int row = static_cast<int>(blockIdx.x) * (kHeadThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    if (row >= vocab) return;
    for (int o = 0; o < n_outputs; o++) {
        const float logit = exact_logit(rows, row, hidden + static_cast<size_t>(o) * n, n, lane);
        if (lane == 0) out[static_cast<size_t>(o) * vocab + row] = logit;
    }
}

// ---- candidates ---------------------------------------------------------------------------------------------------------

struct Search {
    int output, count;
    const uint32_t* mask;      // or null
    int n_mask_words;
    float error_factor, norm_factor;
};

struct Candidate {
    int token;
    float logit, approximate;
    int may_be_best;
};

// Floats as integers of the same order; 0 is below all of them.
BITNET_DEVICE uint32_t order_key(float x) {
    const uint32_t bits = float_to_bits(x + 0.0f);  // -0 is 0
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
BITNET_DEVICE bool allowed(const Search& search, int token) {
    return !search.mask || (token / 32 < search.n_mask_words && (search.mask[token / 32] >> (token % 32) & 1));
}
BITNET_DEVICE float error_bound(const Int8Head& head, const Search& search, int token, float logit) {
    const float bound = head.error_norms[token] * search.error_factor + head.row_norms[token] * search.norm_factor;
    return bound + 1e-6f * fabsf(logit);
}

constexpr int kSearchThreads = 1024;
constexpr int kBins = 2048;
constexpr int kBinGroups = 64;  // of 32

// Of each search (grid): the tokens whose score is at least the count-th largest among those allowed, and those that the
// error bound does not exclude from being the likeliest. found[s] counts them; the first `capacity`, in any order, are
// written, without their exact logits. Shared memory: (kBins + 128) words.
BITNET_KERNEL(kSearchThreads) find_candidates(Int8Head head, const Search* searches, const float* scores, Candidate* out, int capacity, int* found) {
    const Search search = searches[blockIdx.x];
    const float* row = scores + static_cast<size_t>(search.output) * head.vocab;
    uint32_t* bins = reinterpret_cast<uint32_t*>(shared_memory());
    uint32_t* groups = bins + kBins;       // [kBinGroups]
    uint32_t* scratch = groups + kBinGroups;  // [32]
    uint32_t* chosen = scratch + kWarp;    // prefix so far, number still wanted
    const int thread = static_cast<int>(threadIdx.x);

    // The count-th largest key, digit by digit from the top (11, 11 and 10 bits), and the best lower bound on the way.
    uint32_t prefix = 0, wanted = static_cast<uint32_t>(search.count), best_lower = 0;
    for (int digit = 0; digit < 3; digit++) {
        const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, n_bins = digit == 2 ? 1024 : kBins;
        for (int i = thread; i < kBins; i += kSearchThreads) bins[i] = 0;
        __syncthreads();
        for (int token = thread; token < head.vocab; token += kSearchThreads) {
            if (!allowed(search, token)) continue;
            const float logit = row[token];
            const uint32_t key = order_key(logit);
            if (digit == 0) {
                const uint32_t lower = order_key(logit - error_bound(head, search, token, logit));
                best_lower = lower > best_lower ? lower : best_lower;
            }
            if (digit == 0 || key >> (shift + (digit == 1 ? 11 : 10)) == prefix) atomicAdd(&bins[key >> shift & (n_bins - 1)], 1u);
        }
        __syncthreads();
        if (thread < kBinGroups) {
            uint32_t sum = 0;
            for (int i = 0; i < kBins / kBinGroups; i++) sum += bins[thread * (kBins / kBinGroups) + i];
            groups[thread] = sum;
        }
        __syncthreads();
        if (thread == 0) {
            int group = kBinGroups - 1;
            while (group > 0 && groups[group] < wanted) wanted -= groups[group--];
            int bin = (group + 1) * (kBins / kBinGroups) - 1;
            while (bin > group * (kBins / kBinGroups) && bins[bin] < wanted) wanted -= bins[bin--];
            chosen[0] = prefix << (digit == 2 ? 10 : 11) | static_cast<uint32_t>(bin);
            chosen[1] = wanted;
        }
        __syncthreads();
        prefix = chosen[0];
        wanted = chosen[1];
    }
    best_lower = block_max(best_lower, scratch);

    Candidate* own = out + static_cast<size_t>(blockIdx.x) * capacity;
    for (int token = thread; token < head.vocab; token += kSearchThreads) {
        if (!allowed(search, token)) continue;
        const float logit = row[token];
        const bool may_be_best = order_key(logit + error_bound(head, search, token, logit)) >= best_lower;
        if (order_key(logit) < prefix && !may_be_best) continue;
        const int at = atomicAdd(&found[blockIdx.x], 1);
        if (at < capacity) own[at] = Candidate{token, 0, logit, may_be_best};
    }
}

// Their exact logits. grid: capacity / 8, searches.
BITNET_KERNEL(kHeadThreads) score_candidates(DenseRows rows, const float* hidden, int n, const Search* searches, Candidate* candidates, int capacity,
                                             const int* found) {
    const int index = static_cast<int>(blockIdx.x) * (kHeadThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, search = static_cast<int>(blockIdx.y);
    if (index >= capacity || index >= found[search]) return;
    Candidate& candidate = candidates[static_cast<size_t>(search) * capacity + index];
    const float logit = exact_logit(rows, candidate.token, hidden + static_cast<size_t>(searches[search].output) * n, n, lane);
    if (lane == 0) candidate.logit = logit;
}

}  // namespace bitnet::cuda
