// Times the kernels on float rows, KV blocks and the output head at the sizes of BitNet b1.58 2B-4T, each line with its
// check against the scalar specification. Medians over repetitions, one thread, in processor time: other processes
// count only by the memory bandwidth and the cache they take.
//   bench_vector [repetitions] [kernel table]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <random>
#include <vector>

#include "cpu/vector.h"

using namespace bitnet;

namespace {

int repetitions = 15;
Kernels tested = {};

std::vector<float> normal(size_t n, float sigma = 1) {
    static std::mt19937 engine(1);
    std::normal_distribution<float> distribution(0, sigma);
    std::vector<float> x(n);
    for (float& v : x) v = distribution(engine);
    return x;
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

// Median nanoseconds of one call, over repetitions of `calls` calls.
template <typename Function>
double median_ns(int calls, Function f) {
    std::vector<double> ns;
    for (int r = 0; r < repetitions; ++r) {
        const std::clock_t start = std::clock();
        for (int i = 0; i < calls; ++i) f();
        ns.push_back(static_cast<double>(std::clock() - start) * (1e9 / CLOCKS_PER_SEC) / calls);
    }
    return median(ns);
}

void report(const char* name, double ns, double rate, const char* unit, bool ok) {
    std::printf("%-44s %12.0f ns %9.2f %-9s %s\n", name, ns, rate, unit, ok ? "bit-equal to scalar" : "WRONG");
}

void bench_rows(int n) {
    const size_t size = static_cast<size_t>(n), stride = (size + 63) / 64 * 64;
    const std::vector<float> x = normal(size), w = normal(size);
    std::vector<float> y(size), expected(size);
    char name[64];

    const auto binary = [&](const char* what, auto f, auto reference) {
        const double ns = median_ns(5000, [&] { f(x.data(), w.data(), n, y.data()); });
        reference(x.data(), w.data(), n, expected.data());
        std::snprintf(name, sizeof(name), "%s %d", what, n);
        report(name, ns, n / ns, "values/ns", same(y, expected));
    };
    binary("rms_norm", [](auto a, auto b, int k, auto c) { tested.rms_norm(a, b, k, 1e-5f, c); },
           [](auto a, auto b, int k, auto c) { scalar::rms_norm(a, b, k, 1e-5f, c); });
    binary("relu2_mul", tested.relu2_mul, scalar::relu2_mul);
    binary("silu_mul", tested.silu_mul, scalar::silu_mul);
    binary("gelu_mul", tested.gelu_mul, scalar::gelu_mul);

    std::vector<int8_t> values(stride), expected_values(stride);
    float scale, expected_scale;
    int32_t sum, expected_sum;
    const double ns = median_ns(5000, [&] { tested.quantize_row(x.data(), n, stride, values.data(), &scale, &sum); });
    scalar::quantize_row(x.data(), n, stride, expected_values.data(), &expected_scale, &expected_sum);
    std::snprintf(name, sizeof(name), "quantize_row %d", n);
    const bool ok = same(values, expected_values) && sum == expected_sum && scale == expected_scale;
    report(name, ns, n / ns, "values/ns", ok);

    volatile float sink = 0;
    const double dot_ns = median_ns(5000, [&] { sink = tested.dot_f32(w.data(), x.data(), n); });
    std::snprintf(name, sizeof(name), "dot_f32 %d", n);
    report(name, dot_ns, n / dot_ns, "values/ns", sink == scalar::dot_f32(w.data(), x.data(), n));
}

void bench_rope() {
    std::vector<float> x = normal(20 * 128), expected = x;
    std::vector<float> c(64), s(64);
    for (size_t i = 0; i < 64; ++i) {
        const float angle = 0.1f * static_cast<float>(i);
        c[i] = std::cos(angle), s[i] = std::sin(angle);
    }
    tested.rope_neox(x.data(), 20, 128, 128, c.data(), s.data());
    scalar::rope_neox(expected.data(), 20, 128, 128, c.data(), s.data());
    const bool ok = same(x, expected);
    const double ns = median_ns(5000, [&] { tested.rope_neox(x.data(), 20, 128, 128, c.data(), s.data()); });
    report("rope_neox 20 heads x 128", ns, 20 * 128 / ns, "values/ns", ok);
}

void bench_kv_write() {
    constexpr size_t kBlock = 128 * kKvBlock;
    const std::vector<float> k = normal(128), v = normal(128);
    std::vector<uint16_t> k_block(kBlock), v_block(kBlock), k_expected(kBlock), v_expected(kBlock);
    const double ns =
        median_ns(20000, [&] { tested.kv_write(k.data(), v.data(), 128, 5, k_block.data(), v_block.data()); });
    scalar::kv_write(k.data(), v.data(), 128, 5, k_expected.data(), v_expected.data());
    report("kv_write 128", ns, 2 * 128 / ns, "values/ns", same(k_block, k_expected) && same(v_block, v_expected));
}

// How a block's K and V are stored, and the kernels for it.
struct F16 {
    using Element = uint16_t;
    static constexpr const char* kName = "f16";
    static size_t part(int head_dim) { return static_cast<size_t>(head_dim) * kKvBlock; }  // elements of K or V
    static auto write(const Kernels& k) { return k.kv_write; }
    static auto attend(const Kernels& k) { return k.attention_block; }
};

struct Q8 {
    using Element = int8_t;
    static constexpr const char* kName = "q8_0";
    static size_t part(int head_dim) { return kv_q8_0_bytes(head_dim); }
    static auto write(const Kernels& k) { return k.kv_write_q8_0; }
    static auto attend(const Kernels& k) { return k.attention_block_q8_0; }
};

// n_queries over n_blocks full blocks; with many blocks K and V come from DRAM.
template <typename Type>
class Attention {
public:
    Attention(int n_queries, int n_blocks)
        : n_queries_(n_queries),
          blocks_(static_cast<size_t>(n_blocks)),
          q_(normal(static_cast<size_t>(n_queries) * kHeadDim)),
          kv_(2 * part_ * blocks_),
          visible_(static_cast<size_t>(n_queries), kKvBlock),
          max_(visible_.size()),
          sum_(visible_.size()),
          acc_(visible_.size() * kHeadDim) {
        const std::vector<float> pool = normal(8192);
        for (size_t b = 0; b < blocks_; ++b)
            for (int slot = 0; slot < kKvBlock; ++slot) {
                const size_t at = (b * 37 + static_cast<size_t>(slot) * 101) % 4096;
                auto* block = &kv_[2 * part_ * b];
                Type::write(tested)(&pool[at], &pool[at + 2048], kHeadDim, slot, block, block + part_);
            }
    }

    void run(const Kernels& kernels) {
        std::fill(max_.begin(), max_.end(), -std::numeric_limits<float>::infinity());
        std::fill(sum_.begin(), sum_.end(), 0.0f);
        std::fill(acc_.begin(), acc_.end(), 0.0f);
        for (size_t b = 0; b < blocks_; ++b)
            Type::attend(kernels)(q_.data(), kHeadDim, n_queries_, visible_.data(), &kv_[2 * part_ * b],
                                  &kv_[2 * part_ * b + part_], kHeadDim, 0.088f, max_.data(), sum_.data(), acc_.data());
    }

    void report_time(double ns) {
        run(tested);
        const std::vector<float> result = acc_;
        run(kScalarKernels);
        char name[64];
        std::snprintf(name, sizeof(name), "attention %s %d queries, %zu blocks", Type::kName, n_queries_, blocks_);
        report(name, ns, 2.0 * 2 * kHeadDim * kKvBlock * n_queries_ / ns, "GFLOP/s", same(acc_, result));
        std::printf("%-44s %12s    %9.2f GB/s\n", "    K and V read", "", 2.0 * sizeof(kv_[0]) * part_ / ns);
    }

private:
    static constexpr int kHeadDim = 128;
    size_t part_ = Type::part(kHeadDim);
    int n_queries_;
    size_t blocks_;
    std::vector<float> q_;
    std::vector<typename Type::Element> kv_;  // per block K, then V
    std::vector<int> visible_;
    std::vector<float> max_, sum_, acc_;
};

// f16 and q8_0 in turn, so that what else the machine does meets both. The ratio is the median of those of a turn.
void bench_attention(int n_queries, int n_blocks) {
    Attention<F16> f16(n_queries, n_blocks);
    Attention<Q8> q8(n_queries, n_blocks);
    const int calls = std::max(1, 40000 / (n_queries * n_blocks));
    std::vector<double> f16_ns, q8_ns, ratios;
    for (int turn = 0; turn < repetitions; ++turn) {
        const auto once = [&](auto& attention) {
            const std::clock_t start = std::clock();
            for (int i = 0; i < calls; ++i) attention.run(tested);
            return static_cast<double>(std::clock() - start) * (1e9 / CLOCKS_PER_SEC) / calls / n_blocks;
        };
        f16_ns.push_back(once(f16)), q8_ns.push_back(once(q8));
        ratios.push_back(q8_ns.back() / f16_ns.back());
    }
    f16.report_time(median(f16_ns));
    q8.report_time(median(q8_ns));
    std::printf("%-44s %12s    %9.2f of the time of f16\n", "    q8_0", "", median(ratios));
}

// Reading memory and doing nothing else: what a decode head can reach.
double read_ns(const std::vector<int8_t>& bytes) {
    volatile uint64_t sink = 0;
    return median_ns(1, [&] {
        uint64_t sums[8] = {};
        for (size_t i = 0; i + 64 <= bytes.size(); i += 64) {
            uint64_t words[8];
            std::memcpy(words, &bytes[i], 64);
            for (int j = 0; j < 8; ++j) sums[j] += words[j];
        }
        for (uint64_t s : sums) sink = sink + s;
    });
}

void bench_head() {
    constexpr int kRows = 128256, kCols = 2560, kMaxTokens = 16;
    std::vector<int8_t> rows(static_cast<size_t>(kRows) * kCols), values(static_cast<size_t>(kMaxTokens) * kCols);
    uint32_t state = 1;
    const auto fill = [&state](std::vector<int8_t>& v) {
        for (int8_t& b : v) {
            state = state * 1664525 + 1013904223;
            b = static_cast<int8_t>(static_cast<int>(state >> 24) - 128);
            if (b == -128) b = 127;
        }
    };
    fill(rows), fill(values);
    const std::vector<float> row_scales = normal(kRows), scales = normal(kMaxTokens);
    const QuantizedRows x{values.data(), kCols, scales.data(), nullptr};
    std::vector<float> scores(static_cast<size_t>(kRows) * kMaxTokens);
    const double bytes = static_cast<double>(rows.size());
    repetitions = std::min(repetitions, 7);
    for (int n_tokens : {1, 2, 4, 8, 16}) {
        const double read = read_ns(rows);
        const double ns = median_ns(1, [&] {
            tested.head_rows(rows.data(), kCols, row_scales.data(), 0, kRows, x, n_tokens, scores.data(), kRows);
        });
        bool ok = true;  // the scalar head is slow: its first rows only
        std::vector<float> expected(static_cast<size_t>(kRows) * static_cast<size_t>(n_tokens));
        scalar::head_rows(rows.data(), kCols, row_scales.data(), 0, 500, x, n_tokens, expected.data(), kRows);
        for (size_t t = 0; t < static_cast<size_t>(n_tokens); ++t)
            ok &= std::memcmp(&scores[t * kRows], &expected[t * kRows], 500 * sizeof(float)) == 0;
        char name[64];
        std::snprintf(name, sizeof(name), "head_rows %d x %d, %d tokens", kRows, kCols, n_tokens);
        report(name, ns, bytes / ns, "GB/s", ok);
        std::printf("%-44s %12.0f ns %9.2f GB/s\n", "    raw read of the same bytes", read, bytes / read);
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1) repetitions = std::max(1, std::atoi(argv[1]));
    const Kernels* kernels = select_kernels(argc > 2 ? argv[2] : "");
    if (kernels == nullptr) {
        std::fprintf(stderr, "usage: bench_vector [repetitions] [kernel table]\n");
        return 2;
    }
    tested = *kernels;
    std::printf("kernels: %s\n", tested.name);
    for (int n : {2560, 6912}) bench_rows(n);
    bench_rope();
    bench_kv_write();
    for (int n_queries : {1, 2, 4, 8, 16, 128, 512}) bench_attention(n_queries, 1);
    for (int n_queries : {1, 4}) bench_attention(n_queries, 4096);
    bench_attention(128, 64);
    bench_head();
}
