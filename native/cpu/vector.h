// Kernels on rows of floats, on the KV store and on the output head, once per instruction set. What each one computes
// is said in cpu/kernels.h; vector_scalar.cpp is the specification, and the others repeat its operations in its order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace bitnet {

// Reductions run over this many lanes: four AVX2 registers, enough independent chains to hide the latency of an fma.
constexpr int kLanes = 32;

// quantize_row: the floor of absmax that training used, so that a row of zeros has a finite scale.
constexpr float kMinAbsMax = 1e-5f;

// kv_write_q8_0: the scale of a group that is not finite.
constexpr uint16_t kF16Nan = 0x7e00;

// The exponential of every kernel: x = k ln2 + r, exp(x) = 2^k (1 + r + r^2 P(r)).
// Outside [kExpLow, kExpHigh] it is 0 and exp(kExpHigh): results are never denormal and never infinite.
constexpr float kExpLow = -87.3f;          // exp(-87.3) = 1.2e-38, just above the smallest normal float
constexpr float kExpHigh = 88.37f;         // k stays <= 127, so that 2^k is a float
constexpr float kLog2E = 1.44269502f;
constexpr float kLn2High = 0.693147182f;   // float(ln2): x - k * kLn2High is exact with one fma
constexpr float kLn2Low = -1.90465421e-9f;
constexpr float kRoundMagic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer held in the low mantissa bits
// P from the lowest degree up: a minimax fit (Remez) of the relative error on |r| <= ln2/2: 3e-9 before rounding.
constexpr float kExpPoly[5] = {0.49999994f, 0.166665211f, 0.041668389f, 0.00836874545f, 0.00138145406f};

// gelu_mul: exp(-2 u) = exp(kGeluScale * g * (1 + kGeluCubic * g^2))
constexpr float kGeluScale = -1.59576917f;  // -2 * sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

namespace scalar {

float exp(float x);

void quantize_row(const float* x, int n, size_t stride, int8_t* values, float* scale, int32_t* sum);
void rms_norm(const float* x, const float* weight, int n, float eps, float* y);
void add(const float* x, int n, float* y);
void relu2_mul(const float* gate, const float* up, int n, float* y);
void silu_mul(const float* gate, const float* up, int n, float* y);
void gelu_mul(const float* gate, const float* up, int n, float* y);
void rope_neox(float* x, int n_heads, int head_dim, int n_rot, const float* cos, const float* sin);
void kv_write(const float* k, const float* v, int head_dim, int slot, uint16_t* k_block, uint16_t* v_block);
void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);
void kv_write_q8_0(const float* k, const float* v, int head_dim, int slot, int8_t* k_block, int8_t* v_block);
void attention_block_q8_0(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                          const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);
void head_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int row_begin, int row_end,
               const QuantizedRows& x, int n_tokens, float* scores, size_t scores_stride);
float dot_f32(const float* w, const float* x, int n);
float dot_f16(const uint16_t* w, const float* x, int n);
float dot_bf16(const uint16_t* w, const float* x, int n);

}  // namespace scalar

#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {

void quantize_row(const float* x, int n, size_t stride, int8_t* values, float* scale, int32_t* sum);
void rms_norm(const float* x, const float* weight, int n, float eps, float* y);
void add(const float* x, int n, float* y);
void relu2_mul(const float* gate, const float* up, int n, float* y);
void silu_mul(const float* gate, const float* up, int n, float* y);
void gelu_mul(const float* gate, const float* up, int n, float* y);
void rope_neox(float* x, int n_heads, int head_dim, int n_rot, const float* cos, const float* sin);
void kv_write(const float* k, const float* v, int head_dim, int slot, uint16_t* k_block, uint16_t* v_block);
void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);
void kv_write_q8_0(const float* k, const float* v, int head_dim, int slot, int8_t* k_block, int8_t* v_block);
void attention_block_q8_0(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                          const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);
void head_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int row_begin, int row_end,
               const QuantizedRows& x, int n_tokens, float* scores, size_t scores_stride);
float dot_f32(const float* w, const float* x, int n);
float dot_f16(const uint16_t* w, const float* x, int n);
float dot_bf16(const uint16_t* w, const float* x, int n);

}  // namespace avx2

namespace avx512 {

void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);
void attention_block_q8_0(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                          const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc);
void head_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int row_begin, int row_end,
               const QuantizedRows& x, int n_tokens, float* scores, size_t scores_stride);

}  // namespace avx512
#endif

}  // namespace bitnet
