#include "model/runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/statistics.h"
#include "platform/errors.h"
#include "quant/dense.h"

namespace bitnet {

namespace {

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Queries one attention call handles: enough to reuse each decoded K/V block, few enough to stay in L1/L2.
constexpr int kAttentionQueries = 32;
// Panels (32 rows) a table-lookup call should have at least, to be worth building its tables.
constexpr int64_t kMinTablePanels = 40;

// Rows of logits that log-probabilities are made of at a time: 32 MiB with a vocabulary of 128,256.
constexpr size_t kLogprobRows = 64;

size_t floats(size_t n) { return n * sizeof(float); }

// What the attention kernels make of a head: a multiple of 8.
int32_t padded_head_dim(const ModelSizes& s) { return static_cast<int32_t>(round_up(static_cast<size_t>(s.head_dim), 8)); }

// Whether products of the same input need operands of their own.
template <class Products>
bool have_own_norms(const Products& products) {
    return std::any_of(products.begin(), products.end(), [](const auto& product) { return !product.projection->input_norm.empty(); });
}

}  // namespace

Runner::Runner(std::shared_ptr<Model> model, int n_blocks, int max_batch_tokens, int n_threads, const Kernels& kernels, KvType kv_type,
               const Tiles& tiles, std::unique_ptr<Offload> offload)
    : model_(std::move(model)),
      kernels_(kernels),
      pool_(n_threads),
      offload_(std::move(offload)),
      first_layer_(offload_ ? offload_->n_layers() : 0),
      kv_(kv_type, model_->sizes().n_layers - first_layer_, model_->sizes().n_kv_heads, padded_head_dim(model_->sizes()), n_blocks),
      head_(*model_, kernels_, pool_, offload_ && offload_->has_head() ? offload_.get() : nullptr),
      max_batch_tokens_(max_batch_tokens),
      tile_sizes_(tiles) {
    if (tile_sizes_.table_min_tokens == 0) tile_sizes_.table_min_tokens = kernels_.table_min_tokens;
    const ModelSizes& s = model_->sizes();
    const size_t n = static_cast<size_t>(max_batch_tokens), threads = static_cast<size_t>(pool_.size());
    const size_t hidden = static_cast<size_t>(s.hidden_size), ffn = static_cast<size_t>(s.ffn_size);
    const size_t q = static_cast<size_t>(s.q_size()), kv = static_cast<size_t>(s.kv_size());
    widest_ = round_up(std::max({hidden, ffn, q}), 64);
    x_ = PageBuffer(floats(n * hidden));
    normed_ = PageBuffer(floats(threads * 2 * widest_));
    q_ = PageBuffer(floats(n * q));
    k_ = PageBuffer(floats(n * kv));
    v_ = PageBuffer(floats(n * kv));
    attended_ = PageBuffer(floats(n * q));
    gate_ = PageBuffer(floats(n * ffn));
    up_ = PageBuffer(floats(n * ffn));
    projected_ = PageBuffer(floats(n * hidden));
    hidden_ = PageBuffer(floats(n * hidden));
    rope_ = PageBuffer(floats(n * static_cast<size_t>(s.n_rot)));
    for (Operand& operand : operands_) {
        operand.values = PageBuffer(n * widest_);
        operand.scales.resize(n);
        operand.sums.resize(n);
        if (!model_->architecture().projection_norms) break;
    }
    tiles_ = PageBuffer(round_up(n, kTableTokens) * widest_ * sizeof(int16_t));
    const int32_t most_panels = static_cast<int32_t>(round_up(std::max({hidden, ffn, q}), kPanelRows)) / kPanelRows;
    table_scratch_bytes_ = round_up(kernels_.table_scratch_bytes(most_panels), 4096);
    table_scratch_ = PageBuffer(threads * table_scratch_bytes_);

    const int group = s.n_heads / s.n_kv_heads;
    attention_tokens_ = std::max(1, kAttentionQueries / group);
    // q and acc [queries][head_dim], max and sum [queries], visible [queries]
    const size_t queries = static_cast<size_t>(attention_tokens_ * group);
    kv_head_dim_ = padded_head_dim(s);
    attention_scratch_bytes_ = round_up(floats(queries * (2 * static_cast<size_t>(kv_head_dim_) + 3)) + 64, 4096);
    attention_scratch_ = PageBuffer(threads * attention_scratch_bytes_);
}

void Runner::check(const std::vector<int32_t>& tokens, const std::vector<SequenceSlice>& slices,
                   const std::vector<int32_t>& outputs) const {
    const auto fail = [](const std::string& message) { throw InvalidRequestError(message); };
    if (tokens.empty() || tokens.size() > static_cast<size_t>(max_batch_tokens_))
        fail("a step must have 1.." + std::to_string(max_batch_tokens_) + " tokens, found " + std::to_string(tokens.size()));
    for (int32_t token : tokens)
        if (token < 0 || token >= model_->sizes().vocab_size)
            fail("token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(model_->sizes().vocab_size));
    int64_t total = 0;
    for (const SequenceSlice& slice : slices) {
        if (slice.start < 0 || slice.length < 1) fail("a sequence slice must start at 0 or later and have at least one token");
        total += slice.length;
        if (int64_t{slice.start} + slice.length > static_cast<int64_t>(slice.blocks.size()) * kKvBlock)
            fail("positions up to " + std::to_string(int64_t{slice.start} + slice.length) + " do not fit in " +
                 std::to_string(slice.blocks.size()) + " KV blocks");
        for (int32_t block : slice.blocks)
            if (block < 0 || block >= kv_.n_blocks()) fail("KV block " + std::to_string(block) + " does not exist");
    }
    if (total != static_cast<int64_t>(tokens.size())) fail("the slices' lengths do not add up to the number of tokens");
    for (size_t i = 0; i < outputs.size(); i++)
        if (outputs[i] < 0 || static_cast<size_t>(outputs[i]) >= tokens.size() || (i > 0 && outputs[i] <= outputs[i - 1]))
            fail("outputs must be ascending indices of the step's tokens");
}

void Runner::prepare(const std::vector<int32_t>& tokens, const std::vector<SequenceSlice>& slices) {
    n_tokens_ = static_cast<int32_t>(tokens.size());
    slices_ = &slices;
    token_slice_.clear();
    token_position_.clear();
    attention_items_.clear();
    int32_t first = 0;
    for (size_t s = 0; s < slices.size(); s++) {
        const SequenceSlice& slice = slices[s];
        for (int32_t i = 0; i < slice.length; i++) {
            token_slice_.push_back(static_cast<int32_t>(s));
            token_position_.push_back(slice.start + i);
        }
        for (int32_t i = 0; i < slice.length; i += attention_tokens_)
            attention_items_.push_back({static_cast<int32_t>(s), first + i, std::min(attention_tokens_, slice.length - i), slice.start + i});
        first += slice.length;
    }
}

void Runner::forward(const std::vector<int32_t>& tokens, const std::vector<SequenceSlice>& slices, const std::vector<int32_t>& outputs) {
    check(tokens, slices, outputs);
    prepare(tokens, slices);
    const ModelSizes& s = model_->sizes();
    const size_t hidden = static_cast<size_t>(s.hidden_size);
    n_outputs_ = 0;
    head_computed_ = false;
    not_finite_ = false;
    stop_ = false;
    if (offload_ && cancel_.exchange(false)) throw CancelledError();
    embed(tokens);
    if (offload_) {
        const float* x = offload_->has_head() ? nullptr : x_.as<float>();
        offload_->forward(tokens, x, rope_.as<float>(), slices, outputs, offload_->is_whole() ? hidden_.as<float>() : x_.as<float>());
        if (offload_->is_whole()) {
            n_outputs_ = static_cast<int>(outputs.size());
            return;
        }
    }
    pool_.run([&](Worker& worker) {
        for (int index = first_layer_; index < s.n_layers; index++) {
            if (worker.thread() == 0) stop_ = cancel_.load(std::memory_order_relaxed);
            worker.barrier();
            if (stop_) return;
            layer(worker, index);
        }
        worker.parallel_for(static_cast<int64_t>(outputs.size()), 1, [&](int64_t begin, int64_t end) {
            for (int64_t o = begin; o < end; o++) {
                const size_t t = static_cast<size_t>(outputs[static_cast<size_t>(o)]);
                float* x = x_.as<float>() + t * hidden;
                add_projected(t, model_->layers().back().post_ffn_norm);
                float* out = hidden_.as<float>() + static_cast<size_t>(o) * hidden;
                kernels_.rms_norm(x, model_->output_norm().data(), s.hidden_size, s.norm_eps, out);
                if (!std::all_of(out, out + hidden, [](float value) { return std::isfinite(value); })) not_finite_ = true;
            }
        });
    });
    if (stop_) {
        cancel_ = false;
        throw CancelledError();
    }
    if (not_finite_) throw ModelFileError(model_->path() + ": the weights produce values that are not finite: the file is damaged");
    n_outputs_ = static_cast<int>(outputs.size());
}

// The tokens' rows of the embedding into x_, unless a GPU has it, and the angles of their positions into rope_.
void Runner::embed(const std::vector<int32_t>& tokens) {
    const ModelSizes& s = model_->sizes();
    const size_t hidden = static_cast<size_t>(s.hidden_size);
    const float embedding_scale = model_->embedding_scale();
    pool_.run([&](Worker& worker) {
        worker.parallel_for(n_tokens_, 8, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                const DenseRows& rows = model_->embedding();
                if (!offload_ || !offload_->has_head()) {
                    float* x = x_.as<float>() + static_cast<size_t>(t) * hidden;
                    decode_row(rows.type, rows.row(tokens[static_cast<size_t>(t)]), hidden, x);
                    if (embedding_scale != 1)
                        for (size_t i = 0; i < hidden; i++) x[i] *= embedding_scale;
                }
                float* cos = rope_.as<float>() + static_cast<size_t>(t) * static_cast<size_t>(s.n_rot);
                for (int32_t i = 0; i < s.n_rot / 2; i++) {
                    const double angle = token_position_[static_cast<size_t>(t)] * std::pow(static_cast<double>(s.rope_base), -2.0 * i / s.n_rot);
                    cos[i] = static_cast<float>(std::cos(angle));
                    cos[s.n_rot / 2 + i] = static_cast<float>(std::sin(angle));
                }
            }
        });
    });
}

// x += what attention or FFN gave, which is normed before where the model has it.
void Runner::add_projected(size_t token, const std::vector<float>& post_norm) {
    const ModelSizes& s = model_->sizes();
    float* projected = projected_.as<float>() + token * static_cast<size_t>(s.hidden_size);
    if (!post_norm.empty()) kernels_.rms_norm(projected, post_norm.data(), s.hidden_size, s.norm_eps, projected);
    kernels_.add(projected, s.hidden_size, x_.as<float>() + token * static_cast<size_t>(s.hidden_size));
}

// Quantise one token's activations x [width] into the operands of the products that they are for. scratch [width].
void Runner::quantize(size_t token, const float* x, int32_t width, std::initializer_list<Product> products, float* scratch) {
    if (!have_own_norms(products)) {
        quantize(operands_[0], token, x, width);
        return;
    }
    size_t index = 0;
    for (const Product& product : products) {
        const std::vector<float>& norm = product.projection->input_norm;
        if (!norm.empty()) kernels_.rms_norm(x, norm.data(), width, model_->sizes().norm_eps, scratch);
        quantize(operands_[index++], token, norm.empty() ? x : scratch, width);
    }
}

void Runner::quantize(Operand& operand, size_t token, const float* x, int32_t width) {
    const size_t stride = round_up(static_cast<size_t>(width), 64);
    kernels_.quantize_row(x, width, stride, operand.values.as<int8_t>() + token * stride, &operand.scales[token], &operand.sums[token]);
    if (std::isnan(operand.scales[token])) not_finite_ = true;
}

void Runner::layer(Worker& worker, int index) {
    const ModelSizes& s = model_->sizes();
    const LayerWeights& w = model_->layers()[static_cast<size_t>(index)];
    const size_t hidden = static_cast<size_t>(s.hidden_size), ffn = static_cast<size_t>(s.ffn_size);
    const size_t q_size = static_cast<size_t>(s.q_size()), kv_size = static_cast<size_t>(s.kv_size());
    float* scratch = normed_.as<float>() + static_cast<size_t>(worker.thread()) * 2 * widest_;
    float* more_scratch = scratch + widest_;
    const auto each_token = [&](auto&& f) {
        worker.parallel_for(n_tokens_, 4, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) f(static_cast<size_t>(t));
        });
    };

    // a = RMSNorm(x); q, k, v = BitLinear(a)
    const std::initializer_list<Product> qkv = {{&w.q, q_.as<float>()}, {&w.k, k_.as<float>()}, {&w.v, v_.as<float>()}};
    each_token([&](size_t t) {
        float* x = x_.as<float>() + t * hidden;
        if (index > first_layer_) add_projected(t, model_->layers()[static_cast<size_t>(index) - 1].post_ffn_norm);
        kernels_.rms_norm(x, w.attn_norm.data(), s.hidden_size, s.norm_eps, scratch);
        quantize(t, scratch, s.hidden_size, qkv, more_scratch);
    });
    multiply(worker, s.hidden_size, qkv);

    // norms of heads; RoPE; keys and values into the KV store
    each_token([&](size_t t) {
        const float* cos = rope_.as<float>() + t * static_cast<size_t>(s.n_rot);
        const float* sin = cos + s.n_rot / 2;
        const auto prepare_heads = [&](float* heads, int32_t n_heads, const std::vector<float>& norm) {
            for (int32_t head = 0; head < n_heads && !norm.empty(); head++)
                kernels_.rms_norm(heads + head * s.head_dim, norm.data(), s.head_dim, s.norm_eps, heads + head * s.head_dim);
            kernels_.rope_neox(heads, n_heads, s.head_dim, s.n_rot, cos, sin);
        };
        const float* k = k_.as<float>() + t * kv_size;
        const float* v = v_.as<float>() + t * kv_size;
        prepare_heads(q_.as<float>() + t * q_size, s.n_heads, w.q_head_norm);
        prepare_heads(k_.as<float>() + t * kv_size, s.n_kv_heads, w.k_head_norm);
        const int32_t position = token_position_[t];
        const int32_t block = (*slices_)[static_cast<size_t>(token_slice_[t])].blocks[static_cast<size_t>(position / kKvBlock)];
        std::fill_n(scratch, kv_head_dim_, 0.0f);
        std::fill_n(more_scratch, kv_head_dim_, 0.0f);
        for (int32_t head = 0; head < s.n_kv_heads; head++) {
            std::copy_n(k + head * s.head_dim, s.head_dim, scratch);
            std::copy_n(v + head * s.head_dim, s.head_dim, more_scratch);
            kv_.write(kernels_, index - first_layer_, block, head, position % kKvBlock, scratch, more_scratch);
        }
    });
    attention(worker, index);

    // x += BitLinear_o(sub_norm(attended))
    const std::initializer_list<Product> o = {{&w.o, projected_.as<float>()}};
    each_token([&](size_t t) { quantize(t, attended_.as<float>() + t * q_size, s.q_size(), o, scratch); });
    multiply(worker, s.q_size(), o);

    // f = RMSNorm(x); u = activation(gate(f)) * up(f); x += BitLinear_down(sub_norm(u))
    const std::initializer_list<Product> gate_up = {{&w.gate, gate_.as<float>()}, {&w.up, up_.as<float>()}};
    each_token([&](size_t t) {
        float* x = x_.as<float>() + t * hidden;
        add_projected(t, w.post_attn_norm);
        kernels_.rms_norm(x, w.ffn_norm.data(), s.hidden_size, s.norm_eps, scratch);
        quantize(t, scratch, s.hidden_size, gate_up, more_scratch);
    });
    multiply(worker, s.hidden_size, gate_up);
    const std::initializer_list<Product> down = {{&w.down, projected_.as<float>()}};
    const auto activate = model_->activation() == Activation::Relu2  ? kernels_.relu2_mul
                          : model_->activation() == Activation::Silu ? kernels_.silu_mul
                                                                     : kernels_.gelu_mul;
    each_token([&](size_t t) {
        activate(gate_.as<float>() + t * ffn, up_.as<float>() + t * ffn, s.ffn_size, scratch);
        quantize(t, scratch, s.ffn_size, down, more_scratch);
    });
    multiply(worker, s.ffn_size, down);  // added to x at the start of the next layer
}

// The products of one input: together, or each with its own operand.
void Runner::multiply(Worker& worker, int32_t width, std::initializer_list<Product> products) {
    if (!have_own_norms(products)) {
        multiply(worker, operands_[0], width, products);
        return;
    }
    size_t index = 0;
    for (const Product& product : products) multiply(worker, operands_[index++], width, {product});
}

// All products of the quantised activations [n_tokens][width] with matrices of that width, as one piece of shared work over
// the panels of all of them: few tokens by multiply-add; from tile_sizes_.table_min_tokens on, in tiles of 32 tokens
// by table lookup.
void Runner::multiply(Worker& worker, const Operand& operand, int32_t width, std::initializer_list<Product> products) {
    const size_t stride = round_up(static_cast<size_t>(width), 64);
    const QuantizedRows x{operand.values.as<int8_t>(), stride, operand.scales.data(), operand.sums.data()};
    int64_t n_panels = 0;
    for (const Product& product : products) n_panels += product.projection->weights.n_panels;

    // f(weights, y, panel_begin, panel_end) for the part of every matrix inside [begin, end) of the joined panels
    const auto for_panels = [&](int64_t begin, int64_t end, auto&& f) {
        int64_t first = 0;
        for (const Product& product : products) {
            const int64_t from = std::max(begin, first), to = std::min(end, first + product.projection->weights.n_panels);
            if (from < to) f(product.projection->weights, product.y, static_cast<int>(from - first), static_cast<int>(to - first));
            first += product.projection->weights.n_panels;
        }
    };
    const bool look_up = n_tokens_ >= tile_sizes_.table_min_tokens;
    if (worker.thread() == 0) (look_up ? n_looked_up_ : n_multiplied_) += products.size();
    if (!look_up) {
        const int64_t n_pieces = int64_t{tile_sizes_.pieces_per_thread} * worker.n_threads();
        worker.parallel_for(n_panels, std::max<int64_t>(2, n_panels / n_pieces), [&](int64_t begin, int64_t end) {
            for_panels(begin, end, [&](const TernaryWeights& weights, float* y, int from, int to) {
                kernels_.ternary_direct(weights, from, to, x, n_tokens_, y, static_cast<size_t>(weights.rows));
            });
        });
        return;
    }

    const int32_t k_blocks = products.begin()->projection->weights.k_blocks;
    const int64_t n_tiles = (n_tokens_ + kTableTokens - 1) / kTableTokens;
    const auto tile_at = [&](int64_t tile) {
        return tiles_.as<int16_t>() + static_cast<size_t>(tile) * static_cast<size_t>(k_blocks) * kBlockCols * kTableTokens;
    };
    const auto tile_tokens = [&](int64_t tile) { return std::min(kTableTokens, n_tokens_ - static_cast<int>(tile) * kTableTokens); };
    worker.parallel_for(n_tiles, 1, [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; tile++)
            kernels_.table_tile(x, static_cast<int>(tile) * kTableTokens, tile_tokens(tile), k_blocks, tile_at(tile));
    });
    // Each call builds its tables anew, so panels are split only when there are too few tiles for the threads.
    const int64_t pieces = (int64_t{4} * worker.n_threads() + n_tiles - 1) / n_tiles;
    const int64_t piece_panels = std::max(std::min(kMinTablePanels, n_panels), (n_panels + pieces - 1) / pieces);
    const int64_t n_pieces = (n_panels + piece_panels - 1) / piece_panels;
    const int row_block = tile_sizes_.row_block / kPanelRows;
    worker.parallel_for(n_tiles * n_pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; item++) {
            const int64_t tile = item % n_tiles, from = item / n_tiles * piece_panels;
            for_panels(from, std::min(from + piece_panels, n_panels), [&](const TernaryWeights& weights, float* y, int p0, int p1) {
                const int n_blocks = (p1 - p0 + row_block - 1) / row_block;
                for (int block = 0; block < n_blocks; block++)  // of nearly equal size
                    kernels_.ternary_table(weights, p0 + (p1 - p0) * block / n_blocks, p0 + (p1 - p0) * (block + 1) / n_blocks,
                                           tile_at(tile), x, static_cast<int>(tile) * kTableTokens, tile_tokens(tile),
                                           tile_sizes_.table_min_tokens, y, static_cast<size_t>(weights.rows),
                                           table_scratch_.data() + static_cast<size_t>(worker.thread()) * table_scratch_bytes_);
            });
        }
    });
}

// Causal attention of every new token over its sequence's KV blocks; q -> attended, [n_tokens][n_heads][head_dim].
void Runner::attention(Worker& worker, int layer) {
    layer -= first_layer_;  // as the store counts
    const ModelSizes& s = model_->sizes();
    const int32_t group = s.n_heads / s.n_kv_heads;
    const size_t head_dim = static_cast<size_t>(s.head_dim), padded = static_cast<size_t>(kv_head_dim_);
    const size_t q_size = static_cast<size_t>(s.q_size());
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    float* q = reinterpret_cast<float*>(attention_scratch_.data() + static_cast<size_t>(worker.thread()) * attention_scratch_bytes_);
    const size_t most_queries = static_cast<size_t>(attention_tokens_ * group);
    float* acc = q + most_queries * padded;
    float* max = acc + most_queries * padded;
    float* sum = max + most_queries;
    int* visible = reinterpret_cast<int*>(sum + most_queries);

    worker.parallel_for(static_cast<int64_t>(attention_items_.size()) * s.n_kv_heads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const AttentionItem& item = attention_items_[static_cast<size_t>(i / s.n_kv_heads)];
            const int32_t kv_head = static_cast<int32_t>(i % s.n_kv_heads);
            const int32_t n_queries = item.n_tokens * group;
            // Query j: head j % group of the group, of token j / group.
            const auto head_at = [&](float* base, int32_t j) {
                const size_t token = static_cast<size_t>(item.first_token + j / group), head = static_cast<size_t>(kv_head * group + j % group);
                return base + token * q_size + head * head_dim;
            };
            for (int32_t j = 0; j < n_queries; j++) {
                float* query = q + static_cast<size_t>(j) * padded;
                std::copy_n(head_at(q_.as<float>(), j), head_dim, query);
                std::fill(query + head_dim, query + padded, 0.0f);
            }
            std::fill(acc, acc + static_cast<size_t>(n_queries) * padded, 0.0f);
            std::fill(max, max + n_queries, -std::numeric_limits<float>::infinity());
            std::fill(sum, sum + n_queries, 0.0f);

            const std::vector<int32_t>& blocks = (*slices_)[static_cast<size_t>(item.slice)].blocks;
            const int32_t last_position = item.first_position + item.n_tokens - 1;
            for (int32_t b = 0; b <= last_position / kKvBlock; b++) {
                for (int32_t j = 0; j < n_queries; j++)
                    visible[j] = std::clamp(item.first_position + j / group + 1 - b * kKvBlock, 0, kKvBlock);
                const int32_t block = blocks[static_cast<size_t>(b)];
                if (b < last_position / kKvBlock) kv_.prefetch(layer, blocks[static_cast<size_t>(b) + 1], kv_head);
                kv_.attend(kernels_, layer, block, kv_head, q, padded, n_queries, visible, scale, max, sum, acc);
            }
            for (int32_t j = 0; j < n_queries; j++) {
                float* out = head_at(attended_.as<float>(), j);
                for (size_t d = 0; d < head_dim; d++) out[d] = acc[static_cast<size_t>(j) * padded + d] / sum[j];
            }
        }
    });
}

void Runner::logits(float* out) { head_.exact(hidden_.as<float>(), 0, n_outputs_, out); }

void Runner::copy_block(int source, int target) {
    if (source < 0 || target < 0 || source >= kv_.n_blocks() || target >= kv_.n_blocks()) throw InvalidRequestError("KV block out of range");
    kv_.copy_block(source, target);
    if (offload_) offload_->copy_block(source, target);
}

uint64_t Runner::kv_bytes() const { return kv_.bytes() + (offload_ ? offload_->memory().kv + offload_->memory().host_kv : 0); }

std::vector<double> Runner::logprobs(const std::vector<int32_t>& targets, int first_output) {
    if (first_output < 0 || static_cast<size_t>(first_output) + targets.size() > static_cast<size_t>(n_outputs_))
        throw InvalidRequestError("output rows " + std::to_string(first_output) + " to " + std::to_string(first_output + targets.size()) +
                                  " do not exist: the last step kept " + std::to_string(n_outputs_));
    const int32_t vocab = model_->sizes().vocab_size;
    for (int32_t target : targets)
        if (target < -1 || target >= vocab)
            throw InvalidRequestError("token id " + std::to_string(target) + " is outside the vocabulary of " + std::to_string(vocab));
    const size_t row = static_cast<size_t>(vocab), hidden = static_cast<size_t>(model_->sizes().hidden_size);
    const float* states = hidden_.as<float>() + static_cast<size_t>(first_output) * hidden;
    const size_t group = std::min(targets.size(), kLogprobRows);
    PageBuffer logits(floats(group * row));
    std::vector<double> result(targets.size(), std::numeric_limits<double>::quiet_NaN());
    for (size_t first = 0; first < targets.size(); first += group) {
        const size_t count = std::min(group, targets.size() - first);
        head_.exact(states + first * hidden, 0, static_cast<int>(count), logits.as<float>());
        pool_.run([&](Worker& worker) {
            worker.parallel_for(static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; i++) {
                    const float* values = logits.as<float>() + static_cast<size_t>(i) * row;
                    const int32_t target = targets[first + static_cast<size_t>(i)];
                    if (target >= 0) result[first + static_cast<size_t>(i)] = values[target] - log_normalizer(values, vocab);
                }
            });
        });
    }
    return result;
}

Sampled Runner::sample(int output, Sampler& sampler, int n_logprobs) {
    if (output < 0 || output >= n_outputs_)
        throw InvalidRequestError("output row " + std::to_string(output) + " does not exist: the last step kept " + std::to_string(n_outputs_));
    if (!head_computed_) {
        head_.compute(hidden_.as<float>(), n_outputs_);
        head_computed_ = true;
    }
    return sampler.sample(head_.row(output), n_logprobs);
}

}  // namespace bitnet
