// Ternary products from the host's side: weights to the device, which kernel multiplies them, and how fast that is.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "cuda/memory.cuh"
#include "cuda/ternary.cuh"

namespace bitnet::cuda {

// From here on, products go by multiply_many. Not tuned on a device yet.
constexpr int kFewTokens = 32;

struct Processors {
    int count = 1;
    size_t shared_bytes = 48 << 10;  // of shared memory a block may have
};

inline size_t panel_bytes(const BitnetGpuMatrix& w) {
    return (static_cast<size_t>(w.rows) + 31) / 32 * ((static_cast<size_t>(w.cols) + 15) / 16) * 128;
}

// `tiles` = the weights of `w`; `panels` [panel_bytes] is on the device, too. The result has neither norm nor y yet.
inline Product send_matrix(cudaStream_t stream, const BitnetGpuMatrix& w, const Buffer& panels, const Buffer& tiles) {
    check(cudaMemcpyAsync(panels.as<uint8_t>(), w.panels, panel_bytes(w), cudaMemcpyHostToDevice, stream), "sending weights");
    const size_t blocks = (tile_bytes(w.rows, w.cols) / 4 + 255) / 256;
    const dim3 grid(static_cast<unsigned>(std::min<size_t>(blocks, 32768)), static_cast<unsigned>((blocks + 32767) / 32768));
    launch(stream, repack, grid, 256, 0, static_cast<const uint8_t*>(panels.as<uint8_t>()), w.rows, w.cols, tiles.as<uint32_t>());
    check(cudaGetLastError(), "sending weights");
    check(cudaStreamSynchronize(stream), "sending weights");
    return {tiles.as<uint4>(), w.rows, (w.rows + kTileRows - 1) / kTileRows, w.scale, nullptr, 0, nullptr};
}

inline void allow_products(const Processors& processors) {
    const auto allow = [&](auto* kernel) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(processors.shared_bytes)), "setting up kernels");
    };
    allow(multiply_one);
    allow(multiply_few<1>);
    allow(multiply_few<2>);
    allow(multiply_few<4>);
    allow(multiply_many<64, 4>);
    allow(multiply_many<128, 2>);
    allow(multiply_many<128, 4>);
}

inline int product_blocks(const Products& products, int tiles_per_block) {
    int n = 0;
    for (const Product& product : products.p) n += (product.n_tiles + tiles_per_block - 1) / tiles_per_block;
    return n;
}

// Warps that share a row tile: enough for two blocks on each processor.
inline int split_of(const Products& products, const Processors& processors) {
    int split = 1;
    while (split < 8 && product_blocks(products, 8 / split) < 2 * processors.count) split *= 2;
    return split;
}

// All products with the operand of n_tokens tokens; unused ones have no tiles.
inline void launch_products(cudaStream_t stream, const Processors& processors, const Products& products, const Operand& x, int n_tokens) {
    const auto blocks = [&](int tiles_per_block) { return product_blocks(products, tiles_per_block); };
    if (n_tokens <= kFewTokens) {
        const int split = split_of(products, processors);
        const auto few = [&](auto* kernel, int tiles) {
            launch(stream, kernel, dim3(static_cast<unsigned>(blocks(8 / split)), static_cast<unsigned>((n_tokens + 8 * tiles - 1) / (8 * tiles))), kFewThreads,
                   static_cast<size_t>(tiles) * 4096, products, x, n_tokens, split);
        };
        if (n_tokens <= 8)
            few(multiply_few<1>, 1);
        else if (n_tokens <= 16)
            few(multiply_few<2>, 2);
        else
            few(multiply_few<4>, 4);
        return;
    }
    const auto many = [&](auto* kernel, int tokens, int shared_bytes) {
        launch(stream, kernel, dim3(static_cast<unsigned>(blocks(kManyTiles)), static_cast<unsigned>((n_tokens + tokens - 1) / tokens)), kManyThreads,
               static_cast<size_t>(shared_bytes), products, x, n_tokens);
    };
    if (n_tokens <= 64 || blocks(kManyTiles) * ((n_tokens + 127) / 128) < processors.count)
        many(multiply_many<64, 4>, 64, 4 * kStageBytes<64>);
    else if (static_cast<size_t>(4 * kStageBytes<128>) <= processors.shared_bytes)
        many(multiply_many<128, 4>, 128, 4 * kStageBytes<128>);
    else
        many(multiply_many<128, 2>, 128, 2 * kStageBytes<128>);
}

// One matrix times given int8 rows x [n_tokens][cols]: y [n_tokens][rows], the exact sums as floats (w.scale = 1). With
// `timing` also how long it takes with weights that come from memory, and the bandwidth of copying them.
inline void measure_product(int device, const BitnetGpuMatrix& w, const int8_t* x, int n_tokens, float* y, BitnetGpuTiming* timing) {
    check(cudaSetDevice(device), "choosing the device");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "asking for the device's properties");
    const Processors processors{properties.multiProcessorCount, properties.sharedMemPerBlockOptin};
    allow_products(processors);
    struct Stream {
        cudaStream_t stream = nullptr;
        ~Stream() { cudaStreamDestroy(stream); }
    } own;
    check(cudaStreamCreateWithFlags(&own.stream, cudaStreamNonBlocking), "making a stream");
    const cudaStream_t stream = own.stream;

    const size_t tokens = static_cast<size_t>(n_tokens), cols = static_cast<size_t>(w.cols), rows = static_cast<size_t>(w.rows);
    const size_t stride = (cols + kChunk - 1) / kChunk * kChunk, bytes = tile_bytes(w.rows, w.cols);
    const size_t n_copies = timing ? std::max<size_t>(2, kColdBytes / bytes) : 1;
    std::vector<int8_t> operand(tokens * stride);
    std::vector<float> scales(tokens, 1.0f);
    std::vector<int> sums(tokens);
    for (size_t t = 0; t < tokens; t++)
        for (size_t k = 0; k < cols; k++) {
            operand[t * stride + static_cast<size_t>(operand_index(static_cast<int>(k)))] = x[t * cols + k];
            sums[t] += x[t * cols + k];
        }
    const Buffer panels(panel_bytes(w), "weights"), values(operand.size(), "activations"), scales_there(4 * tokens, "activations");
    const Buffer sums_there(4 * tokens, "activations"), result(4 * tokens * rows, "results");
    const auto send = [&](const Buffer& to, const void* from, size_t n) {
        check(cudaMemcpyAsync(to.as<char>(), from, n, cudaMemcpyHostToDevice, stream), "sending activations");
    };
    send(values, operand.data(), operand.size());
    send(scales_there, scales.data(), 4 * tokens);
    send(sums_there, sums.data(), 4 * tokens);
    const Buffer tiles(bytes * n_copies, "weights");
    Products products{};
    products.n_chunks = static_cast<int>(stride / kChunk);
    products.p[0] = send_matrix(stream, w, panels, tiles);
    products.p[0].y = result.as<float>();
    const Operand on_device{values.as<int8_t>(), stride, scales_there.as<float>(), sums_there.as<int>(), false};
    launch_products(stream, processors, products, on_device, n_tokens);
    check(cudaGetLastError(), "a product");
    check(cudaMemcpyAsync(y, result.as<float>(), 4 * tokens * rows, cudaMemcpyDeviceToHost, stream), "fetching results");
    check(cudaStreamSynchronize(stream), "a product");
    if (!timing) return;

    for (size_t i = 1; i < n_copies; i++)
        check(cudaMemcpyAsync(tiles.as<char>() + i * bytes, tiles.as<char>(), bytes, cudaMemcpyDeviceToDevice, stream), "copying weights");
    // The median of several rounds over all copies, each round one graph, so that the host does not hold it up.
    const auto seconds = [&](auto&& enqueue) {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t executable = nullptr;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
        enqueue();
        check(cudaStreamEndCapture(stream, &graph), "capturing");
        const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
        cudaGraphDestroy(graph);
        check(error, "capturing");
        std::vector<double> rounds;
        for (int round = 0; round < 7; round++) {
            const auto start = std::chrono::steady_clock::now();
            check(cudaGraphLaunch(executable, stream), "timing");
            check(cudaStreamSynchronize(stream), "timing");
            rounds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        }
        cudaGraphExecDestroy(executable);
        std::sort(rounds.begin(), rounds.end());
        return rounds[rounds.size() / 2];
    };
    timing->seconds = seconds([&] {
        for (size_t i = 0; i < n_copies; i++) {
            Products one = products;
            one.p[0].tiles = tiles.as<uint4>() + i * (bytes / sizeof(uint4));
            launch_products(stream, processors, one, on_device, n_tokens);
        }
    }) / static_cast<double>(n_copies);
    timing->weight_bytes = bytes;
    const size_t half = n_copies / 2 * bytes;
    const double copy = seconds([&] { check(cudaMemcpyAsync(tiles.as<char>() + half, tiles.as<char>(), half, cudaMemcpyDeviceToDevice, stream), "copying"); });
    timing->copy_bytes_per_second = 2.0 * static_cast<double>(half) / copy;  // read and written
}

}  // namespace bitnet::cuda
