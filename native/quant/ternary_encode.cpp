// Encoding of whole ternary tensors, for conversion. Layouts as quant/ternary_layout.cpp reads them.
#include <cmath>
#include <cstring>

#include "quant/dense.h"
#include "quant/ternary_layout.h"

namespace bitnet {

namespace {

void encode_i2s(const int8_t* codes, size_t n, uint8_t* out) {
    const auto encode_block = [](const int8_t* c, uint8_t* bytes) {
        for (size_t b = 0; b < 32; b++)
            bytes[b] = static_cast<uint8_t>((c[b] + 1) << 6 | (c[32 + b] + 1) << 4 | (c[64 + b] + 1) << 2 | (c[96 + b] + 1));
    };
    for (; n >= 128; n -= 128, codes += 128, out += 32) encode_block(codes, out);
    if (n == 0) return;
    int8_t last[128] = {};  // filled up with zero weights
    std::memcpy(last, codes, n);
    encode_block(last, out);
}

uint8_t pair(const int8_t* codes) { return static_cast<uint8_t>(3 * codes[0] + codes[1] + 4); }

void encode_tl1(const int8_t* codes, const TlTile& t, uint8_t* out) {
    const int strip = 256 / t.simd_rows;
    for (int i0 = 0; i0 < t.rows; i0 += t.row_block)
        for (int k0 = 0; k0 < t.cols; k0 += t.col_block)
            for (int i1 = i0; i1 < i0 + t.row_block; i1 += t.simd_rows)
                for (int k1 = k0; k1 < k0 + t.col_block; k1 += strip)
                    for (int i2 = i1; i2 < i1 + t.simd_rows; i2 += 16)
                        for (int col = k1; col < k1 + strip; col += 4)
                            for (int row = i2; row < i2 + 16; row++) {
                                const int8_t* four = codes + static_cast<size_t>(row) * static_cast<size_t>(t.cols) + col;
                                *out++ = static_cast<uint8_t>(pair(four) << 4 | pair(four + 2));
                            }
}

// `count` digits, each a code + 1, the first the most significant of five: ceil(256 * v / 243).
uint8_t digits(const int8_t* codes, size_t stride, int count) {
    int value = 0;
    for (int n = 0; n < 5; n++) value = 3 * value + (n < count ? codes[static_cast<size_t>(n) * stride] + 1 : 0);
    return static_cast<uint8_t>((256 * value + 242) / 243);
}

void encode_tq1_block(const int8_t* codes, uint8_t* out) {
    for (int m = 0; m < 32; m++) out[m] = digits(codes + m, 32, 5);
    for (int m = 0; m < 16; m++) out[32 + m] = digits(codes + 160 + m, 16, 5);
    for (int m = 0; m < 4; m++) out[48 + m] = digits(codes + 240 + m, 4, 4);
}

void encode_tq2_block(const int8_t* codes, uint8_t* out) {
    for (int half = 0; half < 2; half++)
        for (int m = 0; m < 32; m++) {
            const int8_t* c = codes + 128 * half + m;
            out[32 * half + m] = static_cast<uint8_t>((c[0] + 1) | (c[32] + 1) << 2 | (c[64] + 1) << 4 | (c[96] + 1) << 6);
        }
}

void encode_q2_block(const int8_t* codes, uint8_t* out) {
    for (int j = 0; j < 64; j += 4, out++)
        *out = static_cast<uint8_t>((codes[j] + 1) | (codes[j + 1] + 1) << 2 | (codes[j + 2] + 1) << 4 | (codes[j + 3] + 1) << 6);
}

}  // namespace

std::vector<uint8_t> encode_ternary(TensorType type, const int8_t* codes, int32_t rows, int32_t cols, float scale, const LayoutChoice& choice) {
    const std::string name = tensor_type_name(type);
    if (!is_ternary(type) || type == TensorType::TL2) throw LayoutError("there is no ternary encoding as " + name);
    if (rows < 1 || cols < 1) throw LayoutError("a ternary matrix must have rows and columns");
    if (choice.i2s != I2sOrder::X128) throw LayoutError("I2_S is written in the order x128 only, which every reader takes");
    if (!std::isfinite(scale) || scale < 0) throw LayoutError("the scale must be finite and not negative, found " + std::to_string(scale));
    const size_t n = static_cast<size_t>(rows) * static_cast<size_t>(cols), block = block_elements(type);
    if (static_cast<size_t>(cols) % block != 0)
        throw LayoutError(name + " needs rows of a multiple of " + std::to_string(block) + " elements, not " + std::to_string(cols));
    for (size_t e = 0; e < n; e++)
        if (codes[e] < -1 || codes[e] > 1) throw LayoutError("ternary codes must be -1, 0 or 1, found " + std::to_string(codes[e]));

    std::vector<uint8_t> bytes(tensor_bytes(type, static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)).value());
    if (type == TensorType::I2_S || type == TensorType::TL1) {
        if (type == TensorType::I2_S) encode_i2s(codes, n, bytes.data());
        if (type == TensorType::TL1) encode_tl1(codes, find_tile(type, rows, cols, choice), bytes.data());
        std::memcpy(bytes.data() + bytes.size() - 32, &scale, sizeof scale);
        return bytes;
    }
    const uint16_t half = f32_to_f16(scale);
    if (!std::isfinite(f16_to_f32(half)) || (half == 0 && scale != 0))
        throw LayoutError("the scale " + std::to_string(scale) + " does not fit the f16 of " + name);
    const size_t block_bytes = bytes.size() / (n / block);
    for (size_t e = 0, at = 0; e < n; e += block, at += block_bytes) {
        bool zero = true;
        for (size_t i = e; i < e + block; i++) zero = zero && codes[i] == 0;
        const uint16_t d = zero ? 0 : half;
        uint8_t* out = bytes.data() + at;
        if (type == TensorType::TQ1_0) encode_tq1_block(codes + e, out);
        if (type == TensorType::TQ2_0) encode_tq2_block(codes + e, out);
        if (type == TensorType::Q2_0) encode_q2_block(codes + e, out + 2);
        std::memcpy(out + (type == TensorType::Q2_0 ? 0 : block_bytes - 2), &d, sizeof d);
    }
    return bytes;
}

}  // namespace bitnet
