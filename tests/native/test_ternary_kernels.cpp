// Ternary kernels: the scalar ones against a naive 64-bit dot product, those of the instruction sets of this machine
// bit by bit against the scalar ones, over awkward shapes and the activations that would overflow an int16.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "platform/cpu_features.h"
#include "platform/memory.h"
#include "quant/ternary.h"

using namespace bitnet;

namespace {

struct Random {  // xorshift64*
    uint64_t state;
    uint32_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return uint32_t(state * 2685821657736338717ull >> 32);
    }
};

enum class Codes { kRandom, kAllPlus, kAllMinus };
enum class Values { kRandom, kSmall, kAllMax, kAllMin, kExtremes };

constexpr Codes kCodes[] = {Codes::kRandom, Codes::kAllPlus, Codes::kAllMinus};
constexpr Values kValues[] = {Values::kRandom, Values::kSmall, Values::kAllMax, Values::kAllMin, Values::kExtremes};

struct Matrix {
    std::vector<int8_t> codes;  // [rows][cols]
    PageBuffer panels;
    TernaryWeights view;
};

Matrix make_matrix(int rows, int cols, Codes kind, Random& random) {
    Matrix m;
    m.codes.resize(size_t(rows) * size_t(cols));
    for (int8_t& code : m.codes)
        code = kind == Codes::kRandom    ? int8_t(int(random.next() % 3) - 1)
               : kind == Codes::kAllPlus ? int8_t(1)
                                         : int8_t(-1);
    m.view.rows = rows;
    m.view.cols = cols;
    m.view.n_panels = (rows + kPanelRows - 1) / kPanelRows;
    m.view.k_blocks = (cols + kBlockCols - 1) / kBlockCols;
    m.view.scale = 0.37f;
    m.panels = PageBuffer(n9_bytes(rows, cols));
    m.view.panels = m.panels.data();
    const size_t panel_bytes = size_t(m.view.k_blocks) * kPanelBlockBytes;
    for (int p = 0; p < m.view.n_panels; ++p) {
        const int row = p * kPanelRows;
        pack_n9_panel(&m.codes[size_t(row) * size_t(cols)], std::min(kPanelRows, rows - row), cols,
                      m.panels.data() + size_t(p) * panel_bytes);
    }
    return m;
}

struct Activations {
    PageBuffer values;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    QuantizedRows view;
};

Activations make_activations(int n_tokens, int cols, Values kind, Random& random) {
    Activations a;
    const size_t stride = size_t(cols + 63) / 64 * 64;
    a.values = PageBuffer(stride * size_t(n_tokens));
    for (int t = 0; t < n_tokens; ++t) {
        int32_t sum = 0;
        for (int k = 0; k < cols; ++k) {
            const uint32_t r = random.next();
            int value = 0;
            switch (kind) {
                case Values::kRandom: value = int(r >> 24) - 128; break;
                case Values::kSmall: value = int(r >> 28) - 8; break;
                case Values::kAllMax: value = 127; break;
                case Values::kAllMin: value = -128; break;
                case Values::kExtremes: value = r >> 31 ? 127 : -128; break;
            }
            a.values.as<int8_t>()[size_t(t) * stride + size_t(k)] = int8_t(value);
            sum += value;
        }
        a.sums.push_back(sum);
        a.scales.push_back(0.001f + float(random.next() >> 8) * 1e-9f);
    }
    a.view = {a.values.as<int8_t>(), stride, a.scales.data(), a.sums.data()};
    return a;
}

constexpr float kUntouched = -12345.5f;

// y [n_tokens][y_stride], everything a kernel must not write still kUntouched.
struct Output {
    explicit Output(int n_tokens, const TernaryWeights& w)
        : stride(size_t(w.rows) + 3), y(stride * size_t(n_tokens) + 8, kUntouched) {}
    bool same_bits(const Output& other) const {
        return std::memcmp(y.data(), other.y.data(), y.size() * sizeof(float)) == 0;
    }
    size_t stride;
    std::vector<float> y;
};

// The specification, written as plainly as possible.
Output expected(const Matrix& m, const Activations& a, int first, int n, int n_tokens, int panel_begin, int panel_end) {
    Output out(n_tokens, m.view);
    for (int t = first; t < first + n; ++t)
        for (int row = panel_begin * kPanelRows; row < std::min(m.view.rows, panel_end * kPanelRows); ++row) {
            int64_t dot = 0;
            for (int k = 0; k < m.view.cols; ++k)
                dot += int64_t(m.codes[size_t(row) * size_t(m.view.cols) + size_t(k)]) *
                       a.view.values[size_t(t) * a.view.stride + size_t(k)];
            out.y[size_t(t) * out.stride + size_t(row)] = float(int32_t(dot)) * (m.view.scale * a.scales[size_t(t)]);
        }
    return out;
}

Output run_direct(const Kernels& k, const Matrix& m, const Activations& a, int n_tokens, int panel_begin,
                  int panel_end) {
    Output out(n_tokens, m.view);
    k.ternary_direct(m.view, panel_begin, panel_end, a.view, n_tokens, out.y.data(), out.stride);
    return out;
}

// One tile with garbage behind it, over dirty scratch of exactly the promised size.
Output run_table(const Kernels& k, const Matrix& m, const Activations& a, int first, int n, int n_tokens,
                 int panel_begin, int panel_end, int min_tokens = 12) {
    Output out(n_tokens, m.view);
    const size_t tile_bytes = size_t(m.view.k_blocks) * kBlockCols * kTableTokens * sizeof(int16_t);
    PageBuffer tile(tile_bytes + 1024);
    std::memset(tile.data() + tile_bytes, 0x11, 1024);
    k.table_tile(a.view, first, n, m.view.k_blocks, tile.as<int16_t>());
    const size_t bytes = k.table_scratch_bytes(panel_end - panel_begin);
    PageBuffer scratch(bytes + 64);
    std::memset(scratch.data(), 0x5a, bytes + 64);
    k.ternary_table(m.view, panel_begin, panel_end, tile.as<int16_t>(), a.view, first, n, min_tokens, out.y.data(), out.stride,
                    scratch.data());
    for (size_t i = bytes; i < bytes + 64; ++i) CHECK(scratch.data()[i] == 0x5a);
    return out;
}

std::vector<const Kernels*> simd_kernels() {
    std::vector<const Kernels*> all;
    for (const Kernels* const* table = supported_kernels(); *table != &kScalarKernels; ++table) all.push_back(*table);
    return all;
}

struct Shape {
    int rows, cols;
};
// Whole panels and k-blocks; rows short of a panel, of 8, of everything; one and an odd number of k-blocks; many
// panels.
constexpr Shape kShapes[] = {{64, 256},  {32, 16},    {1, 1},     {7, 40},     {33, 130}, {45, 272},
                             {100, 500}, {160, 1000}, {96, 2560}, {2720, 144}, {40, 6912}};

}  // namespace

TEST(ternary_scalar_is_the_naive_dot) {
    Random random{1};
    for (const Shape shape : kShapes)
        for (const Values kind : kValues) {
            const Matrix m = make_matrix(shape.rows, shape.cols, Codes::kRandom, random);
            const Activations a = make_activations(5, shape.cols, kind, random);
            const int n_panels = m.view.n_panels, begin = n_panels / 3;
            CHECK(run_direct(kScalarKernels, m, a, 5, begin, n_panels)
                      .same_bits(expected(m, a, 0, 5, 5, begin, n_panels)));
            CHECK(run_table(kScalarKernels, m, a, 1, 3, 5, begin, n_panels)
                      .same_bits(expected(m, a, 1, 3, 5, begin, n_panels)));
        }
}

TEST(ternary_scalar_tile_holds_tokens_in_lanes) {
    Random random{2};
    const Activations a = make_activations(40, 100, Values::kRandom, random);
    std::vector<int16_t> tile(112 * kTableTokens, 99);
    kScalarKernels.table_tile(a.view, 7, 20, 7, tile.data());
    for (int k = 0; k < 112; ++k)
        for (int t = 0; t < kTableTokens; ++t)
            CHECK(tile[size_t(k * kTableTokens + t)] ==
                  (t < 20 && k < 100 ? a.view.values[size_t(7 + t) * a.view.stride + size_t(k)] : 0));
}

TEST(ternary_simd_equals_scalar_for_every_token_count) {
    Random random{3};
    for (const Kernels* simd : simd_kernels())
        for (const Shape shape : {Shape{45, 272}, Shape{70, 600}}) {
            const Matrix m = make_matrix(shape.rows, shape.cols, Codes::kRandom, random);
            const Activations a = make_activations(73, shape.cols, Values::kRandom, random);
            const int n_panels = m.view.n_panels;
            for (int n = 1; n <= 73; n = n < 44 ? n + 1 : n + 29)
                CHECK(run_direct(*simd, m, a, n, 0, n_panels)
                          .same_bits(run_direct(kScalarKernels, m, a, n, 0, n_panels)));
            for (int n = 1; n <= kTableTokens; ++n)
                for (const int first : {0, 1, 41})
                    CHECK(run_table(*simd, m, a, first, n, 73, 0, n_panels)
                              .same_bits(run_table(kScalarKernels, m, a, first, n, 73, 0, n_panels)));
        }
}

TEST(ternary_table_is_exact_wherever_it_begins_to_look_up) {
    Random random{31};
    const Matrix m = make_matrix(75, 200, Codes::kRandom, random);
    const Activations a = make_activations(32, 200, Values::kRandom, random);
    for (const Kernels* simd : simd_kernels())
        for (const int min_tokens : {1, 2, 16, 17, 32, 1000})
            for (int n = 1; n <= kTableTokens; ++n)
                CHECK(run_table(*simd, m, a, 0, n, 32, 0, m.view.n_panels, min_tokens)
                          .same_bits(run_table(kScalarKernels, m, a, 0, n, 32, 0, m.view.n_panels)));
}

TEST(ternary_simd_equals_scalar_for_every_shape) {
    Random random{4};
    for (const Kernels* simd : simd_kernels())
        for (const Shape shape : kShapes)
            for (const Codes codes : kCodes) {
                const Matrix m = make_matrix(shape.rows, shape.cols, codes, random);
                const int n_panels = m.view.n_panels;
                for (const Values kind : kValues) {
                    const Activations a = make_activations(33, shape.cols, kind, random);
                    for (const int n : {1, 2, 3, 4, 5, 6, 7, 11})
                        CHECK(run_direct(*simd, m, a, n, 0, n_panels)
                                  .same_bits(run_direct(kScalarKernels, m, a, n, 0, n_panels)));
                    for (const int n : {2, 13, 16, 21, 32})
                        CHECK(run_table(*simd, m, a, 1, n, 33, 0, n_panels)
                                  .same_bits(run_table(kScalarKernels, m, a, 1, n, 33, 0, n_panels)));
                }
            }
}

TEST(ternary_simd_writes_only_its_panels) {
    Random random{5};
    for (const Kernels* simd : simd_kernels()) {
        const Matrix m = make_matrix(6 * 32 - 5, 320, Codes::kRandom, random);
        const Activations a = make_activations(31, 320, Values::kRandom, random);
        for (int begin = 0; begin <= 6; ++begin)
            for (int end = begin; end <= 6; ++end) {
                for (const int n : {1, 2, 9})
                    CHECK(run_direct(*simd, m, a, n, begin, end)
                              .same_bits(run_direct(kScalarKernels, m, a, n, begin, end)));
                for (const int n : {9, 13, 23, 30})
                    CHECK(run_table(*simd, m, a, 1, n, 31, begin, end)
                              .same_bits(run_table(kScalarKernels, m, a, 1, n, 31, begin, end)));
            }
    }
}

// Down projections of large models: the int16 sums of the table kernel are emptied more than a hundred times.
TEST(ternary_simd_is_exact_for_long_rows) {
    Random random{6};
    for (const Kernels* simd : simd_kernels())
        for (const int cols : {14336, 27648, 131072})
            for (const Codes codes : kCodes) {
                const Matrix m = make_matrix(37, cols, codes, random);
                for (const Values kind : kValues) {
                    const Activations a = make_activations(29, cols, kind, random);
                    CHECK(run_direct(*simd, m, a, 4, 1, 2).same_bits(expected(m, a, 0, 4, 4, 1, 2)));
                    CHECK(run_table(*simd, m, a, 0, 13, 29, 1, 2).same_bits(expected(m, a, 0, 13, 29, 1, 2)));
                    for (const int n : {1, 2, 5})
                        CHECK(run_direct(*simd, m, a, n, 0, 2).same_bits(run_direct(kScalarKernels, m, a, n, 0, 2)));
                    CHECK(run_table(*simd, m, a, 0, 29, 29, 0, 2)
                              .same_bits(run_table(kScalarKernels, m, a, 0, 29, 29, 0, 2)));
                }
            }
}

// One token at the bound of the int16 sums, all others at zero: the bound is kept per token.
TEST(ternary_table_bound_is_kept_per_token) {
    Random random{7};
    for (const Kernels* simd : simd_kernels())
        for (const Codes codes : {Codes::kAllPlus, Codes::kAllMinus})
            for (int token = 0; token < kTableTokens; ++token) {
                const Matrix m = make_matrix(8, 2048, codes, random);
                Activations a = make_activations(kTableTokens, 2048, Values::kSmall, random);
                std::memset(a.values.data() + size_t(token) * a.view.stride, 0x80, 2048);
                for (const int n : {16, 32})
                    CHECK(run_table(*simd, m, a, 0, n, 32, 0, 1)
                              .same_bits(run_table(kScalarKernels, m, a, 0, n, 32, 0, 1)));
            }
}

TEST(ternary_simd_tile_equals_scalar) {
    Random random{8};
    const Activations a = make_activations(50, 200, Values::kRandom, random);
    for (const Kernels* simd : simd_kernels())
        for (const int first : {0, 9, 18})
            for (int n = 1; n <= kTableTokens; ++n) {
                PageBuffer want(13 * kBlockCols * kTableTokens * 2), got(13 * kBlockCols * kTableTokens * 2);
                kScalarKernels.table_tile(a.view, first, n, 13, want.as<int16_t>());
                simd->table_tile(a.view, first, n, 13, got.as<int16_t>());
                CHECK(std::memcmp(want.data(), got.data(), want.size()) == 0);
            }
}

TEST(kernels_are_selected_by_name) {
    CHECK(select_kernels("scalar") == &kScalarKernels);
    CHECK(select_kernels("neon512") == nullptr);
    CHECK(select_kernels() != nullptr);
    const CpuFeatures cpu = cpu_features();
    const bool avx2 = cpu.avx2 && cpu.fma && cpu.f16c;
    CHECK((select_kernels("avx2") != nullptr) == avx2);
    CHECK((select_kernels("avx512vnni") != nullptr) == (avx2 && cpu.avx512_vnni));
    CHECK(select_kernels("") == *supported_kernels());
    CHECK(std::string_view(select_kernels()->name) ==
          (avx2 && cpu.avx512_vnni ? "avx512vnni" : avx2 ? "avx2" : "scalar"));
    const Kernels* const* table = supported_kernels();
    for (; *table; ++table) CHECK(select_kernels((*table)->name) == *table);
    CHECK(table[-1] == &kScalarKernels);
    CHECK(physical_cores() >= 1);
}
