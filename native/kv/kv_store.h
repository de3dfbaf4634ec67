// Paged key/value storage: blocks of 32 positions that sequences own through block tables.
//
// One block = [n_layers][n_kv_heads][K | V], contiguous, so that a block is copied with one memcpy. K is stored transposed
// (positions in SIMD lanes). Which sequence owns a block is the scheduler's business.
//   f16:  K [head_dim][32], V [32][head_dim]
//   q8_0: K int8 [head_dim][32], f16 scales [n_groups][32]; V int8 [32][head_dim], f16 scales [n_groups][32]: one scale for up
//         to 32 dimensions of a position and head, 53 % of the bytes of f16 where head_dim is a multiple of 32
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"
#include "platform/memory.h"

namespace bitnet {

enum class KvType { F16, Q8_0 };

class KvStore {
public:
    KvStore(KvType type, int n_layers, int n_kv_heads, int head_dim, int n_blocks)
        : type_(type),
          n_kv_heads_(n_kv_heads),
          head_dim_(head_dim),
          n_blocks_(n_blocks),
          part_bytes_(type == KvType::Q8_0 ? kv_q8_0_bytes(head_dim) : size_t{kKvBlock} * static_cast<size_t>(head_dim) * sizeof(uint16_t)),
          block_bytes_(static_cast<size_t>(n_layers) * static_cast<size_t>(n_kv_heads) * 2 * part_bytes_),
          memory_(block_bytes_ * static_cast<size_t>(n_blocks)) {}

    KvType type() const { return type_; }
    int n_blocks() const { return n_blocks_; }
    size_t bytes() const { return memory_.size(); }

    // Keys and values of one position; k, v f32 [head_dim].
    void write(const Kernels& kernels, int layer, int block, int kv_head, int slot, const float* k, const float* v) const {
        if (type_ == KvType::Q8_0)
            kernels.kv_write_q8_0(k, v, head_dim_, slot, keys<int8_t>(layer, block, kv_head), values<int8_t>(layer, block, kv_head));
        else
            kernels.kv_write(k, v, head_dim_, slot, keys<uint16_t>(layer, block, kv_head), values<uint16_t>(layer, block, kv_head));
    }

    // Kernels::attention_block on one head of a block.
    void attend(const Kernels& kernels, int layer, int block, int kv_head, const float* q, size_t q_stride, int n_queries,
                const int* visible, float scale, float* max, float* sum, float* acc) const {
        if (type_ == KvType::Q8_0)
            kernels.attention_block_q8_0(q, q_stride, n_queries, visible, keys<int8_t>(layer, block, kv_head),
                                         values<int8_t>(layer, block, kv_head), head_dim_, scale, max, sum, acc);
        else
            kernels.attention_block(q, q_stride, n_queries, visible, keys<uint16_t>(layer, block, kv_head),
                                    values<uint16_t>(layer, block, kv_head), head_dim_, scale, max, sum, acc);
    }

    // Start fetching K and V of one head of a block into the cache: with keys and values cold in memory this hides most of
    // the latency behind the block before (1.1x to 1.6x for a decode step's attention).
    void prefetch(int layer, int block, int kv_head) const {
#if defined(__GNUC__)
        const uint8_t* p = at(layer, block, kv_head);
        for (size_t offset = 0; offset < 2 * part_bytes_; offset += 64) __builtin_prefetch(p + offset);
#else
        (void)layer, (void)block, (void)kv_head;
#endif
    }

    void copy_block(int source, int target) const { std::memcpy(at(0, target, 0), at(0, source, 0), block_bytes_); }

private:
    uint8_t* at(int layer, int block, int kv_head) const {
        return memory_.as<uint8_t>() + static_cast<size_t>(block) * block_bytes_ +
               (static_cast<size_t>(layer) * static_cast<size_t>(n_kv_heads_) + static_cast<size_t>(kv_head)) * 2 * part_bytes_;
    }
    template <typename Element>
    Element* keys(int layer, int block, int kv_head) const {
        return reinterpret_cast<Element*>(at(layer, block, kv_head));
    }
    template <typename Element>
    Element* values(int layer, int block, int kv_head) const {
        return reinterpret_cast<Element*>(at(layer, block, kv_head) + part_bytes_);
    }

    KvType type_;
    int n_kv_heads_;
    int head_dim_;
    int n_blocks_;
    size_t part_bytes_;   // K, or V, of one head in one block: a multiple of 64
    size_t block_bytes_;
    PageBuffer memory_;
};

}  // namespace bitnet
