// Keys and values in 8 bits: what is written against its definition, attention over it against softmax in double
// precision, of the stored numbers and of those before they were rounded; the instruction sets bit by bit against scalar.
#include <cstdint>
#include <limits>

#include "check.h"
#include "cpu/vector.h"
#include "kernel_cases.h"
#include "quant/dense.h"

using namespace bitnet;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kHeadDims[] = {8, 24, 40, 64, 96, 104, 128, 256};

uint16_t scale_bits(const std::vector<int8_t>& block, int head_dim, int group, int slot) {
    uint16_t bits;
    std::memcpy(&bits, &block[static_cast<size_t>(kKvBlock * head_dim + 2 * (group * kKvBlock + slot))], sizeof(bits));
    return bits;
}

float k_at(const std::vector<int8_t>& block, int head_dim, int slot, int d) {
    return block[static_cast<size_t>(d * kKvBlock + slot)] * f16_to_f32(scale_bits(block, head_dim, d / kKvGroup, slot));
}

float v_at(const std::vector<int8_t>& block, int head_dim, int slot, int d) {
    return block[static_cast<size_t>(slot * head_dim + d)] * f16_to_f32(scale_bits(block, head_dim, d / kKvGroup, slot));
}

std::vector<int8_t> spoilt_block(int head_dim) {  // values 0x7e, scales NaN
    return std::vector<int8_t>(kv_q8_0_bytes(head_dim), 0x7e);
}

// Queries over a few KV blocks, with what each query may see of each block.
struct Attention {
    int n_queries, head_dim;
    std::vector<float> q;                                       // [n_queries][q_stride]
    std::vector<std::vector<int8_t>> k_blocks, v_blocks;        // written up to the largest visible, spoilt beyond
    std::vector<std::vector<std::vector<float>>> keys, values;  // [n_blocks][position][head_dim], before rounding
    std::vector<std::vector<int>> visible;                      // [n_blocks][n_queries]

    size_t q_stride() const { return static_cast<size_t>(head_dim) + 24; }
    float scale() const { return 1 / std::sqrt(static_cast<float>(head_dim)); }
};

template <typename See>
Attention make_attention(int n_queries, int head_dim, int n_blocks, See see) {
    const size_t dims = static_cast<size_t>(head_dim);
    Attention a{n_queries, head_dim, {}, {}, {}, {}, {}, {}};
    a.q = normal(a.q_stride() * static_cast<size_t>(n_queries));
    for (int b = 0; b < n_blocks; ++b) {
        std::vector<int> visible;
        for (int i = 0; i < n_queries; ++i) visible.push_back(see(b, i));
        std::vector<int8_t> k_block = spoilt_block(head_dim), v_block = k_block;
        std::vector<std::vector<float>> keys, values;
        for (int p = 0; p < *std::max_element(visible.begin(), visible.end()); ++p) {
            keys.push_back(normal(dims)), values.push_back(normal(dims));
            scalar::kv_write_q8_0(keys.back().data(), values.back().data(), head_dim, p, k_block.data(), v_block.data());
        }
        a.visible.push_back(visible), a.k_blocks.push_back(k_block), a.v_blocks.push_back(v_block);
        a.keys.push_back(keys), a.values.push_back(values);
    }
    return a;
}

struct AttentionState {
    std::vector<float> max, sum, acc;
};

using bitnet::same_bits;  // beside the one for a state

bool same_bits(const AttentionState& a, const AttentionState& b) {
    return same_bits(a.max, b.max) && same_bits(a.sum, b.sum) && same_bits(a.acc, b.acc);
}

// All blocks for all queries, in calls of up to `at_once` queries.
AttentionState attend(const Kernels& k, const Attention& a, int at_once) {
    const size_t dims = static_cast<size_t>(a.head_dim), count = static_cast<size_t>(a.n_queries);
    AttentionState s{std::vector<float>(count, -kInf), std::vector<float>(count), std::vector<float>(count * dims)};
    for (size_t b = 0; b < a.visible.size(); ++b)
        for (int i = 0; i < a.n_queries; i += at_once) {
            const size_t query = static_cast<size_t>(i);
            k.attention_block_q8_0(a.q.data() + query * a.q_stride(), a.q_stride(), std::min(at_once, a.n_queries - i),
                                   &a.visible[b][query], a.k_blocks[b].data(), a.v_blocks[b].data(), a.head_dim,
                                   a.scale(), &s.max[query], &s.sum[query], s.acc.data() + query * dims);
        }
    return s;
}

// Softmax attention of query i in double precision; key(b, p, d) and value(b, p, d) give the numbers.
template <typename Key, typename Value>
std::vector<double> softmax(const Attention& a, size_t i, Key key, Value value) {
    std::vector<double> weights, out(static_cast<size_t>(a.head_dim));
    double max = -kInf, sum = 0;
    for (size_t b = 0; b < a.visible.size(); ++b)
        for (int p = 0; p < a.visible[b][i]; ++p) {
            double dot = 0;
            for (int d = 0; d < a.head_dim; ++d) dot += double{a.q[i * a.q_stride() + static_cast<size_t>(d)]} * key(b, p, d);
            weights.push_back(dot * a.scale());
            max = std::max(max, weights.back());
        }
    for (double& w : weights) sum += w = std::exp(w - max);
    size_t seen = 0;
    for (size_t b = 0; b < a.visible.size(); ++b)
        for (int p = 0; p < a.visible[b][i]; ++p, ++seen)
            for (int d = 0; d < a.head_dim; ++d) out[static_cast<size_t>(d)] += weights[seen] / sum * value(b, p, d);
    return out;
}

const auto everything = [](int, int) { return kKvBlock; };

}  // namespace

TEST(kv_q8_0_write_matches_its_definition) {
    for (const Kernels& k : all_kernels())
        for (int head_dim : kHeadDims)
            for (float sigma : {1.0f, 100.0f, 1e-3f, 1e-7f, 1e6f})
                for (int slot : {0, 17, 31}) {
                    const size_t dims = static_cast<size_t>(head_dim);
                    std::vector<float> keys = normal(dims, sigma), values = normal(dims, sigma);
                    keys[3] = 0, keys[5] = -0.0f, keys[7] = 1e-42f;
                    std::vector<int8_t> k_block = spoilt_block(head_dim), v_block = k_block;
                    std::vector<int8_t> k_expected = k_block, v_expected = k_block;
                    k.kv_write_q8_0(keys.data(), values.data(), head_dim, slot, k_block.data(), v_block.data());
                    scalar::kv_write_q8_0(keys.data(), values.data(), head_dim, slot, k_expected.data(), v_expected.data());
                    CHECK(k_block == k_expected && v_block == v_expected);

                    std::vector<int8_t> rest = k_block;  // with the slot spoilt again nothing else has changed
                    for (int g = 0; g < kv_groups(head_dim); ++g) {
                        std::memset(&rest[static_cast<size_t>(kKvBlock * head_dim + 2 * (g * kKvBlock + slot))], 0x7e, 2);
                        double k_max = 0, v_max = 0;
                        for (size_t d = static_cast<size_t>(g * kKvGroup); d < std::min<size_t>(dims, static_cast<size_t>((g + 1) * kKvGroup)); ++d) {
                            rest[d * kKvBlock + static_cast<size_t>(slot)] = 0x7e;
                            k_max = std::max(k_max, std::abs(double{keys[d]}));
                            v_max = std::max(v_max, std::abs(double{values[d]}));
                            const double k_step = f16_to_f32(scale_bits(k_block, head_dim, g, slot));
                            const double v_step = f16_to_f32(scale_bits(v_block, head_dim, g, slot));
                            const int at = static_cast<int>(d);
                            CHECK(std::abs(k_at(k_block, head_dim, slot, at) - keys[d]) <= 0.5000001 * k_step);
                            CHECK(std::abs(v_at(v_block, head_dim, slot, at) - values[d]) <= 0.5000001 * v_step);
                        }
                        // the smallest f16 that reaches max / 127, up to the rounding of that quotient
                        const uint16_t k_scale = scale_bits(k_block, head_dim, g, slot), v_scale = scale_bits(v_block, head_dim, g, slot);
                        CHECK(f16_to_f32(k_scale) * 127.0 >= k_max * (1 - 1e-7) && f16_to_f32(v_scale) * 127.0 >= v_max * (1 - 1e-7));
                        CHECK(f16_to_f32(k_scale - 1) * 127.0 <= k_max * (1 + 1e-7) && f16_to_f32(v_scale - 1) * 127.0 <= v_max * (1 + 1e-7));
                    }
                    CHECK(rest == spoilt_block(head_dim));
                }
}

TEST(kv_q8_0_write_extremes) {
    for (const Kernels& k : all_kernels()) {
        constexpr int kDim = 72;  // groups of 32, 32 and 8
        const auto write = [&](const std::vector<float>& x) {
            std::vector<int8_t> block = spoilt_block(kDim), other = block;
            k.kv_write_q8_0(x.data(), x.data(), kDim, 2, block.data(), other.data());
            for (int d = 0; d < kDim; ++d) CHECK(same_bits(k_at(block, kDim, 2, d), v_at(other, kDim, 2, d)));
            return block;
        };
        std::vector<int8_t> block = write(std::vector<float>(kDim, 0.0f));
        for (int d = 0; d < kDim; ++d) CHECK(same_bits(k_at(block, kDim, 2, d), 0.0f));
        block = write(std::vector<float>(kDim, 1e-44f));  // max / 127 is no float any more
        for (int d = 0; d < kDim; ++d) CHECK(same_bits(k_at(block, kDim, 2, d), 0.0f));
        block = write(std::vector<float>(kDim, -1e-42f));  // the smallest scale
        CHECK(scale_bits(block, kDim, 0, 2) == 1 && k_at(block, kDim, 2, 0) == 0);
        for (float bad : {kNan, kInf, -kInf, 9e6f}) {  // only the group it is in
            std::vector<float> x(kDim, 0.5f);
            x[66] = bad;
            block = write(x);
            CHECK(std::isnan(k_at(block, kDim, 2, 64)) && std::isnan(k_at(block, kDim, 2, 66)) && std::isnan(k_at(block, kDim, 2, 71)));
            CHECK(std::abs(k_at(block, kDim, 2, 0) - 0.5f) < 1e-3 && std::abs(k_at(block, kDim, 2, 63) - 0.5f) < 1e-3);
        }
        // The largest element is 127, or 126 where rounding the scale up took half a step: scales that are normal f16.
        for (int i = 0; i < 20000; ++i) {
            const float a = std::ldexp(1 + static_cast<float>(uniform(0, (1 << 23) - 1)) / (1 << 23), uniform(-6, 21));
            std::vector<float> x(8, a);
            x[1] = -a;
            std::vector<int8_t> own = spoilt_block(8), other = own;
            k.kv_write_q8_0(x.data(), x.data(), 8, 0, own.data(), other.data());
            CHECK(other[0] >= 126 && other[1] <= -126 && other[0] == -other[1]);
        }
    }
}

TEST(kv_q8_0_attention_is_a_softmax_and_independent_of_batching) {
    const auto random_visible = [](int, int) { return uniform(0, kKvBlock); };
    const auto decode = [](int block, int) { return block < 3 ? kKvBlock : 13; };
    const auto causal = [](int block, int query) { return std::clamp(query / 4 + 10 - block * kKvBlock, 0, kKvBlock); };
    for (int head_dim : kHeadDims)
        for (int n_queries : {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 67, 130}) {
            const std::vector<Attention> cases = {make_attention(n_queries, head_dim, 3, random_visible),
                                                  make_attention(n_queries, head_dim, 4, decode),
                                                  make_attention(n_queries, head_dim, 2, causal)};
            for (const Attention& a : cases) {
                const AttentionState expected = attend(all_kernels()[0], a, n_queries);
                for (size_t i = 0; i < static_cast<size_t>(n_queries); ++i) {
                    const std::vector<double> exact =
                        softmax(a, i, [&](size_t b, int p, int d) { return k_at(a.k_blocks[b], head_dim, p, d); },
                                [&](size_t b, int p, int d) { return v_at(a.v_blocks[b], head_dim, p, d); });
                    int most = 0;
                    for (const std::vector<int>& visible : a.visible) most = std::max(most, visible[i]);
                    double worst = 0;
                    for (size_t d = 0; most > 0 && d < exact.size(); ++d)
                        worst = std::max(worst, std::abs(exact[d] - expected.acc[i * exact.size() + d] / expected.sum[i]));
                    CHECK(worst < 2e-6);
                    if (most == 0) CHECK(expected.max[i] == -kInf && expected.sum[i] == 0 && expected.acc[i * exact.size()] == 0);
                }
                for (const Kernels& k : all_kernels())
                    for (int at_once : {n_queries, 1, 2, 3, 5, 6, 11, 65}) CHECK(same_bits(attend(k, a, at_once), expected));
            }
        }
}

TEST(kv_q8_0_attention_stays_near_the_numbers_before_rounding) {
    double squares = 0, reference_squares = 0;
    for (int head_dim : kHeadDims) {
        const Attention a = make_attention(8, head_dim, 6, everything);
        const AttentionState s = attend(all_kernels()[0], a, 8);
        for (size_t i = 0; i < 8; ++i) {
            const std::vector<double> exact =
                softmax(a, i, [&](size_t b, int p, int d) { return a.keys[b][static_cast<size_t>(p)][static_cast<size_t>(d)]; },
                        [&](size_t b, int p, int d) { return a.values[b][static_cast<size_t>(p)][static_cast<size_t>(d)]; });
            // Half a step for each element of K moves a score by at most `shift`, the weights by a factor in
            // exp(+-2 shift), and half a step for each element of V the result by itself.
            double k_step = 0, v_step = 0, v_max = 0, query = 0;
            for (size_t b = 0; b < a.keys.size(); ++b)
                for (int p = 0; p < kKvBlock; ++p)
                    for (int d = 0; d < head_dim; ++d) {
                        k_step = std::max(k_step, double{f16_to_f32(scale_bits(a.k_blocks[b], head_dim, d / kKvGroup, p))});
                        v_step = std::max(v_step, double{f16_to_f32(scale_bits(a.v_blocks[b], head_dim, d / kKvGroup, p))});
                        v_max = std::max(v_max, std::abs(double{a.values[b][static_cast<size_t>(p)][static_cast<size_t>(d)]}));
                    }
            for (int d = 0; d < head_dim; ++d) query += std::abs(a.q[i * a.q_stride() + static_cast<size_t>(d)]);
            const double shift = query * k_step / 2 * a.scale();
            const double limit = v_max * (std::exp(2 * shift) - 1) + v_step / 2 + 2e-6;
            for (size_t d = 0; d < exact.size(); ++d) {
                const double difference = exact[d] - s.acc[i * exact.size() + d] / s.sum[i];
                CHECK(std::abs(difference) <= limit);
                squares += difference * difference;
                reference_squares += exact[d] * exact[d];
            }
        }
    }
    // Measured 0.0073: 8 bits keep two digits.
    CHECK(std::sqrt(squares / reference_squares) < 0.01);
}

TEST(kv_q8_0_attention_of_one_query_ignores_what_only_others_see) {
    for (const Kernels& k : all_kernels())
        for (int n_queries : {2, 12}) {
            Attention a = make_attention(n_queries, 72, 1, [](int, int query) { return query % 2 == 0 ? 5 : 20; });
            const AttentionState before = attend(k, a, n_queries);
            const std::vector<float> nan(72, kNan);
            k.kv_write_q8_0(nan.data(), nan.data(), 72, 9, a.k_blocks[0].data(), a.v_blocks[0].data());
            const AttentionState after = attend(k, a, n_queries);
            for (size_t i = 0; i < static_cast<size_t>(n_queries); ++i)
                for (size_t d = 0; d < 72; ++d) {
                    if (i % 2 == 0) CHECK(same_bits(before.acc[i * 72 + d], after.acc[i * 72 + d]));
                    if (i % 2 == 1) CHECK(std::isnan(after.acc[i * 72 + d]));
                }
        }
}

TEST(kv_q8_0_attention_does_not_hide_a_nan) {
    for (const Kernels& k : all_kernels())
        for (int n_queries : {1, 9}) {
            Attention a = make_attention(n_queries, 64, 2, everything);
            a.q[5] = kNan;
            AttentionState s = attend(k, a, n_queries);
            CHECK(std::isnan(s.sum[0]) && std::isnan(s.acc[0]) && std::isnan(s.acc[63]));
            if (n_queries > 1) CHECK(std::isfinite(s.sum[1]));
            a.q[5] = 1;
            std::vector<float> key(64, 1.0f);
            key[40] = kInf;
            k.kv_write_q8_0(key.data(), key.data(), 64, 7, a.k_blocks[1].data(), a.v_blocks[1].data());
            s = attend(k, a, n_queries);
            CHECK(std::isnan(s.sum[0]) && std::isnan(s.acc[0]));
        }
}
