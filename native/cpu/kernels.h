// The table of compute kernels, one per instruction set, chosen once at run time by cpuid.
//
// Every kernel has a scalar implementation, which is its specification; all others give bit-identical results, floats
// included: reductions run over 32 fixed lanes and are combined in one fixed order, fused multiply-adds are explicit
// (std::fma / vfmadd) and the compiler contracts nothing. A request's output therefore depends neither on the machine
// nor on what is computed beside it.
//
// Kernels know nothing of threads: callers split the work by panel, row, token or head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/ternary.h"

namespace bitnet {

// Activations of n tokens, quantised per token: x ~= values * scale.
struct QuantizedRows {
    const int8_t* values = nullptr;   // [n_tokens][stride], zero from K up to stride
    size_t stride = 0;                // bytes, a multiple of 64 and >= K rounded up to 64
    const float* scales = nullptr;    // [n_tokens]  max(absmax, 1e-5) / 127
    const int32_t* sums = nullptr;    // [n_tokens]  sum of values
};

// Tokens one table-lookup tile covers.
constexpr int kTableTokens = 32;
// Panels whose sums a call of ternary_table keeps at once, at most; more panels are taken one such row block after another.
constexpr int kMostTablePanels = 80;
// Positions in one block of the KV store; attention runs block by block.
constexpr int kKvBlock = 32;
// Dimensions of one position and head that share a scale where keys and values are q8_0; the last group of a head may
// have fewer. (static: these headers are also read by files compiled for newer processors, see cpu/vector.h)
constexpr int kKvGroup = 32;
static constexpr int kv_groups(int head_dim) { return (head_dim + kKvGroup - 1) / kKvGroup; }
// Bytes of K, or of V, of one head in one q8_0 block.
static constexpr size_t kv_q8_0_bytes(int head_dim) {
    return static_cast<size_t>(kKvBlock) * (static_cast<size_t>(head_dim) + sizeof(uint16_t) * static_cast<size_t>(kv_groups(head_dim)));
}

struct Kernels {
    const char* name;
    // From this many tokens on, ternary_table is faster than ternary_direct; INT_MAX: it never is.
    int table_min_tokens;

    // ---- ternary matrix products: y[t][m] = float(sum_k x[t][k] * w[m][k]) * (w.scale * x.scales[t]) -------------------
    // The sum is the exact int32 for every x in [-128, 127] and every K up to 131072.

    // Multiply-add, for few tokens at least. Rows of panels [panel_begin, panel_end) (only rows < w.rows are written),
    // tokens [0, n_tokens). y is f32 [n_tokens][y_stride].
    void (*ternary_direct)(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int n_tokens,
                           float* y, size_t y_stride);

    // Many tokens: table lookup over one tile of up to 32 tokens, tokens in SIMD lanes.
    // `tile` = int16 [k_blocks*16][32], made by table_tile from tokens [first, first + n) of x (missing tokens are zero).
    // Fewer than min_tokens tokens, also those left over behind the first 16, may be multiplied directly instead.
    void (*table_tile)(const QuantizedRows& x, int first, int n, int k_blocks, int16_t* tile);
    // Scratch bytes (64-byte aligned by the caller) ternary_table needs for n_panels panels at once.
    size_t (*table_scratch_bytes)(int n_panels);
    void (*ternary_table)(const TernaryWeights& w, int panel_begin, int panel_end, const int16_t* tile, const QuantizedRows& x,
                          int first, int n, int min_tokens, float* y, size_t y_stride, void* scratch);

    // ---- rows of floats -------------------------------------------------------------------------------------------------
    // s = 127 / max(max|x|, 1e-5); q = clamp(round_half_even(x * s), -128, 127); zero from n up to stride.
    // NaN or infinite input: *scale becomes NaN (so that the caller can refuse), values are unspecified.
    void (*quantize_row)(const float* x, int n, size_t stride, int8_t* values, float* scale, int32_t* sum);
    // y = x * 1/sqrt(mean(x^2) + eps) * weight; y may be x
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
    void (*add)(const float* x, int n, float* y);                                            // y += x
    void (*relu2_mul)(const float* gate, const float* up, int n, float* y);                  // max(gate,0)^2 * up
    void (*silu_mul)(const float* gate, const float* up, int n, float* y);                   // gate / (1 + exp(-gate)) * up
    // gate / (1 + exp(-2 u)) * up, u = sqrt(2 / pi) * (gate + 0.044715 gate^3): gelu by tanh
    void (*gelu_mul)(const float* gate, const float* up, int n, float* y);
    // Rotary embedding, NEOX pairing (i, i + n_rot/2) within each head's first n_rot dimensions, in place.
    // x [n_heads][head_dim]; cos, sin [n_rot/2] of this position.
    void (*rope_neox)(float* x, int n_heads, int head_dim, int n_rot, const float* cos, const float* sin);

    // ---- attention over one block of the KV store ------------------------------------------------------------------------
    // K block: f16 [head_dim][kKvBlock] (transposed: positions are lanes); V block: f16 [kKvBlock][head_dim].
    // Write one position: k, v f32 [head_dim].
    void (*kv_write)(const float* k, const float* v, int head_dim, int slot, uint16_t* k_block, uint16_t* v_block);
    // One step of the online softmax for n_queries queries that share this KV head: for query i only the first visible[i]
    // positions of the block count (0 = none, the query is left untouched).
    //   scores = scale * q.k;  m' = max(m, scores);  acc = acc * exp(m - m') + sum p v;  l = l * exp(m - m') + sum p
    // q f32 [n_queries][head_dim] with row stride q_stride; max, sum [n_queries] (start: -inf, 0); acc [n_queries][head_dim]
    // (start 0). head_dim is a multiple of 8. Slots at or beyond the largest visible[i] are never read as V and never
    // influence a result (they may hold anything, NaN included).
    void (*attention_block)(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                            const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);

    // The same on q8_0 blocks: 8-bit values, x ~= value * scale, one f16 scale for each group of kKvGroup dimensions.
    //   K block: int8 [head_dim][kKvBlock], then scales f16 [n_groups][kKvBlock]
    //   V block: int8 [kKvBlock][head_dim], then scales f16 [n_groups][kKvBlock]
    // The scale is max|x| / 127 rounded up to an f16, so that |value| <= 127 and the error is at most half a scale. A group
    // that is not finite, or beyond 127 * 65504, gets a scale that makes every score and result that sees it NaN.
    void (*kv_write_q8_0)(const float* k, const float* v, int head_dim, int slot, int8_t* k_block, int8_t* v_block);
    //   q.k = sum over groups of scale * (q.values), groups in ascending order; p v = (p * scale) * value
    void (*attention_block_q8_0)(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                                 const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);

    // ---- output head -----------------------------------------------------------------------------------------------------
    // For rows r in [row_begin, row_end) of an int8 matrix with one scale per row, |values| <= 127:
    //   scores[t][r] = float(dot(rows[r], x[t])) * (row_scales[r] * x.scales[t]);  scores f32 [n_tokens][scores_stride]
    // row_stride is a multiple of 64, both operands are zero padded, x values are in [-127, 127].
    void (*head_rows)(const int8_t* rows, size_t row_stride, const float* row_scales, int row_begin, int row_end,
                      const QuantizedRows& x, int n_tokens, float* scores, size_t scores_stride);
    // Float dot products of length n, in 32 lanes.
    float (*dot_f32)(const float* w, const float* x, int n);
    float (*dot_f16)(const uint16_t* w, const float* x, int n);    // w may be unaligned
    float (*dot_bf16)(const uint16_t* w, const float* x, int n);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kAvx512VnniKernels;
extern const Kernels kAvx2Kernels;
#endif

// The tables this processor runs, best first, and then a null pointer. The last table is the scalar one.
const Kernels* const* supported_kernels();

// The best table this processor runs. `name` forces one ("avx512vnni", "avx2", "scalar"; empty = best): nullptr if
// unknown or not supported here.
const Kernels* select_kernels(const char* name = "");

}  // namespace bitnet
