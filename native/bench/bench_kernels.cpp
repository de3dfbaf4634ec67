// Speed of the ternary kernels on one thread, on the shapes of BitNet b1.58 2B-4T, beside a check of every result.
//
//     bench_kernels [rounds] [kernel table]
//
// "memory": every call multiplies other weights, more than any cache holds, as in decoding. "cache": the same weights
// again. Configurations are timed in turn, round by round, so that disturbances hit all of them; the median is printed.
// Compare lines of one run only. GB/s counts packed weights once per call (once per tile for the table kernel).
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "platform/memory.h"
#include "quant/ternary.h"

using namespace bitnet;

namespace {

constexpr size_t kWeightBytes = size_t{256} << 20;
constexpr int kMaxTokens = 128;

struct Shape {
    const char* name;
    int rows, cols;
};
constexpr Shape kShapes[] = {
    {"q, o       2560 x 2560", 2560, 2560},
    {"k, v        640 x 2560", 640, 2560},
    {"gate, up   6912 x 2560", 6912, 2560},
    {"down       2560 x 6912", 2560, 6912},
};

struct Config {
    bool table;
    bool from_memory;
    int n_tokens;
    std::vector<double> seconds = {};
    bool exact = true;
};

// Processor time of this thread where the system tells it, so that other processes on the machine count less.
double now() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
#else
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
#endif
}

double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
    return values[values.size() / 2];
}

uint32_t next_random() {  // xorshift64*
    static uint64_t state = 88172645463325252ull;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return uint32_t(state * 2685821657736338717ull >> 32);
}

// Random N9 bytes: both digits in 0..8.
void fill_weights(uint8_t* weights) {
    constexpr size_t kPeriod = size_t{1} << 20;  // random enough; the rest are copies
    for (size_t i = 0; i < kPeriod; ++i) {
        const uint32_t r = next_random();
        weights[i] = uint8_t((r >> 16) % 9 | (r & 0xffff) % 9 << 4);
    }
    for (size_t i = kPeriod; i < kWeightBytes; i += kPeriod) std::memcpy(weights + i, weights, kPeriod);
}

// Quantised activations shaped as in a model: bell-shaped, the largest of a token at 127.
struct Activations {
    explicit Activations(int cols) : stride(size_t(cols + 63) / 64 * 64), values(stride * kMaxTokens) {
        for (int t = 0; t < kMaxTokens; ++t) {
            int32_t sum = 0;
            for (int k = 0; k < cols; ++k) {
                int bell = 0;
                for (int i = 0; i < 6; ++i) bell += int(next_random() >> 26) - 32;
                const int8_t value = int8_t(std::clamp(bell * 2 / 3, -127, 127));
                values.as<int8_t>()[size_t(t) * stride + size_t(k)] = value;
                sum += value;
            }
            sums.push_back(sum);
            scales.push_back(0.01f + 0.0001f * float(t));
        }
        view = {values.as<int8_t>(), stride, scales.data(), sums.data()};
    }
    size_t stride;
    PageBuffer values;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    QuantizedRows view;
};

struct Bench {
    const Kernels& kernels;
    TernaryWeights w;
    Activations x;
    PageBuffer tile, scratch, y, y_check;

    Bench(const Kernels& k, const Shape& shape)
        : kernels(k),
          x(shape.cols),
          tile(size_t(shape.cols + 15) / 16 * 16 * kTableTokens * sizeof(int16_t)),
          y(size_t(shape.rows) * kMaxTokens * sizeof(float)),
          y_check(y.size()) {
        w.rows = shape.rows;
        w.cols = shape.cols;
        w.n_panels = (shape.rows + kPanelRows - 1) / kPanelRows;
        w.k_blocks = (shape.cols + kBlockCols - 1) / kBlockCols;
        w.scale = 0.5f;
        scratch = PageBuffer(std::max<size_t>(kernels.table_scratch_bytes(w.n_panels), 1));
    }

    void multiply(const Config& config) {
        if (!config.table) {
            kernels.ternary_direct(w, 0, w.n_panels, x.view, config.n_tokens, y.as<float>(), size_t(w.rows));
            return;
        }
        for (int first = 0; first < config.n_tokens; first += kTableTokens) {
            const int n = std::min(kTableTokens, config.n_tokens - first);
            kernels.table_tile(x.view, first, n, w.k_blocks, tile.as<int16_t>());
            kernels.ternary_table(w, 0, w.n_panels, tile.as<int16_t>(), x.view, first, n, 1, y.as<float>(), size_t(w.rows),
                                  scratch.data());
        }
    }

    // The rows of one panel, computed by the scalar kernel, must have the same bits.
    bool check(const Config& config, int panel) {
        kScalarKernels.ternary_direct(w, panel, panel + 1, x.view, config.n_tokens, y_check.as<float>(),
                                      size_t(w.rows));
        for (int t = 0; t < config.n_tokens; ++t) {
            const size_t offset = size_t(t) * size_t(w.rows) + size_t(panel) * kPanelRows;
            const size_t rows = size_t(std::min(kPanelRows, w.rows - panel * kPanelRows));
            if (std::memcmp(y.as<float>() + offset, y_check.as<float>() + offset, rows * sizeof(float)) != 0)
                return false;
        }
        return true;
    }
};

// Seconds to read all weights with plain loads.
double read_seconds(const uint8_t* weights) {
    const double start = now();
    uint64_t sum[4] = {};
    for (size_t i = 0; i < kWeightBytes; i += 32) {
        uint64_t part[4];
        std::memcpy(part, weights + i, 32);
        for (int j = 0; j < 4; ++j) sum[j] += part[j];
    }
    const double seconds = now() - start;
    volatile uint64_t sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    (void)sink;
    return seconds;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 15;
    const Kernels* kernels = select_kernels(argc > 2 ? argv[2] : "");
    if (rounds < 1 || kernels == nullptr) {
        std::fprintf(stderr, "usage: bench_kernels [rounds] [kernel table]\n");
        return 2;
    }
    PageBuffer weights(kWeightBytes);
    fill_weights(weights.data());
    std::vector<double> reads;
    for (int i = 0; i < 9; ++i) reads.push_back(read_seconds(weights.data()));
    std::printf("kernels: %s; 1 thread; %d rounds; plain read of memory: %.1f GB/s\n", kernels->name, rounds,
                double(kWeightBytes) * 1e-9 / median(reads));

    bool all_exact = true;
    for (const Shape& shape : kShapes) {
        Bench bench(*kernels, shape);
        const size_t tensor_bytes = n9_bytes(shape.rows, shape.cols);
        const size_t n_tensors = kWeightBytes / tensor_bytes;
        std::vector<Config> configs;
        for (const bool from_memory : {true, false})
            for (const int n : {1, 2, 4, 8, 12, 16, 32, 128}) configs.push_back({false, from_memory, n});
        for (const int n : {12, 16, 24, 32, 128}) configs.push_back({true, true, n});

        size_t tensor = 0;
        bench.w.panels = weights.data();
        for (int round = 0; round < rounds; ++round)
            for (Config& config : configs) {
                // Everything but the weights is warm, as it is in a model, whose layers run one after another.
                bench.multiply(config);
                if (config.from_memory) {
                    tensor = (tensor + 1) % n_tensors;
                    bench.w.panels = weights.data() + tensor * tensor_bytes;
                }
                const double start = now();
                bench.multiply(config);
                config.seconds.push_back(now() - start);
                if (round < 3) config.exact &= bench.check(config, int(next_random() % uint32_t(bench.w.n_panels)));
            }

        std::printf("\n%s                    us   GMAC/s     GB/s\n", shape.name);
        for (const Config& config : configs) {
            const double seconds = median(config.seconds);
            const int sweeps = config.table ? (config.n_tokens + kTableTokens - 1) / kTableTokens : 1;
            std::printf("  %-6s %-6s %4d tokens   %10.1f %8.1f %8.1f   %s\n", config.table ? "table" : "direct",
                        config.from_memory ? "memory" : "cache", config.n_tokens, seconds * 1e6,
                        double(shape.rows) * shape.cols * config.n_tokens * 1e-9 / seconds,
                        double(tensor_bytes) * sweeps * 1e-9 / seconds, config.exact ? "exact" : "WRONG");
            all_exact &= config.exact;
        }
    }
    return all_exact ? 0 : 1;
}
