// The output head. Logits of the whole vocabulary are first computed in int8, a quarter to a half of the bytes the file's own
// rows take; candidates are then rescored with the file's rows. A rigorous bound on the int8 error tells which rows can still
// be the arg max, so greedy output equals that of the full-precision head.
#pragma once

#include <vector>

#include "model/model.h"
#include "platform/thread_pool.h"

namespace bitnet {

// The logits of one position: approximate for all tokens, exact on demand.
class LogitRow {
public:
    int32_t vocab_size() const { return model_->sizes().vocab_size; }
    const float* approximate() const { return approximate_; }  // [vocab]
    // |approximate - exact| <= bound
    float bound(int32_t token) const {
        const HeadRows& rows = model_->packed().head();
        return rows.error_norms[token] * error_factor_ + rows.row_norms[token] * norm_factor_ + rows.scales[token] * scale_factor_;
    }
    float exact(int32_t token) const;
    // All of them, [vocab]; runs on the pool.
    std::vector<float> exact_all() const;

private:
    friend class OutputHead;
    const Model* model_ = nullptr;
    const Kernels* kernels_ = nullptr;
    ThreadPool* pool_ = nullptr;
    const float* hidden_ = nullptr;
    const float* approximate_ = nullptr;
    float error_factor_ = 0, norm_factor_ = 0, scale_factor_ = 0;
};

class OutputHead {
public:
    OutputHead(const Model& model, const Kernels& kernels, ThreadPool& pool) : model_(model), kernels_(kernels), pool_(pool) {}

    // Approximate logits of n hidden states [n][hidden_size]; the rows stay valid until the next call.
    void compute(const float* hidden, int n);
    // The same with scores [n][vocab] that were computed elsewhere, in f32 from `hidden` and the rows packed().head() as
    // scale * (value + 128) - scale * 128, each with a relative error of `rounding` at most against the sum of its terms'
    // magnitudes. Both are copied.
    void take(const float* hidden, const float* scores, int n, float rounding);
    LogitRow row(int index) const;

    // Exact logits: hidden [n][hidden_size] -> out [n][vocab].
    static void exact(const Model& model, const Kernels& kernels, ThreadPool& pool, const float* hidden, int n, float* out);

private:
    const Model& model_;
    const Kernels& kernels_;
    ThreadPool& pool_;
    const float* hidden_ = nullptr;
    PageBuffer quantized_;           // int8 [n][stride]
    std::vector<float> scales_;      // [n]
    std::vector<int32_t> sums_;      // [n]
    std::vector<float> norms_;       // [n] |h|
    std::vector<float> errors_;      // [n] |h - h~|
    PageBuffer scores_;              // f32 [n][vocab]
    std::vector<float> taken_;       // [n][hidden_size], if they were taken
    float rounding_ = 0;             // of scores that were taken
};

}  // namespace bitnet
