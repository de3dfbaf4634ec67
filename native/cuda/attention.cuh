// Causal attention over the paged store of keys and values, with the CPU's operations in the CPU's order (attention_block in
// cpu/vector_scalar.cpp): one position of a block to a lane, blocks one after another in the running softmax. What does not
// depend on the block before (scores, exponentials) is computed for many blocks at once.
#pragma once

#include "cuda/rows.cuh"

namespace bitnet::cuda {

struct Attention {
    const float* q;      // [n_tokens][n_heads][head_dim], rotated
    float* out;          // the same shape
    int n_heads;
    float scale;         // of the scores
};

// q . k of one position of a block (lane), before scaling. query: [head_dim].
BITNET_DEVICE float score_of(const KvLayer& kv, const uint8_t* keys, const float* query, int lane) {
    float score = 0;
    if (kv.q8_0) {
        const int8_t* values = reinterpret_cast<const int8_t*>(keys);
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(keys + kKvBlock * kv.head_dim);
        for (int from = 0, group = 0; from < kv.head_dim; from += kKvGroup, group++) {
            const int to = from + kKvGroup < kv.head_dim ? from + kKvGroup : kv.head_dim;
            float dot = 0;
            for (int d = from; d < to; d++) dot = fma_(query[d], static_cast<float>(values[d * kKvBlock + lane]), dot);
            score = fma_(half_to_float(scales[group * kKvBlock + lane]), dot, score);
        }
    } else {
        const uint16_t* values = reinterpret_cast<const uint16_t*>(keys);
        BITNET_UNROLL_BY_8 for (int d = 0; d < kv.head_dim; d++) score = fma_(query[d], half_to_float(values[d * kKvBlock + lane]), score);
    }
    return score;
}

// value = value * correction + sum of weight * v over the visible positions of a block, dimension d.
BITNET_DEVICE float accumulate(const KvLayer& kv, const uint8_t* block_values, const float* weights, int visible, float correction, int d, float value) {
    value = value * correction;
    if (kv.q8_0) {
        const int8_t* values = reinterpret_cast<const int8_t*>(block_values);
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(block_values + kKvBlock * kv.head_dim) + d / kKvGroup * kKvBlock;
        for (int p = 0; p < visible; p++)
            value = fma_(weights[p] * half_to_float(scales[p]), static_cast<float>(values[p * kv.head_dim + d]), value);
    } else {
        const uint16_t* values = reinterpret_cast<const uint16_t*>(block_values);
        BITNET_UNROLL_BY_8 for (int p = 0; p < visible; p++) value = fma_(weights[p], half_to_float(values[p * kv.head_dim + d]), value);
    }
    return value;
}

constexpr int kAttentionThreads = 256;
constexpr int kSegment = 64;  // blocks of 32 positions whose scores are at hand at once

constexpr size_t attend_shared_bytes(int head_dim) {
    return sizeof(float) * (2 * static_cast<size_t>(head_dim) + kSegment * (kKvBlock + 4) + 4);
}

// One query a block of threads: any head_dim. grid: heads, the tokens listed.
BITNET_KERNEL(kAttentionThreads) attend(Attention a, StepTokens step, KvLayer kv, const int* tokens) {
    const int head = static_cast<int>(blockIdx.x), token = tokens[blockIdx.y];
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, n_warps = kAttentionThreads / kWarp;
    const int kv_head = head / (a.n_heads / kv.n_kv_heads), head_dim = kv.head_dim;
    const int n_visible = step.positions[token] + 1, n_blocks = (n_visible + kKvBlock - 1) / kKvBlock;
    const int* table = step.tables + step.table_starts[token];
    const size_t row = (static_cast<size_t>(token) * a.n_heads + head) * head_dim;

    float* query = reinterpret_cast<float*>(shared_memory());  // [head_dim]
    float* value = query + head_dim;                           // [head_dim]
    float* weights = value + head_dim;                         // [kSegment][32] scores, then their exponentials
    float* block_max = weights + kSegment * kKvBlock;          // [kSegment] then the running maximum
    float* drop = block_max + kSegment;                        // [kSegment] maximum before - maximum after
    float* correction = drop + kSegment;                       // [kSegment]
    float* block_sum = correction + kSegment;                  // [kSegment]
    float* running = block_sum + kSegment;                     // maximum, sum

    for (int d = thread; d < head_dim; d += kAttentionThreads) {
        query[d] = a.q[row + d];
        value[d] = 0;
    }
    if (thread == 0) running[0] = -infinity(), running[1] = 0;
    __syncthreads();

    for (int from = 0; from < n_blocks; from += kSegment) {
        const int count = n_blocks - from < kSegment ? n_blocks - from : kSegment;
        for (int b = warp; b < count; b += n_warps) {
            const float score = score_of(kv, kv.keys(table[from + b], kv_head), query, lane) * a.scale;
            const float visible_score = (from + b) * kKvBlock + lane < n_visible ? score : -infinity();
            weights[b * kKvBlock + lane] = visible_score;
            const float max = max_lanes(visible_score);
            if (lane == 0) block_max[b] = max;
        }
        __syncthreads();
        if (thread == 0) {
            float max = running[0];
            for (int b = 0; b < count; b++) {
                const float next = larger(max, block_max[b]);
                drop[b] = max - next;
                block_max[b] = max = next;
            }
            running[0] = max;
        }
        __syncthreads();
        for (int b = warp; b < count; b += n_warps) {
            const float weight = exponential(weights[b * kKvBlock + lane] - block_max[b]);
            weights[b * kKvBlock + lane] = weight;
            const float sum = sum_lanes(weight);
            if (lane == 0) {
                block_sum[b] = sum;
                correction[b] = exponential(drop[b]);
            }
        }
        __syncthreads();
        if (thread == kAttentionThreads - 1) {  // of the warp that has least to do below
            float sum = running[1];
            for (int b = 0; b < count; b++) sum = fma_(sum, correction[b], block_sum[b]);
            running[1] = sum;
        }
        for (int d = thread; d < head_dim; d += kAttentionThreads) {
            float v = value[d];
            for (int b = 0; b < count; b++) {
                const int left = n_visible - (from + b) * kKvBlock;
                v = accumulate(kv, kv.values(table[from + b], kv_head), weights + b * kKvBlock, left < kKvBlock ? left : kKvBlock,
                               correction[b], d, v);
            }
            value[d] = v;
        }
        __syncthreads();
    }
    for (int d = thread; d < head_dim; d += kAttentionThreads) a.out[row + d] = value[d] / running[1];
}

// ---- many queries of one sequence ---------------------------------------------------------------------------------------

constexpr int kTileWarps = 4;
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kWarpQueries = 8;                             // of a warp
constexpr int kTileQueries = kTileWarps * kWarpQueries;     // of a block of threads

// Neighbouring tokens of one sequence: their heads that share a KV head are the queries, token by token.
struct QueryTile {
    int first_token, n_tokens;
};

// Floats between queries in shared memory, which are read four at a time.
BITNET_BOTH constexpr int query_pitch(int head_dim) { return (head_dim + 3) / 4 * 4; }

constexpr size_t attend_tile_shared_bytes(int head_dim, bool q8_0) {
    const size_t width = static_cast<size_t>(head_dim), pitch = static_cast<size_t>(query_pitch(head_dim)), groups = (width + kKvGroup - 1) / kKvGroup;
    const size_t part = q8_0 ? kKvBlock * (width + 2 * groups) : kKvBlock * width * 2;
    return 2 * part + sizeof(float) * (kTileQueries * pitch + kTileQueries * kKvBlock);
}

// head_dim up to 32 kDims. A block of keys and values is brought to shared memory once for 32 queries. grid: KV heads, tiles.
template <int kDims>
BITNET_KERNEL(kTileThreads) attend_tile(Attention a, StepTokens step, KvLayer kv, const QueryTile* tiles) {
    const QueryTile tile = tiles[blockIdx.y];
    const int kv_head = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
    const int head_dim = kv.head_dim, pitch = query_pitch(head_dim), group = a.n_heads / kv.n_kv_heads, n_queries = tile.n_tokens * group;
    const int first_position = step.positions[tile.first_token], last_position = first_position + tile.n_tokens - 1;
    const int* table = step.tables + step.table_starts[tile.first_token];

    unsigned char* keys = shared_memory();
    unsigned char* values = keys + kv.part_bytes;
    float* queries = reinterpret_cast<float*>(values + kv.part_bytes);         // [32][pitch]
    float* weights = queries + kTileQueries * pitch + warp * kWarpQueries * kKvBlock;  // [8][32] of this warp

    const auto row_of = [&](int j) {
        return (static_cast<size_t>(tile.first_token + j / group) * a.n_heads + kv_head * group + j % group) * head_dim;
    };
    for (int i = thread; i < n_queries * head_dim; i += kTileThreads) queries[i / head_dim * pitch + i % head_dim] = a.q[row_of(i / head_dim) + i % head_dim];

    float max[kWarpQueries], sum[kWarpQueries], acc[kWarpQueries][kDims];
    BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) {
        max[i] = -infinity();
        sum[i] = 0;
        BITNET_UNROLL for (int c = 0; c < kDims; c++) acc[i][c] = 0;
    }
    const int first_query = warp * kWarpQueries;
    const float* own = queries + first_query * pitch;

    for (int b = 0; b <= last_position / kKvBlock; b++) {
        __syncthreads();
        const uint4* source = reinterpret_cast<const uint4*>(kv.keys(table[b], kv_head));  // V lies behind K
        for (int i = thread; i < static_cast<int>(2 * kv.part_bytes / 16); i += kTileThreads) reinterpret_cast<uint4*>(keys)[i] = source[i];
        __syncthreads();

        float score[kWarpQueries];
        BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) score[i] = 0;
        if (kv.q8_0) {
            const uint16_t* scales = reinterpret_cast<const uint16_t*>(keys + kKvBlock * head_dim);
            for (int from = 0, g = 0; from < head_dim; from += kKvGroup, g++) {
                const int to = from + kKvGroup < head_dim ? from + kKvGroup : head_dim;
                float dot[kWarpQueries];
                BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) dot[i] = 0;
                for (int d = from; d < to; d++) {
                    const float k = static_cast<float>(reinterpret_cast<const int8_t*>(keys)[d * kKvBlock + lane]);
                    BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) dot[i] = fma_(own[i * pitch + d], k, dot[i]);
                }
                const float scale = half_to_float(scales[g * kKvBlock + lane]);
                BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) score[i] = fma_(scale, dot[i], score[i]);
            }
        } else {
            const uint16_t* k = reinterpret_cast<const uint16_t*>(keys) + lane;
            int d = 0;
            for (; d + 4 <= head_dim; d += 4) {
                const float k0 = half_to_float(k[d * kKvBlock]), k1 = half_to_float(k[(d + 1) * kKvBlock]);
                const float k2 = half_to_float(k[(d + 2) * kKvBlock]), k3 = half_to_float(k[(d + 3) * kKvBlock]);
                BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) {
                    const float4 q = *reinterpret_cast<const float4*>(own + i * pitch + d);
                    score[i] = fma_(q.w, k3, fma_(q.z, k2, fma_(q.y, k1, fma_(q.x, k0, score[i]))));
                }
            }
            for (; d < head_dim; d++) {
                const float k0 = half_to_float(k[d * kKvBlock]);
                BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) score[i] = fma_(own[i * pitch + d], k0, score[i]);
            }
        }

        int most_visible = 0;
        BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) {
            const int query = first_query + i;
            int visible = query < n_queries ? first_position + query / group + 1 - b * kKvBlock : 0;
            visible = visible < 0 ? 0 : visible > kKvBlock ? kKvBlock : visible;
            most_visible = visible > most_visible ? visible : most_visible;
            if (visible == 0) {  // the query is left as it is: 0 weights, and no correction
                weights[i * kKvBlock + lane] = 0;
                continue;
            }
            const float scaled = lane < visible ? score[i] * a.scale : -infinity();
            const float next = larger(max[i], max_lanes(scaled));
            const float correction = exponential(max[i] - next), weight = exponential(scaled - next);
            max[i] = next;
            sum[i] = fma_(sum[i], correction, sum_lanes(weight));
            weights[i * kKvBlock + lane] = weight;
            BITNET_UNROLL for (int c = 0; c < kDims; c++) acc[i][c] = acc[i][c] * correction;
        }
        __syncwarp();

        // A weight of 0 adds 0, so queries that see less than others need no case of their own; but what nobody has written
        // yet is not to be touched: NaN * 0 is NaN.
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(values + kKvBlock * head_dim);
        for (int p = 0; p < most_visible; p += 4)
            BITNET_UNROLL for (int c = 0; c < kDims; c++) {
                const int d = c * kWarp + lane;
                if (d >= head_dim) continue;
                float v[4], scale[4];
                BITNET_UNROLL for (int j = 0; j < 4; j++) {
                    const int at = (p + j) * head_dim + d;
                    v[j] = scale[j] = 0;
                    if (p + j >= most_visible) continue;
                    if (kv.q8_0) {
                        v[j] = static_cast<float>(reinterpret_cast<const int8_t*>(values)[at]);
                        scale[j] = half_to_float(scales[c * kKvBlock + p + j]);
                    } else {
                        v[j] = half_to_float(reinterpret_cast<const uint16_t*>(values)[at]);
                    }
                }
                BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) {
                    float4 w = *reinterpret_cast<const float4*>(weights + i * kKvBlock + p);
                    if (kv.q8_0) w.x = w.x * scale[0], w.y = w.y * scale[1], w.z = w.z * scale[2], w.w = w.w * scale[3];
                    acc[i][c] = fma_(w.w, v[3], fma_(w.z, v[2], fma_(w.y, v[1], fma_(w.x, v[0], acc[i][c]))));
                }
            }
        __syncwarp();
    }
    BITNET_UNROLL for (int i = 0; i < kWarpQueries; i++) {
        const int query = first_query + i;
        if (query >= n_queries) break;
        BITNET_UNROLL for (int c = 0; c < kDims; c++) {
            const int d = c * kWarp + lane;
            if (d < head_dim) a.out[row_of(query) + d] = acc[i][c] / sum[i];
        }
    }
}

}  // namespace bitnet::cuda
