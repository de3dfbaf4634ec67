// I2_S decoding and N9 packing. Both run over every weight of a model when it is loaded (2 * 10^9 for the 2B model), so
// the inner loops work on whole words; nothing here is used once the model runs.
#include "quant/ternary.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace bitnet {

static_assert(std::endian::native == std::endian::little, "byte b of a word must be element b");

namespace {

constexpr uint64_t kI2sBlock = 128;      // elements
constexpr uint64_t kI2sBlockBytes = 32;

// Decode one whole block: byte b holds elements b, 32+b, 64+b, 96+b from its high bits to its low bits, as t + 1.
// A code 3 decodes to 2; the return value has a bit set for each.
uint64_t decode_i2s_block(const uint8_t* block, int8_t* out) {
    uint8_t bytes[kI2sBlockBytes];  // a local copy cannot alias `out`, which lets the loops vectorise
    std::memcpy(bytes, block, sizeof bytes);
    for (size_t b = 0; b < kI2sBlockBytes; b++) out[b] = static_cast<int8_t>((bytes[b] >> 6) - 1);
    for (size_t b = 0; b < kI2sBlockBytes; b++) out[32 + b] = static_cast<int8_t>(((bytes[b] >> 4) & 3) - 1);
    for (size_t b = 0; b < kI2sBlockBytes; b++) out[64 + b] = static_cast<int8_t>(((bytes[b] >> 2) & 3) - 1);
    for (size_t b = 0; b < kI2sBlockBytes; b++) out[96 + b] = static_cast<int8_t>((bytes[b] & 3) - 1);

    uint64_t words[4];
    std::memcpy(words, bytes, sizeof words);
    uint64_t threes = 0;
    for (const uint64_t word : words) threes |= word & (word >> 1);
    return threes & 0x5555555555555555u;
}

// Four codes -1, 0, +1 in the bytes of a word, each plus one; no carry crosses a byte.
uint32_t plus_one(uint32_t codes) {
    return ((codes & 0x7f7f7f7fu) + 0x01010101u) ^ (codes & 0x80808080u);
}

// 16 codes of one row to the four bytes of an N9 block. Bytes stay below 9, then below 0x89: again no carries.
uint32_t pack_n9_word(const int8_t* codes) {
    uint32_t f[4];
    std::memcpy(f, codes, sizeof f);
    const uint32_t low = 3 * plus_one(f[0]) + plus_one(f[1]);
    const uint32_t high = 3 * plus_one(f[2]) + plus_one(f[3]);
    return low | high << 4;
}

}  // namespace

size_t n9_bytes(int32_t rows, int32_t cols) {
    const size_t n_panels = (static_cast<size_t>(rows) + kPanelRows - 1) / kPanelRows;
    const size_t k_blocks = (static_cast<size_t>(cols) + kBlockCols - 1) / kBlockCols;
    return n_panels * k_blocks * kPanelBlockBytes;
}

bool decode_i2s(const uint8_t* data, uint64_t first, uint64_t count, int8_t* out) {
    uint64_t threes = 0;
    while (count > 0) {
        const uint8_t* block = data + first / kI2sBlock * kI2sBlockBytes;
        const uint64_t begin = first % kI2sBlock;
        const uint64_t n = std::min(kI2sBlock - begin, count);
        if (n == kI2sBlock) {
            threes |= decode_i2s_block(block, out);
        } else {  // the ends of a range that does not begin or end with a block: only the codes inside it are judged
            int8_t whole[kI2sBlock];
            decode_i2s_block(block, whole);
            std::memcpy(out, whole + begin, n);
            threes |= static_cast<uint64_t>(std::count(out, out + n, int8_t{2}));
        }
        first += n;
        count -= n;
        out += n;
    }
    return threes == 0;
}

void pack_n9_panel(const int8_t* codes, int32_t n_rows, int32_t cols, uint8_t* panel) {
    const size_t k_blocks = (static_cast<size_t>(cols) + kBlockCols - 1) / kBlockCols;
    const size_t whole_blocks = static_cast<size_t>(cols) / kBlockCols;
    if (n_rows < kPanelRows) std::memset(panel, 0x44, k_blocks * kPanelBlockBytes);  // 0x44: four zero weights
    for (size_t kb = 0; kb < whole_blocks; kb++) {
        for (int32_t r = 0; r < n_rows; r++) {
            const uint32_t word = pack_n9_word(codes + static_cast<size_t>(r) * cols + kb * kBlockCols);
            std::memcpy(panel + kb * kPanelBlockBytes + 4 * r, &word, sizeof word);
        }
    }
    if (whole_blocks == k_blocks) return;
    for (int32_t r = 0; r < n_rows; r++) {
        int8_t tail[kBlockCols] = {};
        const size_t begin = whole_blocks * kBlockCols;
        std::memcpy(tail, codes + static_cast<size_t>(r) * cols + begin, static_cast<size_t>(cols) - begin);
        const uint32_t word = pack_n9_word(tail);
        std::memcpy(panel + whole_blocks * kPanelBlockBytes + 4 * r, &word, sizeof word);
    }
}

void unpack_n9_row(const TernaryWeights& w, int32_t row, int8_t* out) {
    const uint8_t* panel = w.panels + static_cast<size_t>(row / kPanelRows) * w.k_blocks * kPanelBlockBytes;
    for (int32_t k = 0; k < w.cols; k++) {
        const int32_t kb = k / kBlockCols, f = k % kBlockCols / 4, b = k % 4;
        const uint8_t byte = panel[static_cast<size_t>(kb) * kPanelBlockBytes + 4 * (row % kPanelRows) + b];
        const int nibble = f < 2 ? byte & 15 : byte >> 4;
        out[k] = static_cast<int8_t>((f % 2 == 0 ? nibble / 3 : nibble % 3) - 1);
    }
}

void n9_row_words(const TernaryWeights& w, int32_t row, uint32_t* out) {
    // Byte b of a block holds elements b, 4 + b, 8 + b, 12 + b: one of them in each byte of the word, at bits 2*b.
    static const std::array<uint32_t, 256> kSpread = [] {
        std::array<uint32_t, 256> table{};
        for (uint32_t byte = 0; byte < table.size(); byte++) {
            const uint32_t low = byte & 15, high = byte >> 4;
            table[byte] = low / 3 | low % 3 << 8 | high / 3 << 16 | high % 3 << 24;
        }
        return table;
    }();
    const uint8_t* bytes = w.panels + static_cast<size_t>(row / kPanelRows) * static_cast<size_t>(w.k_blocks) * kPanelBlockBytes +
                           static_cast<size_t>(4 * (row % kPanelRows));
    for (int32_t kb = 0; kb < w.k_blocks; kb++, bytes += kPanelBlockBytes)
        out[kb] = kSpread[bytes[0]] | kSpread[bytes[1]] << 2 | kSpread[bytes[2]] << 4 | kSpread[bytes[3]] << 6;
}

}  // namespace bitnet
