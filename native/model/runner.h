// The forward pass: new tokens of several sequences in, final hidden states out. One function serves every architecture;
// what exists is read from the descriptor. Each token's arithmetic is the same whatever is computed beside it.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "kv/kv_store.h"
#include "model/head.h"
#include "model/model.h"
#include "platform/thread_pool.h"
#include "sampling/sampler.h"

namespace bitnet {

// The new tokens of one sequence within a step.
struct SequenceSlice {
    std::vector<int32_t> blocks;  // KV blocks of the sequence; position p lives in blocks[p / 32], slot p % 32
    int32_t start = 0;            // position of its first new token
    int32_t length = 0;           // new tokens
};

// How the ternary products are cut into pieces. None of it changes a bit of any result.
struct Tiles {
    // From this many tokens on products look up tables instead of multiplying: 1 = always, INT_MAX = never, 0 = as is fastest
    // with the kernels in use.
    int table_min_tokens = 0;
    // Rows whose sums one table lookup keeps at hand: 32 to 32 * kMostTablePanels.
    int row_block = kPanelRows * kMostTablePanels;
    // Pieces a multiply-add product is cut into for each thread: more are better balanced, fewer are longer linear streams.
    int pieces_per_thread = 8;
};

class Runner {
public:
    // Throws std::bad_alloc if the KV store or the scratch memory cannot be had.
    Runner(std::shared_ptr<Model> model, int n_blocks, int max_batch_tokens, int n_threads, const Kernels& kernels,
           KvType kv_type = KvType::F16, const Tiles& tiles = {});

    // `tokens` holds the slices' tokens one after another; `outputs` (ascending) are the indices whose final state is kept.
    // Throws InvalidRequestError for ids, positions or blocks out of range, CancelledError after cancel().
    void forward(const std::vector<int32_t>& tokens, const std::vector<SequenceSlice>& slices, const std::vector<int32_t>& outputs);

    int n_outputs() const { return n_outputs_; }
    const float* hidden() const { return hidden_.as<float>(); }  // [n_outputs][hidden_size], after the final norm
    void logits(float* out);                                     // [n_outputs][vocab], exact
    // The log-probability of one token for each output from the first on, from the exact head; NaN for the token -1.
    std::vector<double> logprobs(const std::vector<int32_t>& targets, int first_output);
    Sampled sample(int output, Sampler& sampler, int n_logprobs);

    void cancel() { cancel_.store(true, std::memory_order_relaxed); }  // from any thread
    const Model& model() const { return *model_; }
    const KvStore& kv() const { return kv_; }
    const Kernels& kernels() const { return kernels_; }
    int n_threads() const { return pool_.size(); }
    int max_batch_tokens() const { return max_batch_tokens_; }
    const Tiles& tiles() const { return tile_sizes_; }
    // Matrix products so far: by multiply-add, and by table lookup.
    uint64_t n_multiplied() const { return n_multiplied_; }
    uint64_t n_looked_up() const { return n_looked_up_; }

private:
    using Worker = ThreadPool::Worker;

    struct Product {  // y[n_tokens][rows] = x * weights^T
        const Projection* projection;
        float* y;
    };
    struct Operand {  // activations of a product, quantised
        PageBuffer values;          // int8 [T][round_up(width, 64)]
        std::vector<float> scales;  // [T]
        std::vector<int32_t> sums;  // [T]
    };
    struct AttentionItem {  // a tile of queries of one sequence that share their KV blocks
        int32_t slice, first_token, n_tokens, first_position;
    };

    void check(const std::vector<int32_t>& tokens, const std::vector<SequenceSlice>& slices, const std::vector<int32_t>& outputs) const;
    void prepare(const std::vector<int32_t>& tokens, const std::vector<SequenceSlice>& slices);
    void layer(Worker& worker, int index);
    void add_projected(size_t token, const std::vector<float>& post_norm);
    void quantize(size_t token, const float* x, int32_t width, std::initializer_list<Product> products, float* scratch);
    void quantize(Operand& operand, size_t token, const float* x, int32_t width);
    void multiply(Worker& worker, int32_t width, std::initializer_list<Product> products);
    void multiply(Worker& worker, const Operand& operand, int32_t width, std::initializer_list<Product> products);
    void attention(Worker& worker, int layer);

    std::shared_ptr<Model> model_;
    const Kernels& kernels_;
    ThreadPool pool_;
    KvStore kv_;
    OutputHead head_;
    int max_batch_tokens_;
    Tiles tile_sizes_;
    uint64_t n_multiplied_ = 0, n_looked_up_ = 0;

    // The step under way.
    const std::vector<SequenceSlice>* slices_ = nullptr;
    int32_t n_tokens_ = 0;
    int n_outputs_ = 0;
    bool head_computed_ = false;
    std::vector<int32_t> token_slice_, token_position_;  // [n_tokens]
    std::vector<AttentionItem> attention_items_;
    std::atomic<bool> cancel_{false};
    std::atomic<bool> not_finite_{false};
    bool stop_ = false;

    // Activations, f32 unless said otherwise; T = max_batch_tokens.
    PageBuffer x_;        // [T][hidden]                the residual stream
    PageBuffer normed_;   // [n_threads][2][widest]     scratch of one token
    PageBuffer q_;        // [T][n_heads][head_dim]
    PageBuffer k_, v_;    // [T][n_kv_heads][head_dim]
    PageBuffer attended_; // [T][n_heads][head_dim]
    PageBuffer gate_, up_;// [T][ffn]
    PageBuffer projected_;// [T][hidden]                output of o or down, not yet added to x
    PageBuffer hidden_;   // [T][hidden]
    PageBuffer rope_;     // [T][2][n_rot/2]            cos, sin of each token's position
    std::array<Operand, 3> operands_;  // the first is shared by products that have no norms of their own
    PageBuffer tiles_;       // int16 [T/32][widest padded to 16][32]   table-lookup operand
    PageBuffer table_scratch_;      // [n_threads][table_scratch_bytes_]
    PageBuffer attention_scratch_;  // [n_threads][attention_scratch_bytes_]
    int32_t kv_head_dim_ = 0;       // head_dim as attention has it: filled up with zeros to a multiple of 8
    size_t widest_ = 0, table_scratch_bytes_ = 0, attention_scratch_bytes_ = 0;
    int attention_tokens_ = 1;      // tokens in one attention item
};

}  // namespace bitnet
