// Ternary matrix products over the N9 layout, once per instruction set. What each function computes, and the shape of
// its operands, is said in cpu/kernels.h; ternary_scalar.cpp is the specification.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace bitnet {

// From this many tokens on, the AVX2 table kernel is faster than the direct one. It costs the same for 1 to 16 tokens:
// as much as the direct one for 10 to 13, depending on the shape (BitNet 2B-4T on Zen 5; Zen 3 about 12).
constexpr int kTableMinTokens = 12;

namespace scalar {

void ternary_direct(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int n_tokens,
                    float* y, size_t y_stride);
void table_tile(const QuantizedRows& x, int first, int n, int k_blocks, int16_t* tile);
size_t table_scratch_bytes(int n_panels);
void ternary_table(const TernaryWeights& w, int panel_begin, int panel_end, const int16_t* tile, const QuantizedRows& x,
                   int first, int n, int min_tokens, float* y, size_t y_stride, void* scratch);

}  // namespace scalar

#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {

void ternary_direct(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int n_tokens,
                    float* y, size_t y_stride);
void table_tile(const QuantizedRows& x, int first, int n, int k_blocks, int16_t* tile);
size_t table_scratch_bytes(int n_panels);
void ternary_table(const TernaryWeights& w, int panel_begin, int panel_end, const int16_t* tile, const QuantizedRows& x,
                   int first, int n, int min_tokens, float* y, size_t y_stride, void* scratch);

}  // namespace avx2

namespace avx512 {

void ternary_direct(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int n_tokens,
                    float* y, size_t y_stride);

}  // namespace avx512
#endif

}  // namespace bitnet
