// Ternary matrix products in plain C++: the specification that every other instruction set is compared with, and the
// fallback for processors without a kernel of their own.
#include "cpu/ternary.h"

namespace bitnet::scalar {
namespace {

// Decode one k-block of a panel: 128 bytes -> t[32 rows][16 k] in {-1, 0, 1}.
void decode_block(const uint8_t* block, int8_t* t) {
    for (int r = 0; r < kPanelRows; ++r)
        for (int b = 0; b < 4; ++b) {
            const int byte = block[4 * r + b];
            const int low = byte & 15, high = byte >> 4;
            int8_t* row = t + kBlockCols * r + b;
            row[0] = int8_t(low / 3 - 1);
            row[4] = int8_t(low % 3 - 1);
            row[8] = int8_t(high / 3 - 1);
            row[12] = int8_t(high % 3 - 1);
        }
}

const uint8_t* panel_at(const TernaryWeights& w, int panel) {
    return w.panels + size_t(panel) * size_t(w.k_blocks) * kPanelBlockBytes;
}

int rows_in_panel(const TernaryWeights& w, int panel) {
    const int rows = w.rows - panel * kPanelRows;
    return rows < kPanelRows ? rows : kPanelRows;
}

}  // namespace

void ternary_direct(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int n_tokens,
                    float* y, size_t y_stride) {
    constexpr int kTokens = 16;  // decoded weights are shared by this many tokens
    for (int panel = panel_begin; panel < panel_end; ++panel) {
        const int n_rows = rows_in_panel(w, panel);
        for (int first = 0; first < n_tokens; first += kTokens) {
            const int n = n_tokens - first < kTokens ? n_tokens - first : kTokens;
            int32_t dots[kTokens][kPanelRows] = {};
            for (int kb = 0; kb < w.k_blocks; ++kb) {
                int8_t block[kPanelRows * kBlockCols];
                decode_block(panel_at(w, panel) + size_t(kb) * kPanelBlockBytes, block);
                for (int t = 0; t < n; ++t) {
                    const int8_t* values = x.values + size_t(first + t) * x.stride + size_t(kb) * kBlockCols;
                    for (int r = 0; r < kPanelRows; ++r) {
                        int32_t dot = 0;
                        for (int k = 0; k < kBlockCols; ++k) dot += values[k] * block[r * kBlockCols + k];
                        dots[t][r] += dot;
                    }
                }
            }
            for (int t = 0; t < n; ++t) {
                const float scale = w.scale * x.scales[first + t];
                float* out = y + size_t(first + t) * y_stride + size_t(panel) * kPanelRows;
                for (int r = 0; r < n_rows; ++r) out[r] = float(dots[t][r]) * scale;
            }
        }
    }
}

void table_tile(const QuantizedRows& x, int first, int n, int k_blocks, int16_t* tile) {
    for (int k = 0; k < k_blocks * kBlockCols; ++k)
        for (int t = 0; t < kTableTokens; ++t)
            tile[size_t(k) * kTableTokens + t] = t < n ? x.values[size_t(first + t) * x.stride + k] : int16_t(0);
}

size_t table_scratch_bytes(int) { return 0; }

// No tables here: the products of the tile's tokens, summed directly.
void ternary_table(const TernaryWeights& w, int panel_begin, int panel_end, const int16_t* tile, const QuantizedRows& x,
                   int first, int n, int, float* y, size_t y_stride, void*) {
    for (int panel = panel_begin; panel < panel_end; ++panel) {
        int32_t dots[kPanelRows][kTableTokens] = {};
        for (int kb = 0; kb < w.k_blocks; ++kb) {
            int8_t block[kPanelRows * kBlockCols];
            decode_block(panel_at(w, panel) + size_t(kb) * kPanelBlockBytes, block);
            const int16_t* values = tile + size_t(kb) * kBlockCols * kTableTokens;  // [16][32]
            for (int r = 0; r < kPanelRows; ++r)
                for (int k = 0; k < kBlockCols; ++k) {
                    const int32_t weight = block[r * kBlockCols + k];
                    for (int t = 0; t < kTableTokens; ++t) dots[r][t] += weight * values[k * kTableTokens + t];
                }
        }
        const int n_rows = rows_in_panel(w, panel);
        for (int t = 0; t < n; ++t) {
            const float scale = w.scale * x.scales[first + t];
            float* out = y + size_t(first + t) * y_stride + size_t(panel) * kPanelRows;
            for (int r = 0; r < n_rows; ++r) out[r] = float(dots[r][t]) * scale;
        }
    }
}

}  // namespace bitnet::scalar
