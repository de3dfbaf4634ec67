// Encoders of the dense row types, for embeddings and heads that are kept in another type than the file's. Blocks are laid out
// as dense.cpp decodes them, and quantised as the reference functions of ggml-quants.c do it (quantize_row_*_ref).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "quant/dense.h"

namespace bitnet {

namespace {

void store_f16(uint8_t* bytes, float value) {
    const uint16_t half = f32_to_f16(value);
    std::memcpy(bytes, &half, sizeof half);
}

// 1 / d, or 0 where that is not a number to multiply with: the block counts as zero.
float inverse(float d) {
    const float result = 1.0f / d;
    return std::isfinite(result) ? result : 0.0f;
}

void encode_q8_0(const float* values, size_t n, uint8_t* row) {
    for (size_t i = 0; i < n; i += 32, row += 34) {
        float absmax = 0;
        for (size_t j = 0; j < 32; j++) absmax = std::max(absmax, std::fabs(values[i + j]));
        const float d = absmax / 127, scale = inverse(d);
        store_f16(row, d);
        for (size_t j = 0; j < 32; j++) row[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(std::round(values[i + j] * scale)));
    }
}

// The largest value of a block, with its sign, becomes -8: the range is [-8, 7].
void encode_q4_0(const float* values, size_t n, uint8_t* row) {
    for (size_t i = 0; i < n; i += 32, row += 18) {
        float largest = 0;
        for (size_t j = 0; j < 32; j++)
            if (std::fabs(values[i + j]) > std::fabs(largest)) largest = values[i + j];
        const float d = largest / -8, scale = inverse(d);
        store_f16(row, d);
        const auto code = [&](size_t j) { return std::min(15, static_cast<int>(values[i + j] * scale + 8.5f)); };
        for (size_t j = 0; j < 16; j++) row[2 + j] = static_cast<uint8_t>(code(j) | code(j + 16) << 4);
    }
}

// To the nearest integer, ties to even, for |value| < 2^22.
int nearest(float value) { return (std::bit_cast<int32_t>(value + 12582912.0f) & 0x007fffff) - 0x00400000; }

constexpr int kGroup = 16;            // elements that share a scale in Q6_K
constexpr float kZeroGroup = 1e-15f;  // smaller than this counts as zero

struct Fit {
    float xq = 0, qq = 0;  // sum w x q, sum w q q
};

// Weighted least squares, weights x^2, of a group to codes in [-32, 31] at 1/scale.
Fit fit(const float* x, float scale) {
    Fit sums;
    for (int i = 0; i < kGroup; i++) {
        const int q = std::clamp(nearest(scale * x[i]), -32, 31);
        const float weight = x[i] * x[i];
        sums.xq += weight * x[i] * static_cast<float>(q);
        sums.qq += weight * static_cast<float>(q) * static_cast<float>(q);
    }
    return sums;
}

// The scale of a group: the best of 19 guesses around the one that makes the largest value -32.
float group_scale(const float* x) {
    float largest = 0;
    for (int i = 0; i < kGroup; i++)
        if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
    if (std::fabs(largest) < kZeroGroup) return 0;
    const Fit first = fit(x, -32 / largest);
    float scale = first.qq != 0 ? first.xq / first.qq : 0.0f;
    float best = scale * first.xq;
    for (int step = -9; step <= 9; step++) {
        if (step == 0) continue;
        const Fit next = fit(x, -(32 + 0.1f * static_cast<float>(step)) / largest);
        if (next.qq > 0 && next.xq * next.xq > best * next.qq) {
            scale = next.xq / next.qq;
            best = scale * next.xq;
        }
    }
    return scale;
}

void encode_q6_k(const float* values, size_t n, uint8_t* row) {
    for (size_t block = 0; block < n; block += 256, row += 210, values += 256) {
        float scales[256 / kGroup], largest = 0;
        for (int g = 0; g < 256 / kGroup; g++) {
            scales[g] = group_scale(values + g * kGroup);
            if (std::fabs(scales[g]) > std::fabs(largest)) largest = scales[g];
        }
        std::memset(row, 0, 210);
        if (std::fabs(largest) < kZeroGroup) continue;
        const float scale_of_scales = -128.0f / largest;
        store_f16(row + 208, 1 / scale_of_scales);
        uint16_t half;
        std::memcpy(&half, row + 208, sizeof half);

        uint8_t codes[256] = {};
        for (int g = 0; g < 256 / kGroup; g++) {
            const int8_t scale = static_cast<int8_t>(std::min(127, nearest(scale_of_scales * scales[g])));
            row[192 + g] = static_cast<uint8_t>(scale);
            const float d = f16_to_f32(half) * static_cast<float>(scale);
            if (d == 0) continue;
            for (int i = g * kGroup; i < (g + 1) * kGroup; i++)
                codes[i] = static_cast<uint8_t>(std::clamp(nearest(values[i] / d), -32, 31) + 32);
        }
        for (int part = 0; part < 2; part++) {
            const uint8_t* q = codes + 128 * part;
            uint8_t *low = row + 64 * part, *high = row + 128 + 32 * part;
            for (int l = 0; l < 32; l++) {
                low[l] = static_cast<uint8_t>((q[l] & 15) | (q[l + 64] & 15) << 4);
                low[l + 32] = static_cast<uint8_t>((q[l + 32] & 15) | (q[l + 96] & 15) << 4);
                high[l] = static_cast<uint8_t>(q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6);
            }
        }
    }
}

}  // namespace

void encode_row(TensorType type, const float* values, size_t n, uint8_t* row) {
    switch (type) {
        case TensorType::F32: std::memcpy(row, values, n * sizeof(float)); return;
        case TensorType::F16:
            for (size_t i = 0; i < n; i++) store_f16(row + 2 * i, values[i]);
            return;
        case TensorType::BF16:
            for (size_t i = 0; i < n; i++) {
                const uint16_t half = f32_to_bf16(values[i]);
                std::memcpy(row + 2 * i, &half, sizeof half);
            }
            return;
        case TensorType::Q4_0: encode_q4_0(values, n, row); return;
        case TensorType::Q8_0: encode_q8_0(values, n, row); return;
        case TensorType::Q6_K: encode_q6_k(values, n, row); return;
        default: break;
    }
    throw std::logic_error("encode_row: no encoder for " + tensor_type_name(type));
}

}  // namespace bitnet
