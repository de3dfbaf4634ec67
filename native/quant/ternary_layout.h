// The layouts of ternary tensors in model files: any row to codes, the scale, and back.
//
//   I2_S   2-bit codes over the flat tensor, one f32 scale. Three orders of the codes exist, and no file says which it has.
//   TL1    pairs of weights as numbers 0..8, in tiles whose sizes no file says, one f32 scale
//   TL2    triples of weights as a magnitude 0..13 and a sign, and pairs as in TL1, in such tiles, one f32 scale
//   TQ1_0  base-3 digits, TQ2_0 and Q2_0 2-bit codes: rows of blocks, an f16 scale in each
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "quant/tensor_type.h"

namespace bitnet {

// A tensor or a choice of layout that makes no sense; the message begins with what is wrong, not with a name.
class LayoutError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// What byte b of a block of I2_S holds, from its high bits to its low bits.
enum class I2sOrder {
    X128,   // blocks of 128 in 32 bytes: elements b, 32+b, 64+b, 96+b. All published files.
    Arm64,  // blocks of 64 in 16 bytes: elements b, 16+b, 32+b, 48+b. bitnet.cpp's quantiser on ARM since November 2025.
    Row4,   // byte b of rows 4r..4r+3: their elements b. Its builds without ACT_PARALLEL.
};

// The tiles that TL1 and TL2 cut one shape of matrix into (kernel_config.ini of bitnet.cpp: m, k, bm, bk, bmm).
struct TlTile {
    int32_t rows = 0, cols = 0;  // of the matrix
    int32_t row_block = 0;       // bm
    int32_t col_block = 0;       // bk
    int32_t simd_rows = 0;       // bmm; TL1: 16, 32 or 64, TL2: 32
};

// What only the user can know of a file.
struct LayoutChoice {
    I2sOrder i2s = I2sOrder::X128;
    bool tl_preset = false;         // TL1 tiles of bitnet.cpp's preset kernels, instead of those that its setup generates
    std::vector<TlTile> tl_tiles;   // if not empty: instead of the built-in ones
};

// "x128", "arm64", "row4" or "preset"; empty = all defaults. Throws LayoutError for other names.
LayoutChoice layout_named(std::string_view name);

// The tiles of a shape in TL1 or TL2. Throws LayoutError if there are none, or impossible ones.
TlTile find_tile(TensorType type, int32_t rows, int32_t cols, const LayoutChoice& choice);

// A view of a ternary tensor as it is stored. Reading is thread-safe.
class TernaryTensor {
public:
    // `data` has tensor_bytes(type, cols, rows) bytes. Throws LayoutError.
    TernaryTensor(TensorType type, const uint8_t* data, int32_t rows, int32_t cols, const LayoutChoice& choice = {});

    TensorType type() const { return type_; }
    int32_t rows() const { return rows_; }
    int32_t cols() const { return cols_; }
    I2sOrder order() const { return order_; }     // of I2_S
    const TlTile& tile() const { return tile_; }  // of TL1 and TL2
    // Codes -1, 0, +1 of one row, out [cols]. A block with the scale 0 has the codes 0. False if there is a code that no
    // ternary weight has; `out` is then unspecified.
    bool decode_row(int32_t row, int8_t* out) const;
    // One, or one for each block, row by row.
    size_t n_scales() const;
    void scales(float* out) const;
    // The scale of the whole tensor, 0 if all blocks have 0; nullopt: the blocks have different ones.
    std::optional<float> scale() const;

private:
    uint16_t block_scale(size_t block) const;

    TensorType type_;
    const uint8_t* data_;
    int32_t rows_, cols_;
    I2sOrder order_;
    TlTile tile_;
};

// The bytes of a tensor. codes [rows][cols]; the scale is finite and not negative. Types: I2_S, TL1, TQ1_0, TQ2_0, Q2_0.
// Block types round the scale to f16, and give blocks of zeros the scale 0. Throws LayoutError.
std::vector<uint8_t> encode_ternary(TensorType type, const int8_t* codes, int32_t rows, int32_t cols, float scale,
                                    const LayoutChoice& choice = {});

}  // namespace bitnet
