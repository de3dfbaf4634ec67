// Kernels on rows of floats, a block of threads for each token: embedding, norms with the quantisation behind them,
// activation, rotary embedding, and keys and values into their store.
#pragma once

#include "cuda/abi.h"
#include "cuda/numbers.cuh"

namespace bitnet::cuda {

constexpr int kRowThreads = 256;
constexpr int kKvBlock = 32;   // positions in a block of the KV store (cpu/kernels.h)
constexpr int kKvGroup = 32;   // dimensions that share a scale where it is q8_0
constexpr int kChunk = 128;    // the ternary products take their operands in chunks of this many elements
constexpr int kRowScratch = 64;  // words of shared memory before the row itself

// Where element k of a quantised row stands: within each chunk of 128, what lane 4g + t multiplies lies together, as
// [t 4][field f 4][half 2][4]  with  k = 32 f + 16 half + 4 t + j   (see ternary.cuh).
BITNET_BOTH int operand_index(int k) {
    const int r = k % kChunk;
    return k - r + (r / 4 % 4) * 32 + r / 32 * 8 + r / 16 % 2 * 4 + r % 4;
}

// The quantised activations of all tokens (cpu/kernels.h, QuantizedRows), or of several products of the same tokens, whose
// rows follow each other.
struct Operand {
    int8_t* values;   // [rows][stride], zero from the row's end to the stride
    size_t stride;    // a multiple of 128; of 64 where `natural`
    float* scales;    // [rows]
    int* sums;        // [rows]
    bool natural;     // element k stands at k
};

struct Norm {
    const float* weight;  // [n], or null: no norm
    int n;
    float eps;
};

BITNET_DEVICE uint32_t* row_scratch() { return reinterpret_cast<uint32_t*>(shared_memory()); }

// The index of a block among all of its grid, row by row.
BITNET_DEVICE int block_index() { return static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x); }

// A row's floats: in shared memory if they fit there, else in `spare` [blocks][n] on the device.
BITNET_DEVICE float* row_buffer(float* spare, int n) {
    return spare ? spare + static_cast<size_t>(block_index()) * n : reinterpret_cast<float*>(row_scratch() + kRowScratch);
}

// 1 / sqrt(mean(row^2) + eps), as rms_norm has it, on every lane of a warp.
BITNET_DEVICE float inverse_rms_of_warp(const float* row, int n, float eps) {
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x) % kWarp; i < n; i += kWarp) sum = fma_(row[i], row[i], sum);
    sum = sum_lanes(sum);
    return sum < infinity() ? 1.0f / sqrtf(sum / static_cast<float>(n) + eps) : bits_to_float(kNanBits);
}

// The same on every thread; all call it, after a barrier behind the writes to `row`.
BITNET_DEVICE float inverse_rms(const float* row, const Norm& norm) {
    float* result = reinterpret_cast<float*>(row_scratch() + 32);
    if (threadIdx.x < kWarp) {
        const float inverse = inverse_rms_of_warp(row, norm.n, norm.eps);
        if (threadIdx.x == 0) *result = inverse;
    }
    __syncthreads();
    return *result;
}

// Here and below every thread writes and reads its own elements of `row`: i = threadIdx.x, + blockDim.x, ...
BITNET_DEVICE void normalise(float* row, const Norm& norm) {
    if (!norm.weight) return;
    __syncthreads();
    const float inverse = inverse_rms(row, norm);
    for (int i = static_cast<int>(threadIdx.x); i < norm.n; i += static_cast<int>(blockDim.x)) row[i] = row[i] * inverse * norm.weight[i];
}

// row [n] to int8, as row `index` of `out`.
BITNET_DEVICE void quantise(const float* row, int n, const Operand& out, int index, int* not_finite) {
    const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
    uint32_t max_bits = 0;
    for (int i = first; i < n; i += step) {
        const uint32_t bits = float_to_bits(row[i]) & 0x7fffffffu;
        max_bits = bits > max_bits ? bits : max_bits;
    }
    max_bits = block_max(max_bits, row_scratch());
    int8_t* values = out.values + static_cast<size_t>(index) * out.stride;
    if (max_bits >= kInfinityBits) {  // refused by the host; the values must only be harmless
        for (int i = first; i < static_cast<int>(out.stride); i += step) values[i] = 0;
        if (first == 0) {
            out.scales[index] = bits_to_float(kNanBits);
            out.sums[index] = 0;
            *not_finite = 1;
        }
        return;
    }
    const float abs_max = larger(bits_to_float(max_bits), kMinAbsMax);
    const float s = 127.0f / abs_max;
    int sum = 0;
    for (int i = first; i < static_cast<int>(out.stride); i += step) {
        const int q = i < n ? round_to_int(row[i] * s) : 0;
        values[out.natural ? i : operand_index(i)] = static_cast<int8_t>(q);
        sum += q;
    }
    sum = block_sum(sum, reinterpret_cast<int*>(row_scratch()));
    if (first == 0) {
        out.scales[index] = abs_max / 127.0f;
        out.sums[index] = sum;
    }
}

// x [n_tokens][n] = embedding rows of `tokens` times `scale`.
BITNET_KERNEL(kRowThreads) embed(DenseRows rows, const int* tokens, int n, float scale, float* x) {
    const uint8_t* row = rows.data + static_cast<size_t>(tokens[blockIdx.x]) * rows.row_bytes;
    float* out = x + static_cast<size_t>(blockIdx.x) * n;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) out[i] = element(rows.type, row, i) * scale;
}

// What a row is made of before its norm: x + norm(added), or activation(gate) * up.
struct RowSource {
    const float* x;           // [n_tokens][n]; the gate of an activation
    const float* added;       // or null; what an activation is multiplied with
    const float* added_norm;  // weights of the norm of what is added to x, or null: it is added as it is
    float* sum;               // where x + norm(added) is kept, or null
    int activation;           // a BitnetGpuActivation, or 0: none
};

BITNET_DEVICE float activate(int activation, float gate) {
    if (activation == BITNET_GPU_RELU2) {
        const float positive = larger(0.0f, gate);
        return positive * positive;
    }
    const float exponent = activation == BITNET_GPU_SILU ? -gate : gate * kGeluScale * fma_(gate * gate, kGeluCubic, 1.0f);
    return gate / (1.0f + exponential(exponent));
}

// Width and eps of all norms of a row are the same: those of `norm`.
BITNET_DEVICE void fill_row(float* row, const RowSource& source, const Norm& norm, int token, bool keep) {
    const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
    const size_t base = static_cast<size_t>(token) * norm.n;
    if (source.added_norm) {
        for (int i = first; i < norm.n; i += step) row[i] = source.added[base + i];
        normalise(row, {source.added_norm, norm.n, norm.eps});
    }
    for (int i = first; i < norm.n; i += step) {
        float value = source.x[base + i];
        if (source.activation)
            value = activate(source.activation, value) * source.added[base + i];
        else if (source.added)
            value = value + (source.added_norm ? row[i] : source.added[base + i]);
        row[i] = value;
        if (keep && source.sum) source.sum[base + i] = value;
    }
}

// The norms that products of the same row have for themselves: weights, or null.
struct InputNorms {
    const float *first, *second, *third;

    BITNET_DEVICE const float* of(unsigned operand) const { return operand == 0 ? first : operand == 1 ? second : third; }
};

// Operand j = quantise(own norm j(norm(source))), row by row. grid: tokens, operands. A block makes the row for itself.
BITNET_KERNEL(kRowThreads) norm_quantise(RowSource source, Norm norm, InputNorms own, Operand out, float* spare, int* not_finite) {
    float* row = row_buffer(spare, norm.n);
    fill_row(row, source, norm, static_cast<int>(blockIdx.x), blockIdx.y == 0);
    normalise(row, norm);
    normalise(row, {own.of(blockIdx.y), norm.n, norm.eps});
    quantise(row, norm.n, out, block_index(), not_finite);
}

// hidden [n_outputs][n] = norm(source) of the tokens `outputs`.
BITNET_KERNEL(kRowThreads) final_norm(RowSource source, const int* outputs, Norm norm, float* hidden, float* spare, int* not_finite) {
    float* row = row_buffer(spare, norm.n);
    float* out = hidden + static_cast<size_t>(blockIdx.x) * norm.n;
    fill_row(row, source, norm, outputs[blockIdx.x], false);
    normalise(row, norm);
    for (int i = static_cast<int>(threadIdx.x); i < norm.n; i += static_cast<int>(blockDim.x)) {
        out[i] = row[i];
        if ((float_to_bits(row[i]) & 0x7fffffffu) >= kInfinityBits) *not_finite = 1;
    }
}

// Only the sum of the source is wanted.
BITNET_KERNEL(kRowThreads) add_rows(RowSource source, Norm norm, float* spare) {
    fill_row(row_buffer(spare, norm.n), source, norm, static_cast<int>(blockIdx.x), true);
}

// ---- keys and values ----------------------------------------------------------------------------------------------------

// The store of one layer, as in kv/kv_store.h: block b, KV head h has K at base + b * block_bytes + h * 2 * part_bytes, V
// behind it.
struct KvLayer {
    uint8_t* base;
    size_t block_bytes, part_bytes;
    int n_kv_heads, head_dim;
    bool q8_0;

    BITNET_DEVICE uint8_t* keys(int block, int head) const {
        return base + static_cast<size_t>(block) * block_bytes + static_cast<size_t>(head) * 2 * part_bytes;
    }
    BITNET_DEVICE uint8_t* values(int block, int head) const { return keys(block, head) + part_bytes; }
};

// What the tokens of a step are, all arrays on the device.
struct StepTokens {
    const int* positions;     // [n_tokens]
    const int* table_starts;  // [n_tokens] where the block table of the token's sequence begins
    const int* tables;        // block tables, one after another
    const float* rope;        // [n_tokens][2][n_rot/2]
    int n_rot;
};

BITNET_DEVICE void rotate(float* head, const float* rope, int n_rot, int i) {
    const int half = n_rot / 2;
    const float cos = rope[i], sin = rope[half + i], a = head[i], b = head[half + i];
    head[i] = fma_(a, cos, -(b * sin));
    head[half + i] = fma_(a, sin, b * cos);
}

BITNET_DEVICE void write_q8_0(const float* x, int n, int8_t* out, int out_step, uint8_t* scale_at) {
    uint32_t max_bits = 0;
    for (int i = 0; i < n; i++) {
        const uint32_t bits = float_to_bits(x[i]) & 0x7fffffffu;
        max_bits = bits > max_bits ? bits : max_bits;
    }
    const float exact = bits_to_float(max_bits) / 127.0f;
    uint16_t scale = float_to_half(exact);
    if (half_to_float(scale) < exact) ++scale;
    if (max_bits >= kInfinityBits) scale = 0x7e00;
    const float inverse = 1.0f / half_to_float(scale);
    const bool zeros = scale == 0 || scale == 0x7e00;
    for (int i = 0; i < n; i++) out[i * out_step] = zeros ? int8_t{0} : static_cast<int8_t>(round_to_int(x[i] * inverse));
    *reinterpret_cast<uint16_t*>(scale_at) = scale;
}

// RMSNorm of every head of q and k, before the rotation: weights [head_dim], or null.
struct HeadNorms {
    const float *q, *k;
    float eps;
};

// Norm of heads [n_heads][head_dim] in place, a warp for each.
BITNET_DEVICE void normalise_heads(float* heads, int n_heads, int head_dim, const float* weight, float eps) {
    if (!weight) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int h = static_cast<int>(threadIdx.x) / kWarp; h < n_heads; h += static_cast<int>(blockDim.x) / kWarp) {
        float* head = heads + static_cast<size_t>(h) * head_dim;
        const float inverse = inverse_rms_of_warp(head, head_dim, eps);
        for (int i = lane; i < head_dim; i += kWarp) head[i] = head[i] * inverse * weight[i];
    }
}

// Norm and rotary embedding of the heads of q [n_tokens][n_heads][head_dim] and k in place, then k and v into the store.
BITNET_KERNEL(kRowThreads) rope_and_store(float* q, float* k, const float* v, int n_heads, HeadNorms norms, StepTokens step, KvLayer kv) {
    const int token = static_cast<int>(blockIdx.x), first = static_cast<int>(threadIdx.x), stride = static_cast<int>(blockDim.x);
    const int half = step.n_rot / 2, head_dim = kv.head_dim;
    const float* rope = step.rope + static_cast<size_t>(token) * step.n_rot;
    const size_t kv_row = static_cast<size_t>(token) * kv.n_kv_heads * head_dim;
    float* q_row = q + static_cast<size_t>(token) * n_heads * head_dim;
    normalise_heads(q_row, n_heads, head_dim, norms.q, norms.eps);
    normalise_heads(k + kv_row, kv.n_kv_heads, head_dim, norms.k, norms.eps);
    if (norms.q || norms.k) __syncthreads();
    for (int i = first; i < n_heads * half; i += stride) rotate(q_row + static_cast<size_t>(i / half) * head_dim, rope, step.n_rot, i % half);
    for (int i = first; i < kv.n_kv_heads * half; i += stride) rotate(k + kv_row + i / half * head_dim, rope, step.n_rot, i % half);
    __syncthreads();

    const int position = step.positions[token], slot = position % kKvBlock;
    const int block = step.tables[step.table_starts[token] + position / kKvBlock];
    if (kv.q8_0) {
        const int groups = (head_dim + kKvGroup - 1) / kKvGroup;
        for (int i = first; i < kv.n_kv_heads * groups; i += stride) {
            const int head = i / groups, group = i % groups, from = group * kKvGroup;
            const int n = head_dim - from < kKvGroup ? head_dim - from : kKvGroup;
            const size_t scale_at = static_cast<size_t>(kKvBlock) * head_dim + 2 * static_cast<size_t>(group * kKvBlock + slot);
            int8_t* keys = reinterpret_cast<int8_t*>(kv.keys(block, head));
            int8_t* values = reinterpret_cast<int8_t*>(kv.values(block, head));
            write_q8_0(k + kv_row + head * head_dim + from, n, keys + from * kKvBlock + slot, kKvBlock, kv.keys(block, head) + scale_at);
            write_q8_0(v + kv_row + head * head_dim + from, n, values + slot * head_dim + from, 1, kv.values(block, head) + scale_at);
        }
        return;
    }
    for (int i = first; i < kv.n_kv_heads * head_dim; i += stride) {
        const int head = i / head_dim, d = i % head_dim;
        reinterpret_cast<uint16_t*>(kv.keys(block, head))[d * kKvBlock + slot] = float_to_half(k[kv_row + i]);
        reinterpret_cast<uint16_t*>(kv.values(block, head))[slot * head_dim + d] = float_to_half(v[kv_row + i]);
    }
}

}  // namespace bitnet::cuda
