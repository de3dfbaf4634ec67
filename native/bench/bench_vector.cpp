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

// Median nanoseconds of one call, over repetitions of `calls` calls.
template <typename Function>
double median_ns(int calls, Function f) {
    std::vector<double> ns;
    for (int r = 0; r < repetitions; ++r) {
        const std::clock_t start = std::clock();
        for (int i = 0; i < calls; ++i) f();
        ns.push_back(static_cast<double>(std::clock() - start) * (1e9 / CLOCKS_PER_SEC) / calls);
    }
    std::nth_element(ns.begin(), ns.begin() + repetitions / 2, ns.end());
    return ns[static_cast<size_t>(repetitions / 2)];
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

// n_queries over n_blocks full blocks; with many blocks K and V come from DRAM.
void bench_attention(int n_queries, int n_blocks) {
    constexpr int kHeadDim = 128;
    constexpr size_t kBlock = static_cast<size_t>(kHeadDim) * kKvBlock;
    const size_t queries = static_cast<size_t>(n_queries), blocks = static_cast<size_t>(n_blocks);
    const std::vector<float> q = normal(queries * kHeadDim);
    std::vector<uint16_t> kv(2 * kBlock * blocks);  // per block K, then V
    std::vector<float> k_row(kHeadDim), v_row(kHeadDim);
    const std::vector<float> pool = normal(8192);
    for (size_t b = 0; b < blocks; ++b)
        for (int slot = 0; slot < kKvBlock; ++slot) {
            const size_t at = (b * 37 + static_cast<size_t>(slot) * 101) % 4096;
            uint16_t* block = &kv[2 * kBlock * b];
            tested.kv_write(&pool[at], &pool[at + 2048], kHeadDim, slot, block, block + kBlock);
        }
    const std::vector<int> visible(queries, kKvBlock);
    std::vector<float> max(queries), sum(queries), acc(queries * kHeadDim);
    const auto all_blocks = [&](auto f) {
        std::fill(max.begin(), max.end(), -std::numeric_limits<float>::infinity());
        std::fill(sum.begin(), sum.end(), 0.0f);
        std::fill(acc.begin(), acc.end(), 0.0f);
        for (size_t b = 0; b < blocks; ++b)
            f(q.data(), static_cast<size_t>(kHeadDim), n_queries, visible.data(), &kv[2 * kBlock * b],
              &kv[2 * kBlock * b + kBlock], kHeadDim, 0.088f, max.data(), sum.data(), acc.data());
    };
    const int calls = std::max(1, 40000 / (n_queries * n_blocks));
    const double ns = median_ns(calls, [&] { all_blocks(tested.attention_block); }) / n_blocks;
    const std::vector<float> result = acc;
    all_blocks(scalar::attention_block);
    char name[64];
    std::snprintf(name, sizeof(name), "attention_block %d queries, %d blocks", n_queries, n_blocks);
    report(name, ns, 2.0 * 2 * kHeadDim * kKvBlock * n_queries / ns, "GFLOP/s", same(acc, result));
    std::printf("%-44s %12s    %9.2f GB/s\n", "    K and V read", "", 4.0 * kBlock / ns);
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
    bench_attention(4, 4096);
    bench_attention(128, 64);
    bench_head();
}
