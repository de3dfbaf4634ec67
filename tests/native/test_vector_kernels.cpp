// Kernels on float rows, KV blocks and the output head: the scalar ones against definitions in double precision, those
// of the instruction sets of this machine bit by bit against the scalar ones, and attention independent of what is
// computed beside a query.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/vector.h"
#include "kernel_cases.h"
#include "quant/dense.h"

using namespace bitnet;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kDenormal = 1e-42f;
constexpr float kHuge = 3e38f;

std::vector<int> lengths() {
    std::vector<int> n;
    for (int i = 1; i <= 300; ++i) n.push_back(i);
    n.insert(n.end(), {640, 2560, 6912, 27648});
    return n;
}

// Rows of length n that try the corners: finite unless `wild`.
std::vector<std::vector<float>> rows_of(int n, bool wild) {
    const size_t size = static_cast<size_t>(n);
    std::vector<std::vector<float>> rows = {normal(size), normal(size, 1e-7f), normal(size, 1e6f),
                                            std::vector<float>(size, 0.0f), std::vector<float>(size, -0.0f),
                                            std::vector<float>(size, kDenormal)};
    std::vector<float> specials = {0.0f, -0.0f, kDenormal, -kDenormal, 1e-38f, -1e-20f,
                                   1.0f, -1.0f, 1e4f,      -88.0f,     89.0f};
    if (wild) specials.insert(specials.end(), {kHuge, -kHuge, kInf, -kInf, kNan});
    for (int repeat = 0; repeat < 3; ++repeat) {
        std::vector<float> row = normal(size, 20);
        for (int i = 0; i < 4; ++i)
            row[static_cast<size_t>(uniform(0, n - 1))] =
                specials[static_cast<size_t>(uniform(0, static_cast<int>(specials.size()) - 1))];
        rows.push_back(row);
    }
    return rows;
}

struct Quantized {
    std::vector<int8_t> values;
    float scale;
    int32_t sum;
};

Quantized quantize(const Kernels& k, const std::vector<float>& x) {
    Quantized q{std::vector<int8_t>((x.size() + 63) / 64 * 64 + 64, 99), 0, 0};
    k.quantize_row(x.data(), static_cast<int>(x.size()), q.values.size(), q.values.data(), &q.scale, &q.sum);
    return q;
}

}  // namespace

TEST(vector_exp_is_accurate) {
    double worst = 0;
    for (float x = kExpLow; x <= kExpHigh; x += 1.0f / 4096) {
        const double exact = std::exp(static_cast<double>(x));
        worst = std::max(worst, std::abs(scalar::exp(x) - exact) / exact);
    }
    for (float x = 1; x > 1e-40f; x *= 0.999f)
        for (float signed_x : {x, -x})
            worst = std::max(worst, std::abs(scalar::exp(signed_x) / std::exp(static_cast<double>(signed_x)) - 1));
    CHECK(worst < 1.2e-7);
    if (worst >= 1.2e-7) std::printf("exp: relative error %g\n", worst);
    CHECK(scalar::exp(0) == 1);
    CHECK(scalar::exp(-0.0f) == 1);
    CHECK(scalar::exp(kExpLow) >= std::numeric_limits<float>::min());
    for (float x : {-87.31f, -100.0f, -kHuge, -kInf}) CHECK(same_bits(scalar::exp(x), 0.0f));
    for (float x : {88.4f, 100.0f, kHuge, kInf}) CHECK(same_bits(scalar::exp(x), scalar::exp(kExpHigh)));
    CHECK(std::isfinite(scalar::exp(kExpHigh)));
    CHECK(std::isnan(scalar::exp(kNan)));
}

TEST(vector_exp_is_the_same_in_every_kernel) {
    // Seen through attention: q = 0 makes the new maximum 0, V = 0, so acc = 1 becomes exp(max - 0).
    const std::vector<float> q(8, 0.0f);
    const std::vector<uint16_t> zeros(8 * kKvBlock, 0);
    for (const Kernels& k : all_kernels())
        for (float x = 0; x > -90; x = x * 1.001f - 1e-3f) {
            const int visible = 1;
            float max = x, sum = 0;
            std::vector<float> acc(8, 1.0f);
            k.attention_block(q.data(), 8, 1, &visible, zeros.data(), zeros.data(), 8, 1, &max, &sum, acc.data());
            CHECK(same_bits(acc, std::vector<float>(8, scalar::exp(x))));
        }
}

TEST(vector_quantize_row_matches_its_definition) {
    for (const Kernels& k : all_kernels())
        for (int n : {1, 7, 64, 65, 300, 2560, 6912})
            for (const std::vector<float>& x : rows_of(n, false)) {
                const Quantized q = quantize(k, x);
                float abs_max = 1e-5f;
                for (float v : x) abs_max = std::max(abs_max, std::abs(v));
                const float s = 127.0f / abs_max;
                int32_t sum = 0;
                bool good = q.scale == abs_max / 127.0f;
                for (size_t i = 0; i < q.values.size(); ++i) {
                    const float expected = i < x.size() ? std::clamp(std::nearbyint(x[i] * s), -128.0f, 127.0f) : 0.0f;
                    good &= q.values[i] == expected;
                    sum += q.values[i];
                }
                CHECK(good);
                CHECK(q.sum == sum);
            }
}

TEST(vector_quantize_row_rounds_half_to_even) {
    for (const Kernels& k : all_kernels()) {
        // absmax 127 makes s = 1, so that halves are exact ties
        const Quantized q =
            quantize(k, {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -126.5f, 125.5f, -127, -0.0f});
        const std::vector<int8_t> expected = {127, 0, 2, 2, 0, -2, -2, 126, -126, 126, -127, 0};
        CHECK(std::equal(expected.begin(), expected.end(), q.values.begin()));
        CHECK(q.scale == 1);
        CHECK(q.sum == 126);
    }
}

TEST(vector_quantize_row_extremes) {
    for (const Kernels& k : all_kernels()) {
        const float max_float = std::numeric_limits<float>::max();
        Quantized q = quantize(k, {max_float, -max_float, 1, 0});
        CHECK(q.values[0] == 127 && q.values[1] == -127 && q.values[2] == 0 && q.sum == 0);
        q = quantize(k, {kDenormal, -kDenormal});
        CHECK(q.values[0] == 0 && q.values[1] == 0 && q.scale == 1e-5f / 127);
        q = quantize(k, {1e-5f, -1e-5f, 0.5e-5f});
        CHECK(q.values[0] == 127 && q.values[1] == -127);
        for (float bad : {kInf, -kInf, kNan, -kNan})
            for (size_t at : {size_t{0}, size_t{31}, size_t{66}}) {
                std::vector<float> x = normal(67);
                x[at] = bad;
                CHECK(std::isnan(quantize(k, x).scale));
            }
        for (int i = 0; i < 20000; ++i) {  // the largest element is 127 whatever its mantissa: the clamp never acts
            const float mantissa = 1 + static_cast<float>(uniform(0, (1 << 23) - 1)) / (1 << 23);
            const float a = std::ldexp(mantissa, uniform(-16, 126));
            q = quantize(k, {a, -a});
            CHECK(q.values[0] == 127 && q.values[1] == -127);
        }
    }
}

TEST(vector_rms_norm_matches_its_definition) {
    for (const Kernels& k : all_kernels())
        for (int n : {1, 31, 64, 100, 2560, 6912, 27648})
            for (float sigma : {1.0f, 1e-4f, 1e10f}) {
                const std::vector<float> x = normal(static_cast<size_t>(n), sigma), w = normal(static_cast<size_t>(n));
                std::vector<float> y(x.size());
                k.rms_norm(x.data(), w.data(), n, 1e-5f, y.data());
                double squares = 0, worst = 0;
                for (float v : x) squares += static_cast<double>(v) * v;
                for (size_t i = 0; i < x.size(); ++i) {
                    const double exact = x[i] / std::sqrt(squares / n + 1e-5f) * w[i];
                    worst = std::max(worst, std::abs(y[i] - exact) / std::abs(exact));
                }
                CHECK(worst < 1e-6);
                std::vector<float> in_place = x;
                k.rms_norm(in_place.data(), w.data(), n, 1e-5f, in_place.data());
                CHECK(same_bits(in_place, y));
            }
}

TEST(vector_rms_norm_does_not_hide_an_overflow) {
    for (const Kernels& k : all_kernels())
        for (float bad : {1e20f, kInf, kNan}) {
            std::vector<float> x(100, 1.0f), y(100);
            x[40] = bad;
            k.rms_norm(x.data(), x.data(), 100, 1e-5f, y.data());
            CHECK(std::isnan(y[0]) && std::isnan(y[99]));
        }
}

TEST(vector_activations_match_their_definitions) {
    for (const Kernels& k : all_kernels()) {
        const std::vector<float> gate = normal(5000, 10), up = normal(5000, 10);
        std::vector<float> relu2(gate.size()), silu(gate.size()), gelu(gate.size());
        k.relu2_mul(gate.data(), up.data(), 5000, relu2.data());
        k.silu_mul(gate.data(), up.data(), 5000, silu.data());
        k.gelu_mul(gate.data(), up.data(), 5000, gelu.data());
        double worst_relu2 = 0, worst_silu = 0, worst_gelu = 0;
        for (size_t i = 0; i < gate.size(); ++i) {
            const double g = gate[i], u = up[i];
            const double relu = std::max(g, 0.0), exact = g / (1 + std::exp(-g)) * u;
            worst_relu2 = std::max(worst_relu2, std::abs(relu2[i] - relu * relu * u) / (1e-30 + std::abs(g * g * u)));
            worst_silu = std::max(worst_silu, std::abs(silu[i] - exact) / std::abs(exact));
            const double by_tanh = 0.5 * g * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g))) * u;
            worst_gelu = std::max(worst_gelu, std::abs(gelu[i] - by_tanh) / (1e-30 + std::abs(g * u)));
        }
        CHECK(worst_relu2 < 1.5e-7);
        CHECK(worst_silu < 4e-7);
        CHECK(worst_gelu < 5e-7);

        std::vector<float> y(4), corners = {kNan, -0.0f, -1, 1e15f}, ones(4, 1.0f);
        k.relu2_mul(corners.data(), ones.data(), 4, y.data());
        CHECK(std::isnan(y[0]) && same_bits(y[1], 0) && same_bits(y[2], 0) && y[3] == 1e15f * 1e15f);
        corners = {kNan, 0, 200, -200};
        k.silu_mul(corners.data(), ones.data(), 4, y.data());
        CHECK(std::isnan(y[0]) && y[1] == 0 && y[2] == 200 && std::abs(y[3]) < 1e-35f);
        corners = {kNan, 0, 1e25f, -1e25f};  // the cube overflows
        k.gelu_mul(corners.data(), ones.data(), 4, y.data());
        CHECK(std::isnan(y[0]) && y[1] == 0 && y[2] == 1e25f && std::abs(y[3]) < 1e-10f);
        corners = {kNan, 0, 200, -200};
        k.add(corners.data(), 4, ones.data());
        CHECK(std::isnan(ones[0]) && ones[1] == 1 && ones[2] == 201 && ones[3] == -199);
    }
}

TEST(vector_rows_are_bit_identical_to_scalar) {
    const Kernels& scalar_kernels = all_kernels()[0];
    for (const Kernels& k : all_kernels())
        for (int n : lengths()) {
            const std::vector<std::vector<float>> rows = rows_of(n, true);
            for (size_t i = 0; i < rows.size(); ++i) {
                const std::vector<float>&a = rows[i], &b = rows[(i + 1) % rows.size()];
                for (auto function : {&Kernels::relu2_mul, &Kernels::silu_mul, &Kernels::gelu_mul}) {
                    std::vector<float> expected(a.size(), 7), y(a.size() + 1, 7);  // one more, to see a write beyond n
                    (scalar_kernels.*function)(a.data(), b.data(), n, expected.data());
                    expected.push_back(7);
                    (k.*function)(a.data(), b.data(), n, y.data());
                    CHECK(same_bits(y, expected));
                }
                std::vector<float> expected = b, y = b;
                expected.push_back(7), y.push_back(7);
                scalar_kernels.add(a.data(), n, expected.data());
                k.add(a.data(), n, y.data());
                CHECK(same_bits(y, expected));
                scalar_kernels.rms_norm(a.data(), b.data(), n, 1e-6f, expected.data());
                k.rms_norm(a.data(), b.data(), n, 1e-6f, y.data());
                CHECK(same_bits(y, expected));

                const Quantized q = quantize(k, a), q_expected = quantize(scalar_kernels, a);
                CHECK(same_bits(q.scale, q_expected.scale));
                CHECK(q.sum == q_expected.sum);
                CHECK(q.values == q_expected.values);
            }
        }
}

TEST(vector_dots_match_double_precision_and_each_other) {
    const Kernels& scalar_kernels = all_kernels()[0];
    for (const Kernels& k : all_kernels())
        for (int n : lengths()) {
            const size_t size = static_cast<size_t>(n);
            const std::vector<float> w = normal(size), x = normal(size);
            // weights at odd addresses
            std::vector<char> bytes_f32(4 * size + 1), bytes_f16(2 * size + 1), bytes_bf16(2 * size + 1);
            double exact[3] = {}, magnitude[3] = {};
            for (size_t i = 0; i < size; ++i) {
                uint32_t bits;
                std::memcpy(&bits, &w[i], 4);
                const uint16_t half = f32_to_f16(w[i]), bf16 = static_cast<uint16_t>(bits >> 16);
                std::memcpy(bytes_f32.data() + 1 + 4 * i, &w[i], 4);
                std::memcpy(bytes_f16.data() + 1 + 2 * i, &half, 2);
                std::memcpy(bytes_bf16.data() + 1 + 2 * i, &bf16, 2);
                const double products[3] = {double{w[i]} * x[i], double{f16_to_f32(half)} * x[i],
                                            double{bf16_to_f32(bf16)} * x[i]};
                for (int j = 0; j < 3; ++j) exact[j] += products[j], magnitude[j] += std::abs(products[j]);
            }
            const auto* f32 = reinterpret_cast<const float*>(bytes_f32.data() + 1);
            const auto* f16 = reinterpret_cast<const uint16_t*>(bytes_f16.data() + 1);
            const auto* bf16 = reinterpret_cast<const uint16_t*>(bytes_bf16.data() + 1);
            const float dots[3] = {k.dot_f32(f32, x.data(), n), k.dot_f16(f16, x.data(), n),
                                   k.dot_bf16(bf16, x.data(), n)};
            for (int j = 0; j < 3; ++j) CHECK(std::abs(dots[j] - exact[j]) <= 5e-7 * magnitude[j]);
            CHECK(same_bits(dots[0], scalar_kernels.dot_f32(f32, x.data(), n)));
            CHECK(same_bits(dots[1], scalar_kernels.dot_f16(f16, x.data(), n)));
            CHECK(same_bits(dots[2], scalar_kernels.dot_bf16(bf16, x.data(), n)));
            for (const std::vector<float>& row : rows_of(n, true))
                CHECK(same_bits(k.dot_f32(row.data(), x.data(), n), scalar_kernels.dot_f32(row.data(), x.data(), n)));
        }
}

TEST(vector_dot_f16_reads_every_bit_pattern) {
    std::vector<uint16_t> all(65536);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    const float one = 1;
    for (const Kernels& k : all_kernels())
        for (const uint16_t& half : all) {
            CHECK(same_bits(k.dot_f16(&half, &one, 1), f16_to_f32(half) + 0.0f));
            CHECK(same_bits(k.dot_bf16(&half, &one, 1), bf16_to_f32(half) + 0.0f));
        }
}

TEST(vector_rope_matches_its_definition) {
    const Kernels& scalar_kernels = all_kernels()[0];
    struct Shape {
        int n_heads, head_dim, n_rot;
    };
    const Shape shapes[] = {{20, 128, 128}, {5, 128, 64},  {3, 64, 20}, {1, 8, 2},
                            {4, 256, 256},  {2, 104, 96}, {2, 32, 0}};
    for (const Kernels& k : all_kernels())
        for (const Shape& s : shapes) {
            const std::vector<float> x = normal(static_cast<size_t>(s.n_heads * s.head_dim));
            std::vector<float> cosines, sines;
            for (int i = 0; i < s.n_rot / 2; ++i) {
                const double angle = 1234 * std::pow(500000.0, -2.0 * i / s.n_rot);
                cosines.push_back(static_cast<float>(std::cos(angle)));
                sines.push_back(static_cast<float>(std::sin(angle)));
            }
            std::vector<float> y = x, expected = x;
            k.rope_neox(y.data(), s.n_heads, s.head_dim, s.n_rot, cosines.data(), sines.data());
            scalar_kernels.rope_neox(expected.data(), s.n_heads, s.head_dim, s.n_rot, cosines.data(), sines.data());
            CHECK(same_bits(y, expected));
            for (int h = 0; h < s.n_heads; ++h)
                for (int i = 0; i < s.head_dim; ++i) {
                    const size_t at = static_cast<size_t>(h * s.head_dim + i), half = static_cast<size_t>(s.n_rot / 2);
                    const size_t pair = half == 0 ? 0 : static_cast<size_t>(i) % half;
                    if (i >= s.n_rot) {
                        CHECK(y[at] == x[at]);
                    } else {
                        const double c = cosines[pair], sn = sines[pair];
                        const double exact =
                            i < s.n_rot / 2 ? x[at] * c - x[at + half] * sn : x[at - half] * sn + x[at] * c;
                        CHECK(std::abs(y[at] - exact) < 1e-6);
                    }
                }
        }
}

TEST(vector_kv_write_rounds_like_f32_to_f16) {
    const std::vector<float> corners = {0.0f, -0.0f, 65504, 65519.99f, 65520, -70000, kInf,
                                        -kInf, 6.1e-5f, 5.96e-8f, 2.9e-8f, 2.98e-8f, 1e-30f, 1.0004883f,
                                        1.0014648f, 2049, 2051, 0.1f, kDenormal, kHuge};
    for (const Kernels& k : all_kernels())
        for (int head_dim : {8, 64, 104, 128, 256})
            for (int slot : {0, 1, 17, 31}) {
                const size_t dims = static_cast<size_t>(head_dim);
                std::vector<float> keys = normal(dims, 100), values = normal(dims, 1e-5f);
                for (size_t i = 0; i < corners.size(); ++i) keys[i * 7 % dims] = values[i * 5 % dims] = corners[i];
                std::vector<uint16_t> k_block(dims * kKvBlock, 0x1234), v_block(dims * kKvBlock, 0x1234);
                k.kv_write(keys.data(), values.data(), head_dim, slot, k_block.data(), v_block.data());
                bool good = true;
                for (int p = 0; p < kKvBlock; ++p)
                    for (size_t d = 0; d < dims; ++d) {
                        const size_t position = static_cast<size_t>(p);
                        good &= k_block[d * kKvBlock + position] == (p == slot ? f32_to_f16(keys[d]) : 0x1234);
                        good &= v_block[position * dims + d] == (p == slot ? f32_to_f16(values[d]) : 0x1234);
                    }
                CHECK(good);
            }
}

namespace {

// Queries over a few KV blocks, with what each query may see of each block.
struct Attention {
    int n_queries, head_dim, n_blocks;
    float scale;
    std::vector<float> q;                                 // [n_queries][q_stride]
    std::vector<std::vector<uint16_t>> k_blocks, v_blocks;  // per block, filled by kv_write up to the largest visible
    std::vector<std::vector<int>> visible;                // [n_blocks][n_queries]

    size_t q_stride() const { return static_cast<size_t>(head_dim) + 24; }
};

struct AttentionState {
    std::vector<float> max, sum, acc;
};

// `see(block, query)` gives visible. Slots nobody sees hold NaN.
template <typename See>
Attention make_attention(int n_queries, int head_dim, int n_blocks, float sigma, See see) {
    const size_t dims = static_cast<size_t>(head_dim);
    Attention a{n_queries, head_dim, n_blocks, 1 / std::sqrt(static_cast<float>(head_dim)), {}, {}, {}, {}};
    a.q = normal(a.q_stride() * static_cast<size_t>(n_queries), sigma);
    for (int b = 0; b < n_blocks; ++b) {
        std::vector<int> visible;
        for (int i = 0; i < n_queries; ++i) visible.push_back(see(b, i));
        std::vector<uint16_t> k_block(dims * kKvBlock), v_block(dims * kKvBlock);
        for (size_t i = 0; i < k_block.size(); ++i) {
            k_block[i] = i % 3 == 0 ? 0x7e00 : i % 3 == 1 ? 0x7c00 : 0xfc01;  // NaN, infinity, signalling NaN
            v_block[i] = i % 2 == 0 ? 0xfe55 : 0xfc00;
        }
        const int filled = *std::max_element(visible.begin(), visible.end());
        for (int p = 0; p < filled; ++p)
            scalar::kv_write(normal(dims).data(), normal(dims).data(), head_dim, p, k_block.data(), v_block.data());
        a.visible.push_back(visible), a.k_blocks.push_back(k_block), a.v_blocks.push_back(v_block);
    }
    return a;
}

// All blocks for the queries [first, first + n), in calls of up to `at_once` queries.
AttentionState attend(const Kernels& k, const Attention& a, int first, int n, int at_once) {
    const size_t dims = static_cast<size_t>(a.head_dim), count = static_cast<size_t>(n);
    AttentionState s{std::vector<float>(count, -kInf), std::vector<float>(count), std::vector<float>(count * dims)};
    for (size_t b = 0; b < a.visible.size(); ++b)
        for (int i = 0; i < n; i += at_once) {
            const size_t query = static_cast<size_t>(first + i), out = static_cast<size_t>(i);
            k.attention_block(a.q.data() + query * a.q_stride(), a.q_stride(), std::min(at_once, n - i),
                              &a.visible[b][query], a.k_blocks[b].data(), a.v_blocks[b].data(), a.head_dim, a.scale,
                              &s.max[out], &s.sum[out], s.acc.data() + out * dims);
        }
    return s;
}

using bitnet::same_bits;  // beside the one for a state

bool same_bits(const AttentionState& a, const AttentionState& b) {
    return same_bits(a.max, b.max) && same_bits(a.sum, b.sum) && same_bits(a.acc, b.acc);
}

// Softmax over everything query i sees, in double; the largest difference to acc / sum.
double attention_error(const Attention& a, const AttentionState& s, int i) {
    const size_t dims = static_cast<size_t>(a.head_dim), query = static_cast<size_t>(i);
    std::vector<double> scores, out(dims);
    for (size_t b = 0; b < a.visible.size(); ++b)
        for (size_t p = 0; p < static_cast<size_t>(a.visible[b][query]); ++p) {
            double dot = 0;
            for (size_t d = 0; d < dims; ++d)
                dot += double{a.q[query * a.q_stride() + d]} * f16_to_f32(a.k_blocks[b][d * kKvBlock + p]);
            scores.push_back(dot * a.scale);
        }
    if (scores.empty()) return s.max[query] == -kInf && s.sum[query] == 0 ? 0 : kInf;
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    size_t seen = 0;
    for (size_t b = 0; b < a.visible.size(); ++b)
        for (size_t p = 0; p < static_cast<size_t>(a.visible[b][query]); ++p) {
            const double weight = std::exp(scores[seen++] - max);
            sum += weight;
            for (size_t d = 0; d < dims; ++d) out[d] += weight * f16_to_f32(a.v_blocks[b][p * dims + d]);
        }
    double worst = 0;
    for (size_t d = 0; d < dims; ++d)
        worst = std::max(worst, std::abs(out[d] / sum - s.acc[query * dims + d] / s.sum[query]));
    return worst;
}

}  // namespace

TEST(vector_attention_is_a_softmax_and_independent_of_batching) {
    const Kernels& scalar_kernels = all_kernels()[0];
    const auto random_visible = [](int, int) { return uniform(0, kKvBlock); };
    const auto decode = [](int block, int) { return block < 3 ? kKvBlock : 13; };
    const auto causal = [](int block, int query) { return std::clamp(query / 4 + 10 - block * kKvBlock, 0, kKvBlock); };
    for (int head_dim : {8, 64, 96, 104, 128, 256})
        for (int n_queries : {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 67, 130}) {
            const std::vector<Attention> cases = {make_attention(n_queries, head_dim, 3, 1, random_visible),
                                                  make_attention(n_queries, head_dim, 4, 1, decode),
                                                  make_attention(n_queries, head_dim, 2, 1, causal)};
            for (const Attention& a : cases) {
                const AttentionState expected = attend(scalar_kernels, a, 0, n_queries, n_queries);
                for (int i = 0; i < n_queries; ++i) CHECK(attention_error(a, expected, i) < 2e-6);
                for (const Kernels& k : all_kernels())
                    for (int at_once : {n_queries, 1, 2, 3, 5, 6, 11, 65})
                        CHECK(same_bits(attend(k, a, 0, n_queries, at_once), expected));
            }
        }
}

TEST(vector_attention_handles_sharp_and_shifted_scores) {
    const auto all = [](int, int) { return kKvBlock; };
    for (const Kernels& k : all_kernels())
        for (float sigma : {0.0f, 30.0f, 3000.0f}) {
            const Attention a = make_attention(9, 128, 5, sigma, all);
            const AttentionState s = attend(k, a, 0, 9, 9);
            // a score carries the rounding of its own size, and exp turns that into a relative error
            for (int i = 0; i < 9; ++i) CHECK(attention_error(a, s, i) < 1e-6 * (2 + 3 * double{sigma}));
        }
}

TEST(vector_attention_leaves_blind_queries_untouched) {
    const auto every_third = [](int, int query) { return query % 3 == 0 ? 0 : 32; };
    const auto none = [](int, int) { return 0; };
    for (const Kernels& k : all_kernels())
        for (int n_queries : {3, 20}) {
            const std::vector<Attention> cases = {make_attention(n_queries, 64, 2, 1, every_third),
                                                  make_attention(n_queries, 64, 2, 1, none)};
            for (const Attention& a : cases) {
                const AttentionState s = attend(k, a, 0, n_queries, n_queries);
                for (size_t i = 0; i < static_cast<size_t>(n_queries); ++i)
                    if (a.visible[0][i] == 0) {
                        CHECK(same_bits(s.max[i], -kInf) && same_bits(s.sum[i], 0));
                        for (size_t d = 0; d < 64; ++d) CHECK(same_bits(s.acc[i * 64 + d], 0));
                    } else {
                        CHECK(std::isfinite(s.sum[i]) && s.sum[i] >= 1);
                    }
            }
        }
}

TEST(vector_attention_of_one_query_ignores_what_only_others_see) {
    // Query 0 sees 5 positions; position 9, which query 1 sees, is spoilt: query 0 must not notice, query 1 must.
    for (const Kernels& k : all_kernels())
        for (int n_queries : {2, 12}) {
            const auto see = [](int, int query) { return query % 2 == 0 ? 5 : 20; };
            Attention a = make_attention(n_queries, 64, 1, 1, see);
            const AttentionState before = attend(k, a, 0, n_queries, n_queries);
            for (size_t d = 0; d < 64; ++d) {
                a.k_blocks[0][d * kKvBlock + 9] = 0x7c00;
                a.v_blocks[0][9 * 64 + d] = 0x7e00;
            }
            const AttentionState after = attend(k, a, 0, n_queries, n_queries);
            for (size_t i = 0; i < static_cast<size_t>(n_queries); ++i)
                for (size_t d = 0; d < 64; ++d) {
                    if (i % 2 == 0) CHECK(same_bits(before.acc[i * 64 + d], after.acc[i * 64 + d]));
                    if (i % 2 == 1) CHECK(std::isnan(after.acc[i * 64 + d]));
                }
        }
}

TEST(vector_attention_does_not_hide_a_nan) {
    // From the query or from a score that overflows: the sum must show it, so that the caller can refuse.
    for (const Kernels& k : all_kernels())
        for (int n_queries : {1, 9}) {
            const auto all = [](int, int) { return kKvBlock; };
            Attention a = make_attention(n_queries, 64, 2, 1, all);
            a.q[5] = kNan;
            AttentionState s = attend(k, a, 0, n_queries, n_queries);
            CHECK(std::isnan(s.sum[0]) && std::isnan(s.acc[0]) && std::isnan(s.acc[63]));
            if (n_queries > 1) CHECK(std::isfinite(s.sum[1]));
            a.q[5] = 1;
            a.k_blocks[1][5 * kKvBlock + 7] = 0x7c00;
            s = attend(k, a, 0, n_queries, n_queries);
            CHECK(std::isnan(s.sum[0]) && std::isnan(s.acc[0]));
        }
}

TEST(vector_head_rows_is_exact) {
    for (const Kernels& k : all_kernels())
        for (size_t stride : {size_t{64}, size_t{128}, size_t{640}, size_t{2560}})
            for (int n_tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 21})
                for (int extreme : {0, 1}) {
                    const size_t n_rows = 21, tokens = static_cast<size_t>(n_tokens), x_stride = stride + 64;
                    const auto fill = [&](std::vector<int8_t>& v) {
                        for (int8_t& b : v)
                            b = static_cast<int8_t>(extreme ? (uniform(0, 1) ? 127 : -127) : uniform(-127, 127));
                    };
                    std::vector<int8_t> rows(n_rows * stride), values(tokens * x_stride);
                    fill(rows), fill(values);
                    if (extreme) std::fill(rows.begin(), rows.begin() + static_cast<long>(stride), int8_t{127});
                    if (extreme) std::fill(values.begin(), values.begin() + static_cast<long>(stride), int8_t{127});
                    const std::vector<float> row_scales = normal(n_rows), scales = normal(tokens);
                    const QuantizedRows x{values.data(), x_stride, scales.data(), nullptr};
                    const size_t scores_stride = n_rows + 3;
                    std::vector<float> scores(tokens * scores_stride, 7), expected = scores;
                    for (size_t t = 0; t < tokens; ++t)
                        for (size_t r = 2; r < 20; ++r) {
                            int64_t dot = 0;
                            for (size_t i = 0; i < stride; ++i) dot += rows[r * stride + i] * values[t * x_stride + i];
                            expected[t * scores_stride + r] = static_cast<float>(dot) * (row_scales[r] * scales[t]);
                        }
                    k.head_rows(rows.data(), stride, row_scales.data(), 2, 20, x, n_tokens, scores.data(),
                                scores_stride);
                    CHECK(same_bits(scores, expected));
                    k.head_rows(rows.data(), stride, row_scales.data(), 0, 1, x, 1, scores.data(), scores_stride);
                    const float largest = static_cast<float>(stride * 127 * 127) * (row_scales[0] * scales[0]);
                    if (extreme) CHECK(scores[0] == largest);
                }
}
