// Float arithmetic that must give the CPU's bits: the exponential, sums over 32 lanes in the order of cpu/vector_scalar.cpp,
// and elements of dense rows.
#pragma once

#include "cuda/device.cuh"

namespace bitnet::cuda {

constexpr int kWarp = 32;

constexpr float kExpLow = -87.3f;  // see cpu/vector.h for these
constexpr float kExpHigh = 88.37f;
constexpr float kLog2E = 1.44269502f;
constexpr float kLn2High = 0.693147182f;
constexpr float kLn2Low = -1.90465421e-9f;
constexpr float kRoundMagic = 12582912.0f;
constexpr float kGeluScale = -1.59576917f;
constexpr float kGeluCubic = 0.044715f;
constexpr float kMinAbsMax = 1e-5f;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;

BITNET_DEVICE float infinity() { return bits_to_float(kInfinityBits); }
BITNET_DEVICE float larger(float a, float b) { return a > b ? a : b; }

BITNET_DEVICE float exponential(float x) {
    if (x < kExpLow) return 0.0f;
    const float y = x > kExpHigh ? kExpHigh : x;
    const float shifted = fma_(y, kLog2E, kRoundMagic);
    const float k = shifted - kRoundMagic;
    float r = fma_(-k, kLn2High, y);
    r = fma_(-k, kLn2Low, r);
    float p = fma_(0.00138145406f, r, 0.00836874545f);
    p = fma_(p, r, 0.041668389f);
    p = fma_(p, r, 0.166665211f);
    p = fma_(p, r, 0.49999994f);
    p = fma_(p, r, 1.0f);
    p = fma_(p, r, 1.0f);
    return p * bits_to_float((float_to_bits(shifted) << 23) + float_to_bits(1.0f));
}

// The sum of a value of each lane, on every lane: (l0 + l8) + (l16 + l24) and so on, then the 8 sums by halves.
BITNET_DEVICE float sum_lanes(float value) {
    value += shuffle_xor(value, 8);
    value += shuffle_xor(value, 16);
    value += shuffle_xor(value, 4);
    value += shuffle_xor(value, 2);
    value += shuffle_xor(value, 1);
    return value;
}

BITNET_DEVICE float max_lanes(float value) {
    BITNET_UNROLL for (int mask = 16; mask > 0; mask /= 2) value = larger(value, shuffle_xor(value, mask));
    return value;
}

// Over all threads of the block, on every thread; `scratch` [32] is shared memory nobody else uses meanwhile.
BITNET_DEVICE uint32_t block_max(uint32_t value, uint32_t* scratch) {
    BITNET_UNROLL for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = shuffle_xor(value, mask);
        value = other > value ? other : value;
    }
    const int n_warps = static_cast<int>(blockDim.x) / kWarp;
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = scratch[0];
    for (int w = 1; w < n_warps; w++) value = scratch[w] > value ? scratch[w] : value;
    __syncthreads();
    return value;
}

BITNET_DEVICE int block_sum(int value, int* scratch) {
    BITNET_UNROLL for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    const int n_warps = static_cast<int>(blockDim.x) / kWarp;
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int w = 0; w < n_warps; w++) value += scratch[w];
    __syncthreads();
    return value;
}

// ---- rows of embedding and head -----------------------------------------------------------------------------------------

struct DenseRows {
    uint32_t type;
    const uint8_t* data;
    size_t row_bytes;
};

BITNET_DEVICE uint16_t load_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }

// Element i of a row, with the operations of decode_row (quant/dense.cpp).
BITNET_DEVICE float element(uint32_t type, const uint8_t* row, int i) {
    switch (type) {
        case 0: return reinterpret_cast<const float*>(row)[i];
        case 1: return half_to_float(reinterpret_cast<const uint16_t*>(row)[i]);
        case 30: return bits_to_float(uint32_t{reinterpret_cast<const uint16_t*>(row)[i]} << 16);
        case 2: {  // Q4_0
            const uint8_t* block = row + i / 32 * 18;
            const int j = i % 32;
            const int q = j < 16 ? block[2 + j] & 15 : block[2 + j - 16] >> 4;
            return half_to_float(load_u16(block)) * static_cast<float>(q - 8);
        }
        case 8: {  // Q8_0
            const uint8_t* block = row + i / 32 * 34;
            return half_to_float(load_u16(block)) * static_cast<float>(static_cast<int8_t>(block[2 + i % 32]));
        }
        default: {  // Q6_K
            const uint8_t* block = row + i / 256 * 210;
            const int half = i % 256 / 128, quarter = i % 128 / 32, l = i % 32;
            const int low = block[64 * half + 32 * (quarter % 2) + l];
            const int high = block[128 + 32 * half + l] >> (2 * quarter) & 3;
            const int q = (quarter < 2 ? low & 15 : low >> 4) | high << 4;
            const float scale = half_to_float(load_u16(block + 208)) *
                                static_cast<float>(static_cast<int8_t>(block[192 + 8 * half + 2 * quarter + l / 16]));
            return scale * static_cast<float>(q - 32);
        }
    }
}

}  // namespace bitnet::cuda
