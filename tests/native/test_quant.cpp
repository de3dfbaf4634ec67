// Weight formats against worked examples and against decoders written here a second time, one element at a time.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "quant/dense.h"
#include "quant/tensor_type.h"
#include "quant/ternary.h"
#include "quant/ternary_layout.h"

using namespace bitnet;

namespace {

std::vector<int8_t> random_codes(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<int8_t> codes(n);
    for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(random() % 3) - 1);
    return codes;
}

// The definition of I2_S, element by element.
std::vector<uint8_t> encode_i2s(const std::vector<int8_t>& codes, float scale) {
    std::vector<uint8_t> bytes((codes.size() + 127) / 128 * 32 + 32);
    for (size_t e = 0; e < codes.size(); e++) {
        const size_t j = e % 128;
        bytes[32 * (e / 128) + j % 32] |= static_cast<uint8_t>((codes[e] + 1) << (6 - 2 * (j / 32)));
    }
    std::memcpy(bytes.data() + bytes.size() - 32, &scale, sizeof scale);
    return bytes;
}

// IEEE half by its definition.
float half_by_definition(uint16_t h) {
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    const float magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                            : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                            : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

}  // namespace

TEST(tensor_types) {
    CHECK(tensor_type_name(TensorType::I2_S) == "I2_S" && tensor_type_name(TensorType::F32) == "F32");
    CHECK(tensor_type_name(TensorType::TL2) == "TL2" && tensor_type_name(TensorType::Q2_0) == "Q2_0");
    CHECK(unreadable_type_name(12) == "Q4_K (12)" && unreadable_type_name(99) == "unknown (99)");
    CHECK(unreadable_type_name(39) == "MXFP4 (39)" && unreadable_type_name(0xffffffffu) == "unknown (4294967295)");
    for (const uint32_t id : {0u, 1u, 2u, 8u, 14u, 30u, 34u, 35u, 36u, 38u}) {
        CHECK(resolve_type(id, 1, 1, 1) == static_cast<TensorType>(id));
        CHECK(is_ternary(static_cast<TensorType>(id)) == (id > 30));
    }
    for (const uint32_t id : {3u, 12u, 37u, 40u, 41u, 0xffffffffu}) CHECK(!resolve_type(id, 256, 32, 1 << 20));
    CHECK(block_elements(TensorType::F16) == 1 && block_elements(TensorType::Q8_0) == 32);
    CHECK(block_elements(TensorType::Q6_K) == 256 && block_elements(TensorType::I2_S) == 1);
    CHECK(tensor_bytes(TensorType::F32, 10, 1) == 40 && tensor_bytes(TensorType::BF16, 5, 2) == 20);
    CHECK(tensor_bytes(TensorType::Q8_0, 64, 1) == 68 && tensor_bytes(TensorType::Q6_K, 256, 2) == 420);
    CHECK(tensor_bytes(TensorType::I2_S, 128, 1) == 64 && tensor_bytes(TensorType::I2_S, 43, 3) == 96);
    CHECK(tensor_bytes(TensorType::I2_S, 8640, 3200) == 3200 * 8640 / 4 + 32);
    CHECK(tensor_bytes(TensorType::Q4_0, 64, 1) == 36 && block_elements(TensorType::Q4_0) == 32);
    CHECK(tensor_bytes(TensorType::TQ1_0, 512, 3) == 6 * 54 && tensor_bytes(TensorType::TQ2_0, 256, 1) == 66);
    CHECK(tensor_bytes(TensorType::Q2_0, 128, 2) == 72 && tensor_bytes(TensorType::TL1, 4096, 1536) == 4096 * 1536 / 4 + 32);
    CHECK(tl2_payload_bytes(4096, 1536) == 1327104 && tl2_payload_bytes(3200, 320) == 216746);
    CHECK(tensor_bytes(TensorType::TL2, 3200, 320) == 216768 + 32 && !tensor_bytes(TensorType::TL2, 255, 32));
    CHECK(tensor_type_named("q6_k") == TensorType::Q6_K && tensor_type_named("tl2") == TensorType::TL2);
    CHECK(!tensor_type_named("q4_k") && !tensor_type_named("") && !tensor_type_named("q6") && !tensor_type_named("q6_kk"));
    const uint64_t most = ~uint64_t{0};
    CHECK(!tensor_bytes(TensorType::F32, most, 1) && !tensor_bytes(TensorType::F16, 1, most) && !tensor_bytes(TensorType::F16, most, 2));
    CHECK(!tensor_bytes(TensorType::Q8_0, most, 1) && !tensor_bytes(TensorType::TL2, most / 2, 1));
    CHECK(tensor_bytes(TensorType::F32, most / 4, 1) == most / 4 * 4);
    CHECK(tensor_bytes(TensorType::I2_S, most, 1) == (uint64_t{1} << 62) + 32);
    CHECK(row_bytes(TensorType::Q6_K, 512) == 420 && row_bytes(TensorType::F16, 5) == 10);
    CHECK_THROWS(row_bytes(TensorType::I2_S, 128), std::logic_error, "I2_S");
}

TEST(types_that_share_an_id_are_told_apart_by_size) {
    const uint64_t tl2 = *tensor_bytes(TensorType::TL2, 4096, 1536), q2 = *tensor_bytes(TensorType::Q2_0, 4096, 1536);
    const uint64_t mxfp4 = 4096 * 1536 / 32 * 17;
    CHECK(tl2 < q2 && q2 < mxfp4);
    CHECK(resolve_type(39, 4096, 1536, tl2) == TensorType::TL2 && resolve_type(39, 4096, 1536, mxfp4 - 1) == TensorType::TL2);
    CHECK(!resolve_type(39, 4096, 1536, mxfp4) && !resolve_type(39, 4096, 1530, tl2) && !resolve_type(39, 128, 1536, tl2));
    CHECK(resolve_type(42, 4096, 1536, tl2) == TensorType::TL2 && resolve_type(42, 4096, 1536, q2 - 1) == TensorType::TL2);
    CHECK(resolve_type(42, 4096, 1536, q2) == TensorType::Q2_0 && resolve_type(42, 4096, 1536, q2 + 31) == TensorType::Q2_0);
    CHECK(resolve_type(42, 64, 1, 18) == TensorType::Q2_0);
    CHECK(resolve_type(42, ~uint64_t{0} / 2, 32, ~uint64_t{0}) == TensorType::TL2);  // nothing overflows
}

TEST(f16_all_patterns) {
    for (uint32_t pattern = 0; pattern < 65536; pattern++) {
        const uint16_t h = static_cast<uint16_t>(pattern);
        const float value = f16_to_f32(h), expected = half_by_definition(h);
        const bool same_bits = std::bit_cast<uint32_t>(value) == std::bit_cast<uint32_t>(expected);
        CHECK(std::isnan(expected) ? std::isnan(value) : same_bits);
        CHECK(f32_to_f16(value) == h);
    }
}

TEST(f16_rounds_to_nearest_even) {
    // Between two neighbouring halves: the midpoint goes to the even one, a hair to either side to the nearer one.
    for (uint32_t pattern = 0; pattern < 0x7bff; pattern++) {
        const uint16_t low = static_cast<uint16_t>(pattern), high = static_cast<uint16_t>(pattern + 1);
        const float middle = (f16_to_f32(low) + f16_to_f32(high)) / 2;  // exact in f32
        const uint16_t even = low % 2 == 0 ? low : high;
        CHECK(f32_to_f16(middle) == even && f32_to_f16(-middle) == (even | 0x8000));
        CHECK(f32_to_f16(std::nextafter(middle, 0.0f)) == low);
        CHECK(f32_to_f16(std::nextafter(middle, INFINITY)) == high);
    }
    CHECK(f32_to_f16(65504.0f) == 0x7bff && f32_to_f16(65519.99f) == 0x7bff);
    CHECK(f32_to_f16(65520.0f) == 0x7c00 && f32_to_f16(1e30f) == 0x7c00 && f32_to_f16(-INFINITY) == 0xfc00);
    CHECK(f32_to_f16(1e-10f) == 0 && f32_to_f16(-1e-10f) == 0x8000);
    CHECK((f32_to_f16(std::bit_cast<float>(0x7f800001u)) & 0x7fff) > 0x7c00);
}

TEST(decode_rows_of_floats) {
    // Rows begin at odd addresses: tensors may be aligned to one byte.
    std::vector<uint8_t> bytes(1 + 64);
    const float f32[] = {1.0f, -0.5f, 3e38f};
    std::memcpy(bytes.data() + 1, f32, sizeof f32);
    float out[4];
    decode_row(TensorType::F32, bytes.data() + 1, 3, out);
    CHECK(out[0] == 1.0f && out[1] == -0.5f && out[2] == 3e38f);
    const uint16_t f16[] = {0x3c00, 0xb800, 0x0001, 0x7bff};
    std::memcpy(bytes.data() + 1, f16, sizeof f16);
    decode_row(TensorType::F16, bytes.data() + 1, 4, out);
    CHECK(out[0] == 1.0f && out[1] == -0.5f && out[2] == 0x1p-24f && out[3] == 65504.0f);
    const uint16_t bf16[] = {0x3f80, 0xc040, 0x7f80, 0x0001};
    std::memcpy(bytes.data() + 1, bf16, sizeof bf16);
    decode_row(TensorType::BF16, bytes.data() + 1, 4, out);
    CHECK(out[0] == 1.0f && out[1] == -3.0f && std::isinf(out[2]) && out[3] == 0x1p-133f);
    CHECK(bf16_to_f32(0x4049) == 3.140625f);
    CHECK_THROWS(decode_row(TensorType::I2_S, bytes.data(), 4, out), std::logic_error, "I2_S is not a dense row type");
}

TEST(decode_q8_0) {
    std::mt19937 random(1);
    std::vector<uint8_t> row(34 * 5);
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
    for (size_t block = 0; block < 5; block++) row[34 * block + 1] = 0x38;  // scales near 0.5
    float out[160];
    decode_row(TensorType::Q8_0, row.data(), 160, out);
    for (size_t i = 0; i < 160; i++) {
        const uint8_t* block = row.data() + 34 * (i / 32);
        const float d = half_by_definition(static_cast<uint16_t>(block[0] | block[1] << 8));
        CHECK(out[i] == d * static_cast<float>(static_cast<int8_t>(block[2 + i % 32])));
    }
}

TEST(decode_q6_k) {
    std::mt19937 random(2);
    std::vector<uint8_t> row(210 * 3);
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
    for (size_t block = 0; block < 3; block++) row[210 * block + 209] = 0x2c;
    std::vector<float> out(768);
    decode_row(TensorType::Q6_K, row.data(), out.size(), out.data());
    for (size_t i = 0; i < out.size(); i++) {
        // Element e of a block: half, then group of 32 (which nibble, which bit pair, which scales), then lane.
        const uint8_t* block = row.data() + 210 * (i / 256);
        const size_t half = i % 256 / 128, group = i % 128 / 32, lane = i % 32;
        const uint8_t low_byte = block[64 * half + 32 * (group % 2) + lane];
        const int low = group < 2 ? low_byte & 15 : low_byte >> 4;
        const int high = (block[128 + 32 * half + lane] >> (2 * group)) & 3;
        const float scale = static_cast<float>(static_cast<int8_t>(block[192 + 8 * half + 2 * group + lane / 16]));
        const float d = half_by_definition(static_cast<uint16_t>(block[208] | block[209] << 8));
        CHECK(out[i] == d * scale * static_cast<float>((low | high << 4) - 32));
    }
}

TEST(i2s_worked_example) {
    // K=128, M=1, scale 0.5, t[0]=+1, t[1]=-1, t[32]=+1, t[64]=-1, t[127]=+1
    std::vector<uint8_t> bytes(64, 0);
    bytes[0] = 0xa1;
    bytes[1] = 0x15;
    for (size_t i = 2; i < 31; i++) bytes[i] = 0x55;
    bytes[31] = 0x56;
    bytes[35] = 0x3f;  // 00 00 00 3f = 0.5f
    std::vector<int8_t> expected(128, 0);
    expected[0] = 1, expected[1] = -1, expected[32] = 1, expected[64] = -1, expected[127] = 1;
    std::vector<int8_t> out(128);
    CHECK(decode_i2s(bytes.data(), 0, 128, out.data()));
    CHECK(out == expected);
    CHECK(TernaryTensor(TensorType::I2_S, bytes.data(), 1, 128).scale() == 0.5f);
    CHECK(encode_i2s(expected, 0.5f) == bytes);
    CHECK(tensor_bytes(TensorType::I2_S, 128, 1) == bytes.size());
}

TEST(i2s_any_range) {
    for (const size_t n : {1u, 31u, 127u, 128u, 129u, 300u, 640u, 1000u}) {
        const std::vector<int8_t> codes = random_codes(n, static_cast<uint32_t>(n));
        const std::vector<uint8_t> bytes = encode_i2s(codes, 0.25f);
        CHECK(bytes.size() == tensor_bytes(TensorType::I2_S, n, 1));
        CHECK(TernaryTensor(TensorType::I2_S, bytes.data(), 1, static_cast<int32_t>(n)).scale() == 0.25f);
        for (size_t first = 0; first < n; first += 1 + first / 7) {
            for (size_t count = 0; first + count <= n; count += 1 + count / 5) {
                std::vector<int8_t> out(count);
                CHECK(decode_i2s(bytes.data(), first, count, out.data()));
                CHECK(std::equal(out.begin(), out.end(), codes.begin() + static_cast<std::ptrdiff_t>(first)));
            }
        }
    }
}

TEST(i2s_code_3) {
    // A code 3 is found wherever it is, and only by ranges that contain it.
    const std::vector<uint8_t> good = encode_i2s(random_codes(300, 5), 1.0f);
    std::vector<int8_t> out(300);
    for (size_t e = 0; e < 300; e++) {
        std::vector<uint8_t> bytes = good;
        bytes[32 * (e / 128) + e % 32] |= static_cast<uint8_t>(3 << (6 - 2 * (e % 128 / 32)));
        CHECK(!decode_i2s(bytes.data(), 0, 300, out.data()));
        CHECK(!decode_i2s(bytes.data(), e, 1, out.data()));
        CHECK(decode_i2s(bytes.data(), 0, e, out.data()));
        CHECK(decode_i2s(bytes.data(), e + 1, 299 - e, out.data()));
    }
    std::vector<uint8_t> padded = good;  // the unused codes of the last block are nobody's business
    padded[64 + 31] |= 0x03;
    CHECK(decode_i2s(padded.data(), 0, 300, out.data()));
}

TEST(ternary_tensors_of_random_bytes_are_read_within_bounds) {
    // Whatever the bytes are: codes or a refusal, and nothing behind the tensor is read (sanitizers see that).
    struct Case {
        TensorType type;
        int32_t rows, cols;
        TlTile tile;
    };
    const Case cases[] = {
        {TensorType::I2_S, 4, 96, {}},
        {TensorType::I2_S, 3, 100, {}},
        {TensorType::TL1, 128, 128, {128, 128, 128, 64, 32}},
        {TensorType::TL1, 64, 96, {64, 96, 64, 32, 64}},
        {TensorType::TL1, 16, 64, {16, 64, 16, 16, 16}},
        {TensorType::TL2, 64, 256, {64, 256, 32, 96, 32}},
        {TensorType::TL2, 32, 480, {32, 480, 32, 48, 32}},
        {TensorType::TQ1_0, 3, 512, {}},
        {TensorType::TQ2_0, 3, 512, {}},
        {TensorType::Q2_0, 3, 192, {}},
    };
    std::mt19937 random(11);
    for (const Case& c : cases)
        for (const I2sOrder order : {I2sOrder::X128, I2sOrder::Arm64, I2sOrder::Row4}) {
            if (c.type == TensorType::I2_S && order != I2sOrder::X128 && c.cols == 100) continue;
            LayoutChoice choice;
            choice.i2s = order;
            if (c.tile.rows) choice.tl_tiles = {c.tile};
            for (int round = 0; round < 20; round++) {
                const size_t n = static_cast<size_t>(*tensor_bytes(c.type, static_cast<uint64_t>(c.cols), static_cast<uint64_t>(c.rows)));
                std::vector<uint8_t> bytes(n);
                for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
                const TernaryTensor tensor(c.type, bytes.data(), c.rows, c.cols, choice);
                std::vector<int8_t> out(static_cast<size_t>(c.cols));
                for (int32_t row = 0; row < c.rows; row++)
                    if (tensor.decode_row(row, out.data()))
                        for (const int8_t code : out) CHECK(code >= -1 && code <= 1);
                std::vector<float> scales(tensor.n_scales());
                tensor.scales(scales.data());
                (void)tensor.scale();
            }
        }
}

TEST(ternary_tensors_round_trip) {
    for (const TensorType type : {TensorType::I2_S, TensorType::TL1, TensorType::TQ1_0, TensorType::TQ2_0, TensorType::Q2_0}) {
        const int32_t rows = 64, cols = 512;
        LayoutChoice choice;
        choice.tl_tiles = {{rows, cols, 64, 128, 32}};
        const std::vector<int8_t> codes = random_codes(static_cast<size_t>(rows) * static_cast<size_t>(cols), 3);
        const std::vector<uint8_t> bytes = encode_ternary(type, codes.data(), rows, cols, 0.375f, choice);
        const TernaryTensor tensor(type, bytes.data(), rows, cols, choice);
        std::vector<int8_t> out(codes.size());
        for (int32_t row = 0; row < rows; row++) CHECK(tensor.decode_row(row, out.data() + row * cols));
        CHECK(out == codes && tensor.scale() == 0.375f);
    }
}

TEST(ternary_tensors_that_cannot_be_are_refused) {
    const std::vector<uint8_t> bytes(1 << 20);
    CHECK_THROWS(TernaryTensor(TensorType::F16, bytes.data(), 1, 256), LayoutError, "F16 is not a ternary type");
    CHECK_THROWS(TernaryTensor(TensorType::TQ1_0, bytes.data(), 1, 128), LayoutError, "multiple of 256 elements, not 128");
    CHECK_THROWS(TernaryTensor(TensorType::TL1, bytes.data(), 256, 512), LayoutError, "256 x 512");
    CHECK_THROWS(TernaryTensor(TensorType::TL2, bytes.data(), 256, 512), LayoutError, "kernel_config.ini");
    CHECK_THROWS(layout_named("x64"), LayoutError, "x128, arm64, row4 or preset");
    CHECK_THROWS(TernaryTensor(TensorType::I2_S, bytes.data(), 2, 128, layout_named("row4")), LayoutError, "4 rows");
    CHECK(find_tile(TensorType::TL1, 4096, 4096, layout_named("")).simd_rows == 64);
    CHECK(find_tile(TensorType::TL1, 4096, 4096, layout_named("preset")).simd_rows == 32);
    CHECK(find_tile(TensorType::TL1, 3200, 3200, layout_named("preset")).row_block == 320);
}

TEST(n9_bytes_of_one_block) {
    // Row 0: columns 4f+b for f = 0..3, b = 0: +1, -1, 0, +1 -> byte 0 = (3*2 + 0) | (3*1 + 2) << 4 = 0x56
    std::vector<int8_t> codes(16, 0);
    codes[0] = 1, codes[4] = -1, codes[8] = 0, codes[12] = 1;
    codes[3] = -1, codes[7] = -1, codes[11] = -1, codes[15] = -1;  // byte 3 = 0x00
    std::vector<uint8_t> panel(kPanelBlockBytes, 0xff);
    pack_n9_panel(codes.data(), 1, 16, panel.data());
    CHECK(panel[0] == 0x56 && panel[1] == 0x44 && panel[2] == 0x44 && panel[3] == 0x00);
    for (size_t i = 4; i < panel.size(); i++) CHECK(panel[i] == 0x44);  // missing rows are zero
}

TEST(n9_round_trip) {
    CHECK(n9_bytes(1, 1) == 128 && n9_bytes(32, 16) == 128 && n9_bytes(33, 17) == 512);
    CHECK(n9_bytes(128256, 8640) == size_t{4008} * 540 * 128);
    const int32_t shapes[][2] = {{1, 1},    {1, 16},   {31, 15},  {32, 16}, {33, 17},
                                 {64, 128}, {70, 100}, {96, 333}, {5, 1000}};
    for (const auto& shape : shapes) {
        const int32_t rows = shape[0], cols = shape[1];
        const size_t n = static_cast<size_t>(rows) * cols;
        const std::vector<int8_t> codes = random_codes(n, static_cast<uint32_t>(rows + cols));
        TernaryWeights w;
        w.rows = rows;
        w.cols = cols;
        w.n_panels = (rows + kPanelRows - 1) / kPanelRows;
        w.k_blocks = (cols + kBlockCols - 1) / kBlockCols;
        std::vector<uint8_t> packed(n9_bytes(rows, cols), 0xff);
        for (int32_t p = 0; p < w.n_panels; p++) {
            const int32_t n_rows = std::min(kPanelRows, rows - p * kPanelRows);
            pack_n9_panel(codes.data() + static_cast<size_t>(p) * kPanelRows * cols, n_rows, cols,
                          packed.data() + static_cast<size_t>(p) * w.k_blocks * kPanelBlockBytes);
        }
        w.panels = packed.data();
        std::vector<int8_t> out(static_cast<size_t>(cols));
        for (int32_t row = 0; row < rows; row++) {
            unpack_n9_row(w, row, out.data());
            CHECK(std::equal(out.begin(), out.end(), codes.begin() + static_cast<std::ptrdiff_t>(row) * cols));
        }
        // Every byte against the definition in ternary.h, padding included.
        for (int32_t row = 0; row < w.n_panels * kPanelRows; row++) {
            for (int32_t col = 0; col < w.k_blocks * kBlockCols; col += kBlockCols) {
                for (int32_t b = 0; b < 4; b++) {
                    int c[4];
                    for (int32_t f = 0; f < 4; f++) {
                        const int32_t k = col + 4 * f + b;
                        c[f] = 1 + (row < rows && k < cols ? codes[static_cast<size_t>(row) * cols + k] : 0);
                    }
                    const size_t at = ((static_cast<size_t>(row / 32) * w.k_blocks + col / 16) * 32 + row % 32) * 4 + b;
                    CHECK(packed[at] == ((3 * c[0] + c[1]) | (3 * c[2] + c[3]) << 4));
                }
            }
        }
    }
}

TEST(dense_rows_survive_encoding) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    for (const float size : {1.0f, 1e-3f, 1e4f, 1e-30f, 0.0f}) {
        std::vector<float> row(512), decoded(512);
        for (float& value : row) value = size * normal(random);
        row[300] = 0;
        const auto error = [&](TensorType type) {
            std::vector<uint8_t> bytes(row_bytes(type, row.size()) + 8, 0x5a);
            encode_row(type, row.data(), row.size(), bytes.data());
            for (size_t i = bytes.size() - 8; i < bytes.size(); i++) CHECK(bytes[i] == 0x5a);
            decode_row(type, bytes.data(), row.size(), decoded.data());
            float worst = 0;
            for (size_t i = 0; i < row.size(); i++) worst = std::max(worst, std::fabs(decoded[i] - row[i]));
            return worst;
        };
        const float largest = std::fabs(*std::max_element(row.begin(), row.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
        CHECK(error(TensorType::F32) == 0);
        CHECK(error(TensorType::F16) <= largest / 2048 + 6e-8f);
        // Half a step of the largest block; where f16 cannot hold its scale, the block is zero.
        CHECK(error(TensorType::Q8_0) <= largest / 200 + 6e-8f * 127);
        CHECK(error(TensorType::Q4_0) <= largest / 7 + 6e-8f * 8);
        CHECK(error(TensorType::Q6_K) <= largest / 16 + 6e-8f * 4096);
    }
    std::vector<uint8_t> bytes(64);
    const float one = 1;
    CHECK_THROWS(encode_row(TensorType::I2_S, &one, 1, bytes.data()), std::logic_error, "no encoder for I2_S");
}
