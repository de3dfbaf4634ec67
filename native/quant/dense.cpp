// Float conversions and row decoding of the dense tensor types. Portable C++: these run once per weight at load time
// and once per token for the embedding lookup; the loops are written so that compilers vectorise them.
#include "quant/dense.h"

#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

namespace bitnet {

static_assert(std::endian::native == std::endian::little, "model files are little-endian and are read in place");

namespace {

uint16_t load_u16(const uint8_t* bytes) {
    uint16_t value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

// Block: f16 scale d, 16 bytes; byte j holds elements j (low nibble) and j + 16; value = d * (q - 8).
void decode_q4_0(const uint8_t* row, size_t n, float* out) {
    for (size_t i = 0; i < n; i += 32, row += 18) {
        const float d = f16_to_f32(load_u16(row));
        for (size_t j = 0; j < 16; j++) {
            out[i + j] = d * static_cast<float>((row[2 + j] & 15) - 8);
            out[i + j + 16] = d * static_cast<float>((row[2 + j] >> 4) - 8);
        }
    }
}

// Block: f16 scale d, 32 int8 q; value = d * q.
void decode_q8_0(const uint8_t* row, size_t n, float* out) {
    for (size_t i = 0; i < n; i += 32, row += 34) {
        const float d = f16_to_f32(load_u16(row));
        for (size_t j = 0; j < 32; j++) out[i + j] = d * static_cast<float>(static_cast<int8_t>(row[2 + j]));
    }
}

// Block of 256: ql[128] (low 4 bits), qh[64] (high 2 bits), int8 scales[16] (one per 16 elements), f16 d;
// value = d * scale * (q - 32). Each half of the block interleaves four groups of 32 elements.
void decode_q6_k(const uint8_t* row, size_t n, float* out) {
    for (size_t i = 0; i < n; i += 256, row += 210, out += 256) {
        const float d = f16_to_f32(load_u16(row + 208));
        for (size_t half = 0; half < 2; half++) {
            const uint8_t* ql = row + 64 * half;
            const uint8_t* qh = row + 128 + 32 * half;
            const uint8_t* scales = row + 192 + 8 * half;
            float* values = out + 128 * half;
            float group_scale[8];
            for (size_t s = 0; s < 8; s++) group_scale[s] = d * static_cast<float>(static_cast<int8_t>(scales[s]));
            for (size_t l = 0; l < 32; l++) {
                const int q0 = (ql[l] & 15) | ((qh[l] & 3) << 4);
                const int q1 = (ql[l + 32] & 15) | (((qh[l] >> 2) & 3) << 4);
                const int q2 = (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4);
                const int q3 = (ql[l + 32] >> 4) | ((qh[l] >> 6) << 4);
                values[l] = group_scale[l / 16] * static_cast<float>(q0 - 32);
                values[l + 32] = group_scale[2 + l / 16] * static_cast<float>(q1 - 32);
                values[l + 64] = group_scale[4 + l / 16] * static_cast<float>(q2 - 32);
                values[l + 96] = group_scale[6 + l / 16] * static_cast<float>(q3 - 32);
            }
        }
    }
}

}  // namespace

float f16_to_f32(uint16_t h) {
    // Both cases are computed and blended by mask: written with branches or ?: GCC 12 does not vectorise the loop over
    // a row (0.8 against 2.9 G elements/s at -O3). Only integers decide, so NaN payloads stay as they are.
    const int32_t magnitude = h & 0x7fff;
    const int32_t is_subnormal = -static_cast<int32_t>(magnitude < 0x0400);
    const int32_t is_infinite = -static_cast<int32_t>(magnitude > 0x7bff);
    const int32_t normal = (magnitude << 13) + (112 << 23) + (is_infinite & (112 << 23));  // bias 15 -> 127, 31 -> 255
    const int32_t subnormal = std::bit_cast<int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    const int32_t bits = (subnormal & is_subnormal) | (normal & ~is_subnormal);
    return std::bit_cast<float>(static_cast<uint32_t>(bits) | (static_cast<uint32_t>(h & 0x8000) << 16));
}

uint16_t f32_to_f16(float f) {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN: keep the upper payload bits, and keep it a NaN
        const uint32_t payload = (magnitude >> 13) & 0x3ffu;
        return static_cast<uint16_t>(sign | 0x7c00u | (payload != 0 ? payload : 0x200u));
    }
    if (magnitude >= (143u << 23)) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above
    if (magnitude < (113u << 23)) {
        // Below 2^-14: adding 0.5 aligns the value so that the addition itself rounds it to a multiple of 2^-24.
        const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - std::bit_cast<uint32_t>(0.5f)));
    }
    // Rebias the exponent and round half to even; a carry out of the mantissa is the next exponent, or infinity.
    const uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

float bf16_to_f32(uint16_t h) {
    return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

uint16_t f32_to_bf16(float f) {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // NaN: keep it one
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

size_t row_bytes(TensorType type, size_t n) {
    if (is_ternary(type)) throw std::logic_error("row_bytes: " + tensor_type_name(type) + " is not a dense row type");
    return static_cast<size_t>(tensor_bytes(type, n, 1).value());
}

void decode_row(TensorType type, const uint8_t* row, size_t n, float* out) {
    switch (type) {
        case TensorType::F32: std::memcpy(out, row, n * sizeof(float)); return;
        case TensorType::F16:
            for (size_t i = 0; i < n; i++) out[i] = f16_to_f32(load_u16(row + 2 * i));
            return;
        case TensorType::BF16:
            for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(load_u16(row + 2 * i));
            return;
        case TensorType::Q4_0: decode_q4_0(row, n, out); return;
        case TensorType::Q8_0: decode_q8_0(row, n, out); return;
        case TensorType::Q6_K: decode_q6_k(row, n, out); return;
        default: break;
    }
    throw std::logic_error("decode_row: " + tensor_type_name(type) + " is not a dense row type");
}

}  // namespace bitnet
