// Products of quantised activations with ternary matrices, on the int8 tensor cores. The sums are exact integers, so their
// order does not matter; y = float(sum) * (w.scale * x.scale), as on the CPU.
//
// Weights are 2-bit codes w + 1 in tiles of 16 rows x 128 columns, 512 bytes, [row tile][chunk][lane 32][word 4]: word i,
// byte j, bits 2f and 2f + 1 of lane 4g + t hold   row g + 8 (i % 2),  column 32 f + 16 (i / 2) + 4 t + j.
// A warp reads a tile with one 16-byte load a lane, and (word >> 2f) & 0x03030303 is its register a_i of tile product f.
// Rows are padded to 16 and columns to 128 with zero weights. sum(w x) = sum((w + 1) x) - sum(x).
#pragma once

#include "cuda/rows.cuh"

namespace bitnet::cuda {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 512;
constexpr uint32_t kCodeMask = 0x03030303u;

constexpr size_t tile_bytes(int rows, int cols) {
    return static_cast<size_t>((rows + kTileRows - 1) / kTileRows) * static_cast<size_t>((cols + kChunk - 1) / kChunk) * kTileBytes;
}

// N9 panels (quant/ternary.h) to tiles; a thread makes one word. grid: words / 256 in y * x.
BITNET_KERNEL(256) repack(const uint8_t* panels, int rows, int cols, uint32_t* tiles) {
    const int n_chunks = (cols + kChunk - 1) / kChunk, n_tiles = (rows + kTileRows - 1) / kTileRows;
    const int n_panels = (rows + 31) / 32, k_blocks = (cols + 15) / 16;
    const size_t index = (static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= static_cast<size_t>(n_tiles) * n_chunks * (kTileBytes / 4)) return;
    const int word = static_cast<int>(index % 4), lane = static_cast<int>(index / 4 % 32);
    const int chunk = static_cast<int>(index / 128 % n_chunks), tile = static_cast<int>(index / 128 / n_chunks);
    const int row = tile * kTileRows + lane / 4 + 8 * (word % 2), t = lane % 4;
    uint32_t packed = 0;
    for (int f = 0; f < 4; f++) {
        const int k_block = chunk * 8 + 2 * f + word / 2;
        uint32_t bytes = 0x44444444u;  // zero weights
        if (row / 32 < n_panels && k_block < k_blocks)
            bytes = *reinterpret_cast<const uint32_t*>(panels + (static_cast<size_t>(row / 32) * k_blocks + k_block) * 128 + row % 32 * 4);
        for (int j = 0; j < 4; j++) {
            const uint32_t nibble = bytes >> (8 * j + (t < 2 ? 0 : 4)) & 15u;
            packed |= (t % 2 == 0 ? nibble / 3 : nibble % 3) << (8 * j + 2 * f);
        }
    }
    tiles[index] = packed;
}

struct Product {
    const uint4* tiles;
    int rows, n_tiles;
    float scale;
    const float* input_norm;  // of its operand: weights, or null
    int operand;              // which it multiplies; they lie one behind the other, n_tokens rows each
    float* y;                 // [n_tokens][rows]
};

// Up to three matrices of one width, multiplied in one launch. Without norms of their own they share an operand.
struct Products {
    Product p[3];
    int n_chunks, n_operands;
};

// The product that row tile (or block of `tiles_per_block` row tiles) `index` of all products falls into; `index` becomes its own.
BITNET_DEVICE Product product_of(const Products& products, int& index, int tiles_per_block) {
    Product product = products.p[0];
    BITNET_UNROLL for (int which = 1; which < 3; which++) {
        const int n = (product.n_tiles + tiles_per_block - 1) / tiles_per_block;
        if (index < n) break;
        index -= n;
        product = products.p[which];
    }
    return product;
}

// `x_row`: the operand's row, which is the token where all products share one.
BITNET_DEVICE void write_product(const Product& product, const Operand& x, int row, int token, int x_row, int sum) {
    product.y[static_cast<size_t>(token) * product.rows + row] =
        static_cast<float>(sum - x.sums[x_row]) * (product.scale * x.scales[x_row]);
}

constexpr int kFewThreads = 256;

// Few tokens, up to 8 kTiles: weights stream past once. `split` warps (a power of two) share a row tile, each taking every
// split-th chunk. grid: row tiles / (8 / split), groups of 8 kTiles tokens. Shared memory: 4 KiB * kTiles.
template <int kTiles>
BITNET_KERNEL(kFewThreads) multiply_few(Products products, Operand x, int n_tokens, int split) {
    constexpr int kAhead = 4;  // chunks whose weights are on their way at once
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
    const int tiles_per_block = kFewThreads / kWarp / split;
    int group = static_cast<int>(blockIdx.x);
    const Product product = product_of(products, group, tiles_per_block);
    const int first_row = product.operand * n_tokens;
    const int tile = group * tiles_per_block + warp / split, first_token = static_cast<int>(blockIdx.y) * 8 * kTiles;
    const bool inside = tile < product.n_tiles;
    const uint4* weights = product.tiles + static_cast<size_t>(inside ? tile : 0) * products.n_chunks * kWarp + lane;

    int sums[kTiles][4];
    BITNET_UNROLL for (int n = 0; n < kTiles; n++)
        BITNET_UNROLL for (int j = 0; j < 4; j++) sums[n][j] = 0;
    for (int from = warp % split; from < products.n_chunks; from += split * kAhead) {
        uint4 w[kAhead];
        BITNET_UNROLL for (int i = 0; i < kAhead; i++) {
            const int chunk = from + i * split;
            if (chunk < products.n_chunks) w[i] = load_streaming(weights + static_cast<size_t>(chunk) * kWarp);
        }
        BITNET_UNROLL for (int i = 0; i < kAhead; i++) {
            const int chunk = from + i * split;
            if (chunk >= products.n_chunks) break;
            uint32_t b[kTiles][8];
            BITNET_UNROLL for (int n = 0; n < kTiles; n++) {
                const int token = first_token + n * 8 + g;
                uint4 low = make_uint4(0, 0, 0, 0), high = low;
                if (token < n_tokens) {
                    const uint4* values =
                        reinterpret_cast<const uint4*>(x.values + static_cast<size_t>(first_row + token) * x.stride + chunk * kChunk + t * 32);
                    low = values[0];
                    high = values[1];
                }
                b[n][0] = low.x, b[n][1] = low.y, b[n][2] = low.z, b[n][3] = low.w;
                b[n][4] = high.x, b[n][5] = high.y, b[n][6] = high.z, b[n][7] = high.w;
            }
            BITNET_UNROLL for (int f = 0; f < 4; f++) {
                const uint32_t a0 = w[i].x >> 2 * f & kCodeMask, a1 = w[i].y >> 2 * f & kCodeMask;
                const uint32_t a2 = w[i].z >> 2 * f & kCodeMask, a3 = w[i].w >> 2 * f & kCodeMask;
                BITNET_UNROLL for (int n = 0; n < kTiles; n++) multiply_tile<true>(sums[n], a0, a1, a2, a3, b[n][2 * f], b[n][2 * f + 1]);
            }
        }
    }

    int* parts = reinterpret_cast<int*>(shared_memory());  // [warp 8][token 8 kTiles][row 16]
    BITNET_UNROLL for (int n = 0; n < kTiles; n++)
        BITNET_UNROLL for (int j = 0; j < 4; j++)
            parts[(warp * 8 * kTiles + n * 8 + 2 * t + j % 2) * kTileRows + g + 8 * (j / 2)] = sums[n][j];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tiles_per_block * 8 * kTiles * kTileRows; i += kFewThreads) {
        const int own_tile = i / (8 * kTiles * kTileRows), within = i % (8 * kTiles * kTileRows);
        const int row = (group * tiles_per_block + own_tile) * kTileRows + within % kTileRows, token = first_token + within / kTileRows;
        if (row >= product.rows || token >= n_tokens) continue;
        int sum = 0;
        for (int s = 0; s < split; s++) sum += parts[(own_tile * split + s) * 8 * kTiles * kTileRows + within];
        write_product(product, x, row, token, first_row + token, sum);
    }
}

// One token, whose row is made, normalised and quantised right here, by every block for itself: that costs less than a
// launch, and meanwhile the first weights are on their way. Otherwise as multiply_few<1>.
// Shared memory: one_shared_bytes.
constexpr size_t one_shared_bytes(int n) {
    return sizeof(float) * (kRowScratch + static_cast<size_t>(n)) + static_cast<size_t>((n + kChunk - 1) / kChunk * kChunk) + 32 + kFewThreads / kWarp * kTileRows * 4 + 32;
}

BITNET_KERNEL(kFewThreads) multiply_one(Products products, RowSource source, Norm norm, int split, int* not_finite) {
    constexpr int kAhead = 4;
    const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
    const int tiles_per_block = kFewThreads / kWarp / split;
    int group = static_cast<int>(blockIdx.x);
    const Product product = product_of(products, group, tiles_per_block);
    const int tile = group * tiles_per_block + warp / split;
    const uint4* weights = product.tiles + static_cast<size_t>(tile < product.n_tiles ? tile : 0) * products.n_chunks * kWarp + lane;
    uint4 w[kAhead];
    const auto load = [&](int from) {
        BITNET_UNROLL for (int i = 0; i < kAhead; i++) {
            const int chunk = from + i * split;
            if (chunk < products.n_chunks) w[i] = load_streaming(weights + static_cast<size_t>(chunk) * kWarp);
        }
    };
    load(warp % split);

    float* row = reinterpret_cast<float*>(row_scratch() + kRowScratch);
    float* scale = row + (norm.n + 3) / 4 * 4;  // and the sum behind it
    int* parts = reinterpret_cast<int*>(scale + 4);  // [warp 8][row 16]
    int8_t* values = reinterpret_cast<int8_t*>(parts + kFewThreads / kWarp * kTileRows);
    const Operand x{values, static_cast<size_t>(products.n_chunks) * kChunk, scale, reinterpret_cast<int*>(scale + 1), false};
    fill_row(row, source, norm, 0, blockIdx.x == 0);
    normalise(row, norm);
    normalise(row, {product.input_norm, norm.n, norm.eps});
    quantise(row, norm.n, x, 0, not_finite);
    __syncthreads();

    int sums[4] = {0, 0, 0, 0};
    for (int from = warp % split; from < products.n_chunks; from += split * kAhead) {
        if (from >= split) load(from);  // the first are there
        BITNET_UNROLL for (int i = 0; i < kAhead; i++) {
            const int chunk = from + i * split;
            if (chunk >= products.n_chunks) break;
            uint4 low = make_uint4(0, 0, 0, 0), high = low;  // of the eight columns of a tile the token is the first
            if (g == 0) {
                const uint4* operand = reinterpret_cast<const uint4*>(values + chunk * kChunk + t * 32);
                low = operand[0];
                high = operand[1];
            }
            const uint32_t b[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            BITNET_UNROLL for (int f = 0; f < 4; f++)
                multiply_tile<true>(sums, w[i].x >> 2 * f & kCodeMask, w[i].y >> 2 * f & kCodeMask, w[i].z >> 2 * f & kCodeMask, w[i].w >> 2 * f & kCodeMask,
                                    b[2 * f], b[2 * f + 1]);
        }
    }
    if (t == 0) {  // column 0
        parts[warp * kTileRows + g] = sums[0];
        parts[warp * kTileRows + g + 8] = sums[2];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tiles_per_block * kTileRows; i += kFewThreads) {
        const int row_index = group * tiles_per_block * kTileRows + i;
        if (row_index >= product.rows) continue;
        int sum = 0;
        for (int s = 0; s < split; s++) sum += parts[(i / kTileRows * split + s) * kTileRows + i % kTileRows];
        write_product(product, x, row_index, 0, 0, sum);
    }
}

constexpr int kManyThreads = 256;
constexpr int kManyTiles = 8;         // row tiles of a block: 128 rows
constexpr int kOperandPitch = 144;    // bytes between tokens in shared memory: no bank is met twice
template <int kTokens>
constexpr int kStageBytes = kManyTiles * kTileBytes + kTokens * kOperandPitch;  // a chunk of weights and activations

// Many tokens: blocks of 128 rows x kTokens, chunks in a ring of kStages. 8 warps, each 32 rows x kTokens / 2.
// grid: blocks of rows, blocks of tokens. Shared memory: kStages * kStageBytes<kTokens>.
template <int kTokens, int kStages>
BITNET_KERNEL_BLOCKS(kManyThreads, 2) multiply_many(Products products, Operand x, int n_tokens) {
    constexpr int kColumns = kTokens / 16;  // tiles of 8 tokens of a warp
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
    int row_block = static_cast<int>(blockIdx.x);
    const Product product = product_of(products, row_block, kManyTiles);
    const int first_row = product.operand * n_tokens;
    const int first_tile = row_block * kManyTiles, first_token = static_cast<int>(blockIdx.y) * kTokens, n_chunks = products.n_chunks;

    // What lies beyond the last row or token is loaded as the last one, and never written.
    const auto load = [&](int chunk) {
        unsigned char* stage = shared_memory() + chunk % kStages * kStageBytes<kTokens>;
        const int tile = first_tile + warp < product.n_tiles ? first_tile + warp : product.n_tiles - 1;
        copy_async(stage + thread * 16, product.tiles + (static_cast<size_t>(tile) * n_chunks + chunk) * kWarp + lane);
        BITNET_UNROLL for (int i = 0; i < kTokens * 8 / kManyThreads; i++) {
            const int piece = thread + i * kManyThreads, row = piece / 8;
            const int token = first_token + row < n_tokens ? first_token + row : n_tokens - 1;
            copy_async(stage + kManyTiles * kTileBytes + row * kOperandPitch + piece % 8 * 16,
                       x.values + static_cast<size_t>(first_row + token) * x.stride + chunk * kChunk + piece % 8 * 16);
        }
    };

    int sums[2][kColumns][4];
    BITNET_UNROLL for (int m = 0; m < 2; m++)
        BITNET_UNROLL for (int n = 0; n < kColumns; n++)
            BITNET_UNROLL for (int j = 0; j < 4; j++) sums[m][n][j] = 0;
    for (int chunk = 0; chunk < kStages - 1; chunk++) {
        if (chunk < n_chunks) load(chunk);
        copies_commit();
    }
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        copies_wait<kStages - 2>();
        __syncthreads();  // the chunk is there for all, and all are done with the one whose place is taken now
        if (chunk + kStages - 1 < n_chunks) load(chunk + kStages - 1);
        copies_commit();
        const unsigned char* stage = shared_memory() + chunk % kStages * kStageBytes<kTokens>;
        uint32_t a[2][4][4];
        BITNET_UNROLL for (int m = 0; m < 2; m++) {
            const uint4 w = *reinterpret_cast<const uint4*>(stage + (warp % 4 * 2 + m) * kTileBytes + lane * 16);
            BITNET_UNROLL for (int f = 0; f < 4; f++) {
                a[m][f][0] = w.x >> 2 * f & kCodeMask, a[m][f][1] = w.y >> 2 * f & kCodeMask;
                a[m][f][2] = w.z >> 2 * f & kCodeMask, a[m][f][3] = w.w >> 2 * f & kCodeMask;
            }
        }
        BITNET_UNROLL for (int n = 0; n < kColumns; n++) {
            const int token = warp / 4 * (kTokens / 2) + n * 8 + g;
            const uint4* values = reinterpret_cast<const uint4*>(stage + kManyTiles * kTileBytes + token * kOperandPitch + t * 32);
            const uint4 low = values[0], high = values[1];
            BITNET_UNROLL for (int m = 0; m < 2; m++) {
                multiply_tile<true>(sums[m][n], a[m][0][0], a[m][0][1], a[m][0][2], a[m][0][3], low.x, low.y);
                multiply_tile<true>(sums[m][n], a[m][1][0], a[m][1][1], a[m][1][2], a[m][1][3], low.z, low.w);
                multiply_tile<true>(sums[m][n], a[m][2][0], a[m][2][1], a[m][2][2], a[m][2][3], high.x, high.y);
                multiply_tile<true>(sums[m][n], a[m][3][0], a[m][3][1], a[m][3][2], a[m][3][3], high.z, high.w);
            }
        }
    }
    BITNET_UNROLL for (int m = 0; m < 2; m++)
        BITNET_UNROLL for (int n = 0; n < kColumns; n++)
            BITNET_UNROLL for (int j = 0; j < 4; j++) {
                const int row = (first_tile + warp % 4 * 2 + m) * kTileRows + g + 8 * (j / 2);
                const int token = first_token + warp / 4 * (kTokens / 2) + n * 8 + 2 * t + j % 2;
                if (row < product.rows && token < n_tokens) write_product(product, x, row, token, first_row + token, sums[m][n][j]);
            }
}

}  // namespace bitnet::cuda
