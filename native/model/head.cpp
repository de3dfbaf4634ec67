#include "model/head.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/offload.h"
#include "quant/dense.h"

namespace bitnet {

namespace {

float dot_row(const DenseRows& rows, const Kernels& kernels, int32_t row, const float* x, int32_t n, float* scratch) {
    const uint8_t* data = rows.row(row);
    switch (rows.type) {
        case TensorType::F16: return kernels.dot_f16(reinterpret_cast<const uint16_t*>(data), x, n);
        case TensorType::BF16: return kernels.dot_bf16(reinterpret_cast<const uint16_t*>(data), x, n);
        default: decode_row(rows.type, data, static_cast<size_t>(n), scratch); return kernels.dot_f32(scratch, x, n);
    }
}

}  // namespace

float LogitRow::exact(int32_t token) const {
    if (given_) return given_[token];
    thread_local std::vector<float> scratch;
    scratch.resize(static_cast<size_t>(model_->sizes().hidden_size));
    return dot_row(model_->head(), *kernels_, token, hidden_, model_->sizes().hidden_size, scratch.data());
}

std::vector<float> LogitRow::exact_all() const {
    if (given_) return {given_, given_ + given_vocab_};
    std::vector<float> logits(static_cast<size_t>(vocab_size()));
    head_->exact(hidden_, index_, 1, logits.data());
    return logits;
}

const float* LogitRow::approximate() const { return given_ ? given_ : head_->approximate(index_); }

std::vector<FoundToken> LogitRow::search(size_t count, const std::vector<uint32_t>& mask) const {
    return given_ ? std::vector<FoundToken>{} : head_->search(*this, count, mask);
}

void OutputHead::compute(const float* hidden, int n) {
    const HeadRows& rows = model_.packed().head();
    const int32_t size = model_.sizes().hidden_size, vocab = model_.sizes().vocab_size;
    const size_t count = static_cast<size_t>(n);
    hidden_ = hidden;
    n_ = n;
    fetched_.assign(device_ ? count : 0, false);
    searched_ = 0;
    found_.clear();
    rounding_ = 0;
    if (quantized_.size() < count * rows.stride) {
        quantized_ = PageBuffer(count * rows.stride);
        scores_ = PageBuffer(count * static_cast<size_t>(vocab) * sizeof(float));
    }
    for (std::vector<float>* values : {&scales_, &norms_, &errors_}) values->resize(count);
    sums_.resize(count);
    for (int t = 0; t < n; t++) {
        const float* h = hidden + static_cast<size_t>(t) * static_cast<size_t>(size);
        int8_t* q = quantized_.as<int8_t>() + static_cast<size_t>(t) * rows.stride;
        kernels_.quantize_row(h, size, rows.stride, q, &scales_[static_cast<size_t>(t)], &sums_[static_cast<size_t>(t)]);
        double norm = 0, error = 0;
        for (int32_t i = 0; i < size; i++) {
            const double rest = h[i] - static_cast<double>(scales_[static_cast<size_t>(t)]) * q[i];
            norm += static_cast<double>(h[i]) * h[i];
            error += rest * rest;
        }
        norms_[static_cast<size_t>(t)] = static_cast<float>(std::sqrt(norm) * (1 + 1e-6));
        errors_[static_cast<size_t>(t)] = static_cast<float>(std::sqrt(error) * (1 + 1e-6));
    }
    if (device_) return;
    const QuantizedRows x{quantized_.as<int8_t>(), rows.stride, scales_.data(), sums_.data()};
    pool_.run([&](ThreadPool::Worker& worker) {
        worker.parallel_for(vocab, 1024, [&](int64_t begin, int64_t end) {
            kernels_.head_rows(rows.values, rows.stride, rows.scales, static_cast<int>(begin), static_cast<int>(end), x, n,
                               scores_.as<float>(), static_cast<size_t>(vocab));
        });
    });
}

const float* OutputHead::approximate(int index) {
    const size_t i = static_cast<size_t>(index);
    float* scores = scores_.as<float>() + i * static_cast<size_t>(model_.sizes().vocab_size);
    if (device_ && !fetched_[i]) {
        device_->approximate(index, scores);
        fetched_[i] = true;
    }
    return scores;
}

std::vector<FoundToken> OutputHead::search(const LogitRow& of, size_t count, const std::vector<uint32_t>& mask) {
    if (!device_) return {};
    // Without a mask all rows of the step are searched together, since the others will be asked for next.
    const bool all = mask.empty();
    if (all && searched_ == count) return found_[static_cast<size_t>(of.index_)];
    std::vector<BitnetGpuSearch> searches;
    for (int index = all ? 0 : of.index_; index < (all ? n_ : of.index_ + 1); index++) {
        const LogitRow one = row(index);
        searches.push_back({index, static_cast<int32_t>(count), all ? nullptr : mask.data(), static_cast<int32_t>(mask.size()), one.error_factor_,
                            one.norm_factor_});
    }
    std::vector<std::vector<FoundToken>> found;
    for (const std::vector<BitnetGpuCandidate>& candidates : device_->candidates(searches)) {
        found.emplace_back();
        for (const BitnetGpuCandidate& c : candidates) found.back().push_back({c.token, c.logit, c.approximate, c.may_be_best != 0});
    }
    if (!all) return found.front();
    searched_ = count;
    found_ = std::move(found);
    return found_[static_cast<size_t>(of.index_)];
}

void OutputHead::take(const float* hidden, const float* scores, int n, float rounding) {
    const size_t size = static_cast<size_t>(model_.sizes().hidden_size), vocab = static_cast<size_t>(model_.sizes().vocab_size);
    const size_t count = static_cast<size_t>(n);
    taken_.assign(hidden, hidden + count * size);
    hidden_ = taken_.data();
    n_ = n;
    fetched_.clear();
    searched_ = 0;
    found_.clear();
    if (scores_.size() < count * vocab * sizeof(float)) scores_ = PageBuffer(count * vocab * sizeof(float));
    if (count > 0) std::memcpy(scores_.data(), scores, count * vocab * sizeof(float));
    norms_.resize(count);
    errors_.assign(count, 0.0f);  // the hidden states were not quantised
    rounding_ = rounding;
    for (size_t t = 0; t < count; t++) {
        double norm = 0;
        for (size_t i = 0; i < size; i++) norm += static_cast<double>(hidden[t * size + i]) * hidden[t * size + i];
        norms_[t] = static_cast<float>(std::sqrt(norm) * (1 + 1e-6));
    }
}

LogitRow OutputHead::row(int index) {
    const int32_t size = model_.sizes().hidden_size;
    const size_t i = static_cast<size_t>(index);
    LogitRow row;
    row.head_ = this;
    row.index_ = index;
    row.model_ = &model_;
    row.kernels_ = &kernels_;
    row.hidden_ = hidden_ + i * static_cast<size_t>(size);
    // Rounding of the exact f32 dot product itself (32 lanes, each a chain of size/32 additions, then five more), and of the
    // two multiplications behind the integer one, relative to |w| |h|.
    const float rounding = (static_cast<float>(size) / 32.0f + 16.0f) * 6e-8f;
    row.error_factor_ = norms_[i] * (1 + rounding);
    row.norm_factor_ = errors_[i] + norms_[i] * (rounding + rounding_);
    // The sums over value + 128 and over 128: at most scale * (|value| + 2 * 128 * sqrt(size)) * |h| in magnitudes.
    row.scale_factor_ = norms_[i] * rounding_ * 256.0f * std::sqrt(static_cast<float>(size));
    return row;
}

void OutputHead::exact(const float* hidden, int first, int n, float* out) const {
    if (device_) return device_->logits(first, n, out);
    const int32_t size = model_.sizes().hidden_size, vocab = model_.sizes().vocab_size;
    const DenseRows& rows = model_.head();
    pool_.run([&](ThreadPool::Worker& worker) {
        std::vector<float> scratch(static_cast<size_t>(size));
        worker.parallel_for(vocab, 64, [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; r++) {
                // With several positions the row is decoded once; decoding is exact, so the dot product is the same.
                if (n > 1) decode_row(rows.type, rows.row(static_cast<int32_t>(r)), scratch.size(), scratch.data());
                for (int t = 0; t < n; t++) {
                    const float* h = hidden + static_cast<size_t>(t) * static_cast<size_t>(size);
                    out[static_cast<size_t>(t) * static_cast<size_t>(vocab) + static_cast<size_t>(r)] =
                        n > 1 ? kernels_.dot_f32(scratch.data(), h, size)
                              : dot_row(rows, kernels_, static_cast<int32_t>(r), h, size, scratch.data());
                }
            }
        });
    });
}

}  // namespace bitnet
