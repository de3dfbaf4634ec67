// Dense tensors (embeddings, heads, norms): any supported float or block format, one row at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/tensor_type.h"

namespace bitnet {

float f16_to_f32(uint16_t h);   // IEEE half to float, exact, all bit patterns
uint16_t f32_to_f16(float f);   // round to nearest even
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);  // round to nearest even

// Bytes of one row of n elements; n must be a multiple of block_elements(type) (checked when the file is opened).
size_t row_bytes(TensorType type, size_t n);

// Decode one row of n elements of F32, F16, BF16, Q4_0, Q8_0 or Q6_K. `row` may be unaligned.
void decode_row(TensorType type, const uint8_t* row, size_t n, float* out);

// Encode one row of n finite elements as F32, F16, BF16, Q4_0, Q8_0 or Q6_K, into row_bytes(type, n) bytes. The block formats mean
// what the reference quantisers of ggml-quants.c make of them. What is too large for f16 becomes infinite.
void encode_row(TensorType type, const float* values, size_t n, uint8_t* row);

}  // namespace bitnet
