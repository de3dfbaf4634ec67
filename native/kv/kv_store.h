// Paged key/value storage: blocks of 32 positions that sequences own through block tables.
//
// One block = [n_layers][n_kv_heads][K: head_dim x 32 | V: 32 x head_dim], f16, contiguous, so that a block is copied with
// one memcpy. K is stored transposed (positions in SIMD lanes). Which sequence owns a block is the scheduler's business.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"
#include "platform/memory.h"

namespace bitnet {

class KvStore {
public:
    KvStore(int n_layers, int n_kv_heads, int head_dim, int n_blocks)
        : n_kv_heads_(n_kv_heads),
          n_blocks_(n_blocks),
          head_elements_(size_t{2} * kKvBlock * static_cast<size_t>(head_dim)),
          block_elements_(static_cast<size_t>(n_layers) * static_cast<size_t>(n_kv_heads) * head_elements_),
          memory_(block_elements_ * sizeof(uint16_t) * static_cast<size_t>(n_blocks)) {}

    int n_blocks() const { return n_blocks_; }
    size_t bytes() const { return memory_.size(); }

    // f16 [head_dim][32]
    uint16_t* k(int layer, int block, int kv_head) const {
        return memory_.as<uint16_t>() + static_cast<size_t>(block) * block_elements_ +
               (static_cast<size_t>(layer) * static_cast<size_t>(n_kv_heads_) + static_cast<size_t>(kv_head)) * head_elements_;
    }
    // f16 [32][head_dim]
    uint16_t* v(int layer, int block, int kv_head) const { return k(layer, block, kv_head) + head_elements_ / 2; }

    // Start fetching K and V of one head of a block into the cache: with keys and values cold in memory this hides most of
    // the latency behind the block before (1.1x to 1.6x for a decode step's attention).
    void prefetch(int layer, int block, int kv_head) const {
#if defined(__GNUC__)
        const uint8_t* p = reinterpret_cast<const uint8_t*>(k(layer, block, kv_head));
        for (size_t offset = 0; offset < head_elements_ * sizeof(uint16_t); offset += 64) __builtin_prefetch(p + offset);
#else
        (void)layer, (void)block, (void)kv_head;
#endif
    }

    void copy_block(int source, int target) const {
        std::memcpy(k(0, target, 0), k(0, source, 0), block_elements_ * sizeof(uint16_t));
    }

private:
    int n_kv_heads_;
    int n_blocks_;
    size_t head_elements_;   // K and V of one head in one block
    size_t block_elements_;
    PageBuffer memory_;
};

}  // namespace bitnet
