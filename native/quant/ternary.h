// Ternary tensors: N9, the one layout the kernels run, and the order of I2_S that published files have. All other file
// layouts are in ternary_layout.h.
//
// N9: 2 bits per weight in panels of 32 rows, one linear stream per panel:
//     tensor = [panel p = M/32][k_block kb = K/16][row r = 0..31][byte b = 0..3]        128 bytes per (p, kb)
//     byte   = (3*c0 + c1) | (3*c2 + c3) << 4,   c_f = w[32p + r][16kb + 4f + b] + 1
// so that a nibble decodes with one table lookup and a whole byte indexes a dense table of 4-weight sums.
// M is padded to 32 and K to 16 with zero weights.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitnet {

constexpr int kPanelRows = 32;
constexpr int kBlockCols = 16;
constexpr int kPanelBlockBytes = 128;  // kPanelRows * kBlockCols / 4

// A view of packed weights W[rows][cols] in N9.
struct TernaryWeights {
    const uint8_t* panels = nullptr;  // [n_panels][k_blocks][32][4], 64-byte aligned
    int32_t rows = 0;                 // M, out features
    int32_t cols = 0;                 // K, in features
    int32_t n_panels = 0;             // ceil(M / 32)
    int32_t k_blocks = 0;             // ceil(K / 16)
    float scale = 0;                  // W = scale * t
};

size_t n9_bytes(int32_t rows, int32_t cols);

// Decode `count` elements of an I2_S tensor starting at flat element `first` (row-major over the whole tensor, blocks run
// over the flat tensor, not per row) into -1, 0, +1. Returns false if a code 3 occurs in the range.
bool decode_i2s(const uint8_t* data, uint64_t first, uint64_t count, int8_t* out);

// Pack one panel: codes [n_rows][cols] (-1, 0, +1), n_rows <= 32 (missing rows are zero), into k_blocks*128 bytes.
void pack_n9_panel(const int8_t* codes, int32_t n_rows, int32_t cols, uint8_t* panel);

// The inverse for one row, for tests and conversion: out [cols].
void unpack_n9_row(const TernaryWeights& w, int32_t row, int8_t* out);

// One row at 2 bits a weight, as other engines want it: element k is t + 1 at bits 2*(k % 16) of word k / 16. out [k_blocks].
void n9_row_words(const TernaryWeights& w, int32_t row, uint32_t* out);

}  // namespace bitnet
