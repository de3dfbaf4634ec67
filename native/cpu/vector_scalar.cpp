// The specification of the kernels on float rows, KV blocks and the output head: one operation after another, in the
// order every other instruction set repeats. Written to be read, compiled for any machine.
#include "cpu/vector.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "quant/dense.h"

namespace bitnet::scalar {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr uint32_t kInfinityBits = 0x7f800000;

uint32_t float_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

float bits_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

// Of two equal or unordered operands the second, as vmaxps does.
float larger(float a, float b) {
    return a > b ? a : b;
}

// Combine 32 lanes: four registers of 8, (v0 . v1) . (v2 . v3), then the 8 lanes by halves.
template <typename Combine>
float combine_lanes(const float* lanes, Combine combine) {
    float v[8];
    for (int j = 0; j < 8; ++j)
        v[j] = combine(combine(lanes[j], lanes[j + 8]), combine(lanes[j + 16], lanes[j + 24]));
    for (int half = 4; half >= 1; half /= 2)
        for (int j = 0; j < half; ++j) v[j] = combine(v[j], v[j + half]);
    return v[0];
}

float sum_lanes(const float* lanes) {
    return combine_lanes(lanes, [](float a, float b) { return a + b; });
}

// sum of weight(i) * x[i]. Lane j takes the elements j, j + 32, ...; elements beyond n enter as 0 * 0.
template <typename Weight>
float dot(Weight weight, const float* x, int n) {
    float lanes[kLanes] = {};
    for (int i = 0; i < n; i += kLanes)
        for (int j = 0; j < kLanes; ++j) {
            const bool inside = i + j < n;
            lanes[j] = std::fma(inside ? weight(i + j) : 0.0f, inside ? x[i + j] : 0.0f, lanes[j]);
        }
    return sum_lanes(lanes);
}

// Element i of an array that need not be aligned.
template <typename T>
T load(const void* array, int i) {
    T value;
    std::memcpy(&value, static_cast<const char*>(array) + sizeof(T) * static_cast<size_t>(i), sizeof(T));
    return value;
}

}  // namespace

float exp(float x) {
    if (x < kExpLow) return 0.0f;
    const float y = x > kExpHigh ? kExpHigh : x;  // a NaN passes through to the result
    const float shifted = std::fma(y, kLog2E, kRoundMagic);
    const float k = shifted - kRoundMagic;
    float r = std::fma(-k, kLn2High, y);
    r = std::fma(-k, kLn2Low, r);
    float p = kExpPoly[4];
    for (int i = 3; i >= 0; --i) p = std::fma(p, r, kExpPoly[i]);
    p = std::fma(p, r, 1.0f);
    p = std::fma(p, r, 1.0f);
    return p * bits_float((float_bits(shifted) << 23) + float_bits(1.0f));  // 2^k, from the low bits of `shifted`
}

void quantize_row(const float* x, int n, size_t stride, int8_t* values, float* scale, int32_t* sum) {
    std::memset(values, 0, stride);
    *sum = 0;
    uint32_t max_bits = 0;  // of |x|: as integers they order like the floats, with infinity and NaN above all others
    for (int i = 0; i < n; ++i) {
        const uint32_t bits = float_bits(x[i]) & 0x7fffffff;
        if (bits > max_bits) max_bits = bits;
    }
    if (max_bits >= kInfinityBits) {
        *scale = kNan;
        return;
    }
    const float abs_max = larger(bits_float(max_bits), kMinAbsMax);
    const float s = 127.0f / abs_max;
    *scale = abs_max / 127.0f;
    for (int i = 0; i < n; ++i) {
        // |x| * s <= 127 * (1 + 2^-23), which rounds to 127: the clamp of the definition never acts.
        values[i] = static_cast<int8_t>(std::nearbyint(x[i] * s));
        *sum += values[i];
    }
}

// In f32 the sum of squares is good for |x| up to 1e17 at n = 27648, far beyond what relu^2 * up reaches (1e10). Its
// relative error stays below n / 32 * 2^-24 = 5e-5, of which the square root takes half; as rounding errors are random,
// it is a few 1e-7 in practice. A sum that does overflow makes the row NaN rather than a plausible zero.
void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    const float sum = dot([x](int i) { return x[i]; }, x, n);
    const float inverse = sum < kInfinity ? 1.0f / std::sqrt(sum / static_cast<float>(n) + eps) : kNan;
    for (int i = 0; i < n; ++i) y[i] = x[i] * inverse * weight[i];
}

void add(const float* x, int n, float* y) {
    for (int i = 0; i < n; ++i) y[i] = y[i] + x[i];
}

void relu2_mul(const float* gate, const float* up, int n, float* y) {
    for (int i = 0; i < n; ++i) {
        const float positive = larger(0.0f, gate[i]);  // in this order a NaN stays a NaN
        y[i] = positive * positive * up[i];
    }
}

void silu_mul(const float* gate, const float* up, int n, float* y) {
    for (int i = 0; i < n; ++i) y[i] = gate[i] / (1.0f + exp(-gate[i])) * up[i];
}

void gelu_mul(const float* gate, const float* up, int n, float* y) {
    for (int i = 0; i < n; ++i) {
        const float g = gate[i];
        y[i] = g / (1.0f + exp(g * kGeluScale * std::fma(g * g, kGeluCubic, 1.0f))) * up[i];
    }
}

void rope_neox(float* x, int n_heads, int head_dim, int n_rot, const float* cos, const float* sin) {
    const int half = n_rot / 2;
    for (int h = 0; h < n_heads; ++h) {
        float* a = x + static_cast<size_t>(h) * head_dim;
        float* b = a + half;
        for (int i = 0; i < half; ++i) {
            const float a_old = a[i], b_old = b[i];
            a[i] = std::fma(a_old, cos[i], -(b_old * sin[i]));
            b[i] = std::fma(a_old, sin[i], b_old * cos[i]);
        }
    }
}

namespace {

// One query's step of the online softmax: its scores become weights, exactly 0 where not visible. Returns what the
// sums so far are to be multiplied with.
float soften(float* score, int visible, float scale, float* max, float* sum) {
    static_assert(kKvBlock == kLanes, "one position per lane");
    for (int p = 0; p < kKvBlock; ++p) score[p] = p < visible ? score[p] * scale : -kInfinity;
    const float new_max = larger(*max, combine_lanes(score, larger));
    const float correction = exp(*max - new_max);
    for (int p = 0; p < kKvBlock; ++p) score[p] = exp(score[p] - new_max);
    *max = new_max;
    *sum = std::fma(*sum, correction, sum_lanes(score));
    return correction;
}

// ---- q8_0 blocks: the scales lie behind the values ----

int group_size(int head_dim, int group) {
    const int left = head_dim - group * kKvGroup;
    return left < kKvGroup ? left : kKvGroup;
}

void store_scale(int8_t* block, int head_dim, int at, uint16_t scale) {
    std::memcpy(block + kKvBlock * head_dim + sizeof(scale) * static_cast<size_t>(at), &scale, sizeof(scale));
}

float load_scale(const int8_t* block, int head_dim, int at) {
    return f16_to_f32(load<uint16_t>(block + kKvBlock * head_dim, at));
}

// Returns the scale.
uint16_t quantize_group(const float* x, int n, int8_t* values) {
    uint32_t max_bits = 0;  // of |x|, as in quantize_row
    for (int i = 0; i < n; ++i) {
        const uint32_t bits = float_bits(x[i]) & 0x7fffffff;
        if (bits > max_bits) max_bits = bits;
    }
    const float exact = bits_float(max_bits) / 127.0f;
    uint16_t scale = f32_to_f16(exact);
    if (f16_to_f32(scale) < exact) ++scale;  // the next f16, which after the largest is infinity
    if (max_bits >= kInfinityBits) scale = kF16Nan;
    // max|x| * inverse <= 127 * (1 + 2^-22), which rounds to 127: nothing is clamped. An infinite scale leaves zeros, and
    // infinity * 0 is NaN.
    const float inverse = 1.0f / f16_to_f32(scale);
    const bool zeros = scale == 0 || scale == kF16Nan;
    for (int i = 0; i < n; ++i) values[i] = zeros ? int8_t{0} : static_cast<int8_t>(std::nearbyint(x[i] * inverse));
    return scale;
}

}  // namespace

void kv_write(const float* k, const float* v, int head_dim, int slot, uint16_t* k_block, uint16_t* v_block) {
    for (int d = 0; d < head_dim; ++d) {
        k_block[d * kKvBlock + slot] = f32_to_f16(k[d]);
        v_block[slot * head_dim + d] = f32_to_f16(v[d]);
    }
}

void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    for (int i = 0; i < n_queries; ++i) {
        if (visible[i] <= 0) continue;  // nothing to see; with max still -inf, -inf - -inf would make a NaN
        const float* query = q + q_stride * i;
        float* out = acc + static_cast<size_t>(head_dim) * i;

        float score[kKvBlock];  // one chain of fma over the dimensions for each position
        for (int p = 0; p < kKvBlock; ++p) {
            score[p] = 0;
            for (int d = 0; d < head_dim; ++d)
                score[p] = std::fma(query[d], f16_to_f32(k_block[d * kKvBlock + p]), score[p]);
        }
        const float correction = soften(score, visible[i], scale, max + i, sum + i);
        for (int d = 0; d < head_dim; ++d) {
            float value = out[d] * correction;
            for (int p = 0; p < visible[i]; ++p)
                value = std::fma(score[p], f16_to_f32(v_block[p * head_dim + d]), value);
            out[d] = value;
        }
    }
}

void kv_write_q8_0(const float* k, const float* v, int head_dim, int slot, int8_t* k_block, int8_t* v_block) {
    for (int g = 0, first = 0; first < head_dim; ++g, first += kKvGroup) {
        const int n = group_size(head_dim, g), scale_at = g * kKvBlock + slot;
        int8_t values[kKvGroup];
        store_scale(k_block, head_dim, scale_at, quantize_group(k + first, n, values));
        for (int d = 0; d < n; ++d) k_block[(first + d) * kKvBlock + slot] = values[d];
        store_scale(v_block, head_dim, scale_at, quantize_group(v + first, n, values));
        for (int d = 0; d < n; ++d) v_block[slot * head_dim + first + d] = values[d];
    }
}

void attention_block_q8_0(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                          const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    for (int i = 0; i < n_queries; ++i) {
        if (visible[i] <= 0) continue;
        const float* query = q + q_stride * i;
        float* out = acc + static_cast<size_t>(head_dim) * i;

        float score[kKvBlock] = {};
        for (int g = 0; g < kv_groups(head_dim); ++g)
            for (int p = 0; p < kKvBlock; ++p) {
                float dot = 0;  // over the group's dimensions, of the values without their scale
                for (int d = g * kKvGroup; d < g * kKvGroup + group_size(head_dim, g); ++d)
                    dot = std::fma(query[d], static_cast<float>(k_block[d * kKvBlock + p]), dot);
                score[p] = std::fma(load_scale(k_block, head_dim, g * kKvBlock + p), dot, score[p]);
            }
        const float correction = soften(score, visible[i], scale, max + i, sum + i);
        for (int d = 0; d < head_dim; ++d) {
            float value = out[d] * correction;
            for (int p = 0; p < visible[i]; ++p) {
                const float weight = score[p] * load_scale(v_block, head_dim, d / kKvGroup * kKvBlock + p);
                value = std::fma(weight, static_cast<float>(v_block[p * head_dim + d]), value);
            }
            out[d] = value;
        }
    }
}

void head_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int row_begin, int row_end,
               const QuantizedRows& x, int n_tokens, float* scores, size_t scores_stride) {
    for (int r = row_begin; r < row_end; ++r) {
        const int8_t* row = rows + row_stride * r;
        for (int t = 0; t < n_tokens; ++t) {
            const int8_t* token = x.values + x.stride * t;
            int32_t dot = 0;
            for (size_t i = 0; i < row_stride; ++i) dot += row[i] * token[i];
            scores[scores_stride * t + r] = static_cast<float>(dot) * (row_scales[r] * x.scales[t]);
        }
    }
}

float dot_f32(const float* w, const float* x, int n) {
    return dot([w](int i) { return load<float>(w, i); }, x, n);
}

float dot_f16(const uint16_t* w, const float* x, int n) {
    return dot([w](int i) { return f16_to_f32(load<uint16_t>(w, i)); }, x, n);
}

float dot_bf16(const uint16_t* w, const float* x, int n) {
    return dot([w](int i) { return bf16_to_f32(load<uint16_t>(w, i)); }, x, n);
}

}  // namespace bitnet::scalar
