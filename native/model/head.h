// The output head. Logits of the whole vocabulary are first computed in int8, a quarter to a half of the bytes the file's own
// rows take; candidates are then rescored with the file's rows. A rigorous bound on the int8 error tells which rows can still
// be the arg max, so greedy output equals that of the full-precision head.
#pragma once

#include <vector>

#include "model/model.h"
#include "platform/thread_pool.h"

namespace bitnet {

class Offload;
class OutputHead;

// A token a search has found.
struct FoundToken {
    int32_t token;
    float logit;        // exact
    float approximate;
    bool may_be_best;   // the error bound does not exclude it from being the likeliest
};

// The logits of one position: approximate for all tokens, exact on demand.
class LogitRow {
public:
    // Of logits [vocab] that were computed elsewhere, which are exact. They must outlive the row.
    static LogitRow of_logits(const float* logits, int32_t vocab) {
        LogitRow row;
        row.given_ = logits;
        row.given_vocab_ = vocab;
        return row;
    }

    int32_t vocab_size() const { return given_ ? given_vocab_ : model_->sizes().vocab_size; }
    const float* approximate() const;  // [vocab]
    // |approximate - exact| <= bound
    float bound(int32_t token) const {
        if (given_) return 0;
        const HeadRows& rows = model_->packed().head();
        return rows.error_norms[token] * error_factor_ + rows.row_norms[token] * norm_factor_ + rows.scales[token] * scale_factor_;
    }
    float exact(int32_t token) const;
    // All of them, [vocab]; runs on the pool.
    std::vector<float> exact_all() const;
    // On a GPU: the tokens the mask allows (as Sampler::set_mask has it) whose approximate logits are at least the count-th
    // largest, and those that may be the likeliest. Empty: the head is not there, or the search found too many.
    std::vector<FoundToken> search(size_t count, const std::vector<uint32_t>& mask) const;

private:
    friend class OutputHead;
    const float* given_ = nullptr;  // else the head has them
    int32_t given_vocab_ = 0;
    OutputHead* head_ = nullptr;
    int index_ = 0;
    const Model* model_ = nullptr;
    const Kernels* kernels_ = nullptr;
    const float* hidden_ = nullptr;
    float error_factor_ = 0, norm_factor_ = 0, scale_factor_ = 0;
};

class OutputHead {
public:
    // `device`: the GPU that has the head, or null.
    OutputHead(const Model& model, const Kernels& kernels, ThreadPool& pool, Offload* device)
        : model_(model), kernels_(kernels), pool_(pool), device_(device) {}

    // Hidden states [n][hidden_size] of a step, which stay valid until the next one's.
    void compute(const float* hidden, int n);
    // The same with scores [n][vocab] that were computed elsewhere, in f32 from `hidden` and the rows packed().head() as
    // scale * (value + 128) - scale * 128, each with a relative error of `rounding` at most against the sum of its terms'
    // magnitudes. Both are copied.
    void take(const float* hidden, const float* scores, int n, float rounding);
    LogitRow row(int index);

    // Exact logits: hidden [n][hidden_size], those of the outputs from `first` on -> out [n][vocab].
    void exact(const float* hidden, int first, int n, float* out) const;

private:
    friend class LogitRow;
    const float* approximate(int index);
    std::vector<FoundToken> search(const LogitRow& row, size_t count, const std::vector<uint32_t>& mask);

    const Model& model_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    Offload* device_;
    const float* hidden_ = nullptr;
    int n_ = 0;
    PageBuffer quantized_;           // int8 [n][stride]
    std::vector<float> scales_;      // [n]
    std::vector<int32_t> sums_;      // [n]
    std::vector<float> norms_;       // [n] |h|
    std::vector<float> errors_;      // [n] |h - h~|
    PageBuffer scores_;              // f32 [n][vocab]
    std::vector<bool> fetched_;      // [n] rows of scores_ that are there; with a device only
    size_t searched_ = 0;            // the count of a search for all rows without masks, whose results are in found_
    std::vector<std::vector<FoundToken>> found_;
    std::vector<float> taken_;       // [n][hidden_size], if they were taken
    float rounding_ = 0;             // of scores that were taken
};

}  // namespace bitnet
