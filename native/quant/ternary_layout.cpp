// Decoding, row by row. Every weight of a model passes here once, when it is packed.
#include "quant/ternary_layout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "quant/dense.h"
#include "quant/ternary.h"

namespace bitnet {

namespace {

// The tiles that bitnet.cpp's setup_env.py generates, by shape.
constexpr TlTile kTl1Tiles[] = {
    {1536, 4096, 256, 128, 32},  {1536, 1536, 128, 64, 64},   {4096, 1536, 256, 128, 32},   // bitnet_b1_58-large
    {3200, 8640, 160, 64, 32},   {3200, 3200, 320, 128, 64},  {8640, 3200, 320, 64, 32},    // bitnet_b1_58-3B
    {14336, 4096, 256, 128, 32}, {4096, 14336, 128, 64, 64},  {1024, 4096, 256, 128, 32},   // Llama3-8B-1.58
    {4096, 4096, 128, 64, 64},
};
constexpr TlTile kTl2Tiles[] = {
    {1536, 4096, 256, 96, 32},   {1536, 1536, 128, 192, 32},  {4096, 1536, 256, 96, 32},
    {3200, 8640, 160, 96, 32},   {3200, 3200, 320, 96, 32},   {8640, 3200, 320, 96, 32},
    {14336, 4096, 256, 96, 32},  {4096, 14336, 128, 96, 32},  {1024, 4096, 256, 96, 32},
    {4096, 4096, 128, 96, 32},
};
// Where its preset_kernels differ, and can be executed.
constexpr TlTile kTl1PresetTiles[] = {
    {14336, 4096, 256, 128, 64}, {4096, 14336, 256, 128, 32}, {1024, 4096, 128, 64, 64},    {4096, 4096, 128, 64, 32},
};

std::string shape_of(int32_t rows, int32_t cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

bool is_possible(TensorType type, const TlTile& t) {
    if (t.row_block <= 0 || t.col_block <= 0 || t.simd_rows <= 0 || t.rows % t.row_block != 0 || t.row_block % t.simd_rows != 0)
        return false;
    if (type == TensorType::TL1) {
        const bool known = t.simd_rows == 16 || t.simd_rows == 32 || t.simd_rows == 64;
        return known && t.cols % t.col_block == 0 && t.col_block % (256 / t.simd_rows) == 0;
    }
    const int64_t three = t.cols / t.col_block * int64_t{t.col_block}, two = t.cols - three, rows = t.rows;
    return t.simd_rows == 32 && t.col_block % 24 == 0 && two % 32 == 0 && t.cols >= 256 &&
           static_cast<uint64_t>(rows * three / 6 + rows * three / 24 + rows * two / 4) <=
               tl2_payload_bytes(static_cast<uint64_t>(t.cols), static_cast<uint64_t>(t.rows));
}

// Two weights as 3 * first + second + 4. False if there is no such pair.
bool decode_pair(int value, int8_t* out) {
    out[0] = static_cast<int8_t>(value / 3 - 1);
    out[1] = static_cast<int8_t>(value % 3 - 1);
    return value <= 8;
}

// Byte n of TL1, fastest first: 16 rows, 4-column groups of a strip, 16-row groups of a SIMD block, strips of a column block,
// SIMD blocks of a row block, column blocks, row blocks.
bool decode_tl1_row(const uint8_t* data, const TlTile& t, int32_t row, int8_t* out) {
    const size_t strip = static_cast<size_t>(256 / t.simd_rows), quads = strip / 4;
    const size_t simd_rows = static_cast<size_t>(t.simd_rows), row_block = static_cast<size_t>(t.row_block);
    const size_t col_block = static_cast<size_t>(t.col_block), m = static_cast<size_t>(row);
    const size_t n_col_blocks = static_cast<size_t>(t.cols) / col_block;
    const size_t i0 = m / row_block, i1 = m % row_block / simd_rows, i2 = m % simd_rows / 16, r = m % 16;
    bool valid = true;
    for (size_t k0 = 0; k0 < n_col_blocks; k0++)
        for (size_t k1 = 0; k1 < col_block / strip; k1++)
            for (size_t k2 = 0; k2 < quads; k2++) {
                size_t n = i0 * n_col_blocks + k0;
                n = n * (row_block / simd_rows) + i1;
                n = n * (col_block / strip) + k1;
                n = n * (simd_rows / 16) + i2;
                n = n * quads + k2;
                const uint8_t byte = data[n * 16 + r];
                valid = decode_pair(byte >> 4, out) & decode_pair(byte & 15, out + 2) & valid;
                out += 4;
            }
    return valid;
}

// Where row `lane` of 32 stands in TL2's bytes: eights of rows are stored in the order 0, 2, 1, 3.
size_t tl2_slot(size_t lane) {
    constexpr size_t kSlot[] = {0, 2, 1, 3};
    return kSlot[lane / 8] * 8 + lane % 8;
}

// Three sections: triples, their signs, and pairs for the columns that are no whole block of triples.
bool decode_tl2_row(const uint8_t* data, const TlTile& t, int32_t row, int8_t* out) {
    const size_t rows = static_cast<size_t>(t.rows), row_block = static_cast<size_t>(t.row_block);
    const size_t col_block = static_cast<size_t>(t.col_block), m = static_cast<size_t>(row);
    const size_t n_col_blocks = static_cast<size_t>(t.cols) / col_block;
    const size_t three = n_col_blocks * col_block, two = static_cast<size_t>(t.cols) - three;
    const size_t i0 = m / row_block, i1 = m % row_block / 32, lane = m % 32, slot = tl2_slot(lane), blocks = row_block / 32;
    const uint8_t* signs = data + rows * three / 6;
    const uint8_t* pairs = signs + rows * three / 24;
    bool valid = true;
    for (size_t k0 = 0; k0 < n_col_blocks; k0++) {
        const size_t group = (i0 * n_col_blocks + k0) * blocks + i1;
        for (size_t triple = 0; triple < col_block / 3; triple++) {
            const uint8_t byte = data[(group * (col_block / 6) + triple / 2) * 32 + slot];
            const int magnitude = triple % 2 == 0 ? byte >> 4 : byte & 15;
            const uint8_t* word = signs + ((group * (col_block / 24) + triple / 8) * 16 + lane % 16) * 2;
            const size_t bit = 15 - (2 * (triple % 8) + lane / 16);
            const int negative = (word[0] | word[1] << 8) >> bit & 1;
            const int value = 13 + (negative ? -magnitude : magnitude);
            out[0] = static_cast<int8_t>(value / 9 - 1);
            out[1] = static_cast<int8_t>(value / 3 % 3 - 1);
            out[2] = static_cast<int8_t>(value % 3 - 1);
            out += 3;
            valid = valid && magnitude <= 13 && !(negative && magnitude == 0);
        }
    }
    for (size_t k0 = 0; k0 < two / 32; k0++)
        for (size_t k1 = 0; k1 < 8; k1++) {
            const size_t group = (i0 * (two / 32) + k0) * blocks + i1;
            const uint8_t byte = pairs[(group * 8 + k1) * 32 + slot];
            valid = decode_pair(byte >> 4, out) & decode_pair(byte & 15, out + 2) & valid;
            out += 4;
        }
    return valid;
}

// Digit n of a base-3 fixed-point byte, less one.
int8_t digit(uint8_t byte, int n) {
    constexpr uint8_t kPower[] = {1, 3, 9, 27, 81};
    return static_cast<int8_t>((static_cast<uint8_t>(byte * kPower[n]) * 3 >> 8) - 1);
}

// 256 elements: 32 bytes of five digits, 16 bytes of five, 4 bytes of four; digit n of the bytes together, then the next.
void decode_tq1_block(const uint8_t* block, int8_t* out) {
    for (int n = 0; n < 5; n++)
        for (int m = 0; m < 32; m++) out[32 * n + m] = digit(block[m], n);
    for (int n = 0; n < 5; n++)
        for (int m = 0; m < 16; m++) out[160 + 16 * n + m] = digit(block[32 + m], n);
    for (int n = 0; n < 4; n++)
        for (int m = 0; m < 4; m++) out[240 + 4 * n + m] = digit(block[48 + m], n);
}

// Two halves of 128: byte m of 32 holds elements m, 32+m, 64+m, 96+m from its low bits to its high bits.
bool decode_tq2_block(const uint8_t* block, int8_t* out) {
    int8_t most = 0;
    for (int half = 0; half < 2; half++)
        for (int l = 0; l < 4; l++)
            for (int m = 0; m < 32; m++) {
                const int8_t code = static_cast<int8_t>((block[32 * half + m] >> (2 * l) & 3) - 1);
                out[128 * half + 32 * l + m] = code;
                most = std::max(most, code);
            }
    return most <= 1;
}

// Element j in byte j / 4, from its low bits to its high bits.
bool decode_q2_block(const uint8_t* codes, int8_t* out) {
    int8_t most = 0;
    for (int j = 0; j < 64; j++) {
        out[j] = static_cast<int8_t>((codes[j / 4] >> (2 * (j % 4)) & 3) - 1);
        most = std::max(most, out[j]);
    }
    return most <= 1;
}

struct BlockFormat {
    size_t elements, bytes, scale_at, codes_at;
};

BlockFormat block_format(TensorType type) {
    switch (type) {
        case TensorType::TQ1_0: return {256, 54, 52, 0};
        case TensorType::TQ2_0: return {256, 66, 64, 0};
        default: return {64, 18, 0, 2};  // Q2_0
    }
}

bool has_block_scales(TensorType type) { return block_elements(type) > 1; }

float load_f32(const uint8_t* bytes) {
    float value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

}  // namespace

LayoutChoice layout_named(std::string_view name) {
    LayoutChoice choice;
    if (name.empty() || name == "x128") return choice;
    if (name == "arm64") {
        choice.i2s = I2sOrder::Arm64;
    } else if (name == "row4") {
        choice.i2s = I2sOrder::Row4;
    } else if (name == "preset") {
        choice.tl_preset = true;
    } else {
        throw LayoutError("there is no layout '" + std::string(name) + "': x128, arm64, row4 or preset");
    }
    return choice;
}

TlTile find_tile(TensorType type, int32_t rows, int32_t cols, const LayoutChoice& choice) {
    const auto in = [&](std::span<const TlTile> tiles) -> std::optional<TlTile> {
        for (const TlTile& tile : tiles)
            if (tile.rows == rows && tile.cols == cols) return tile;
        return std::nullopt;
    };
    std::optional<TlTile> tile;
    if (!choice.tl_tiles.empty()) {
        tile = in(choice.tl_tiles);
    } else {
        if (type == TensorType::TL1 && choice.tl_preset) tile = in(kTl1PresetTiles);
        if (!tile) tile = type == TensorType::TL1 ? in(kTl1Tiles) : in(kTl2Tiles);
    }
    const std::string name = tensor_type_name(type);
    if (!tile)
        throw LayoutError("the tile sizes that " + name + " cut a matrix of " + shape_of(rows, cols) +
                          " into are not known, and the file does not hold them: give the kernel_config.ini it was made with (tl_config)");
    if (!is_possible(type, *tile))
        throw LayoutError("tiles of bm=" + std::to_string(tile->row_block) + ", bk=" + std::to_string(tile->col_block) +
                          ", bmm=" + std::to_string(tile->simd_rows) + " cannot cut a matrix of " + shape_of(rows, cols) + " in " + name);
    return *tile;
}

TernaryTensor::TernaryTensor(TensorType type, const uint8_t* data, int32_t rows, int32_t cols, const LayoutChoice& choice)
    : type_(type), data_(data), rows_(rows), cols_(cols), order_(choice.i2s) {
    if (!is_ternary(type)) throw LayoutError(tensor_type_name(type) + " is not a ternary type");
    if (cols % static_cast<int32_t>(block_elements(type)) != 0)
        throw LayoutError(tensor_type_name(type) + " needs rows of a multiple of " + std::to_string(block_elements(type)) +
                          " elements, not " + std::to_string(cols));
    if (type == TensorType::TL1 || type == TensorType::TL2) tile_ = find_tile(type, rows, cols, choice);
    if (type != TensorType::I2_S || order_ == I2sOrder::X128) return;
    // Their writers have no way to store the rest of a block.
    if (int64_t{rows} * cols % 128 != 0 || (order_ == I2sOrder::Row4 && rows % 4 != 0))
        throw LayoutError("a matrix of " + shape_of(rows, cols) + " cannot be stored in this order of I2_S: it needs a multiple of " +
                          (order_ == I2sOrder::Row4 ? "4 rows and of " : "") + "128 elements; choose the layout x128");
}

bool TernaryTensor::decode_row(int32_t row, int8_t* out) const {
    const size_t cols = static_cast<size_t>(cols_), first = static_cast<size_t>(row) * cols;
    switch (type_) {
        case TensorType::I2_S: {
            if (order_ == I2sOrder::X128) return decode_i2s(data_, first, cols, out);
            int8_t most = 0;
            for (size_t k = 0; k < cols; k++) {
                const size_t e = first + k;
                const size_t byte = order_ == I2sOrder::Arm64 ? e / 64 * 16 + e % 16 : static_cast<size_t>(row / 4) * cols + k;
                const size_t part = order_ == I2sOrder::Arm64 ? e % 64 / 16 : static_cast<size_t>(row % 4);
                out[k] = static_cast<int8_t>((data_[byte] >> (6 - 2 * part) & 3) - 1);
                most = std::max(most, out[k]);
            }
            return most <= 1;
        }
        case TensorType::TL1: return decode_tl1_row(data_, tile_, row, out);
        case TensorType::TL2: return decode_tl2_row(data_, tile_, row, out);
        default: break;
    }
    const BlockFormat format = block_format(type_);
    bool valid = true;
    for (size_t block = first / format.elements; block < (first + cols) / format.elements; block++, out += format.elements) {
        const uint8_t* codes = data_ + block * format.bytes + format.codes_at;
        if (type_ == TensorType::TQ1_0) decode_tq1_block(codes, out);
        if (type_ == TensorType::TQ2_0) valid = decode_tq2_block(codes, out) && valid;
        if (type_ == TensorType::Q2_0) valid = decode_q2_block(codes, out) && valid;
        if ((block_scale(block) & 0x7fff) == 0) std::fill_n(out, format.elements, int8_t{0});
    }
    return valid;
}

uint16_t TernaryTensor::block_scale(size_t block) const {
    const BlockFormat format = block_format(type_);
    uint16_t half;
    std::memcpy(&half, data_ + block * format.bytes + format.scale_at, sizeof half);
    return half;
}

size_t TernaryTensor::n_scales() const {
    return has_block_scales(type_) ? static_cast<size_t>(rows_) * static_cast<size_t>(cols_) / block_elements(type_) : 1;
}

void TernaryTensor::scales(float* out) const {
    if (has_block_scales(type_)) {
        for (size_t block = 0; block < n_scales(); block++) out[block] = f16_to_f32(block_scale(block));
        return;
    }
    *out = load_f32(data_ + tensor_bytes(type_, static_cast<uint64_t>(cols_), static_cast<uint64_t>(rows_)).value() - 32);
}

std::optional<float> TernaryTensor::scale() const {
    float first = 0;
    if (!has_block_scales(type_)) {
        scales(&first);
        return first;
    }
    uint16_t half = 0;
    for (size_t block = 0; block < n_scales(); block++) {
        const uint16_t other = block_scale(block);
        if ((other & 0x7fff) == 0) continue;
        if (half != 0 && other != half) return std::nullopt;
        half = other;
    }
    return f16_to_f32(half);
}

}  // namespace bitnet
