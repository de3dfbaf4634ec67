// The forward pass on one device: weights, memory, and the order in which the kernels run. What is computed is the same as in
// model/runner.cpp, operation by operation.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <vector>

#include "cuda/attention.cuh"
#include "cuda/head.cuh"
#include "cuda/memory.cuh"
#include "cuda/products.cuh"

namespace bitnet::cuda {

constexpr int kMinCapability = 75;   // int8 tensor cores
// Wider rows are normalised by a kernel of their own: blocks that hold them would leave processors too little to do.
constexpr size_t kMaxOneShared = 64 << 10;  // Turing has no more
// Decode steps of up to this many tokens are captured as graphs.
constexpr int kMaxGraphTokens = 64;
// A sequence's new tokens from which on attention goes by attend_tile.
constexpr int kMinTileTokens = 4;
// Outputs whose int8 scores are computed, and kept, together.
constexpr int kScoreOutputs = 64;

inline size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Bytes of everything, known before anything is allocated.
struct Plan {
    uint64_t layer = 0;        // of one layer's weights
    uint64_t dense = 0;        // embedding and head
    uint64_t kv_layer = 0;     // keys and values of one layer
    uint64_t activations = 0;  // and everything else
};

class Engine {
public:
    // Throws Failure.
    Engine(const BitnetGpuModel& model, const BitnetGpuOptions& options) : options_(options), m_(model) {
        check(cudaSetDevice(options.device), "choosing the device");
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, options.device), "asking for the device's properties");
        processors_ = {properties.multiProcessorCount, properties.sharedMemPerBlockOptin};
        has_head_ = model.embedding.data != nullptr;
        set_sizes();
        check_memory(properties.name);
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
        try {
            allow_shared_memory();
            upload();
            allocate();
        } catch (...) {
            cudaStreamDestroy(stream_);
            throw;
        }
    }

    ~Engine() {
        cudaSetDevice(options_.device);
        cudaStreamSynchronize(stream_);
        for (auto& [n, graph] : graphs_) cudaGraphExecDestroy(graph);
        cudaStreamDestroy(stream_);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    BitnetGpuMemory memory() const {
        const uint64_t n = static_cast<uint64_t>(m_.n_layers), kv = plan_.kv_layer * n;
        return {plan_.layer * n, plan_.dense, options_.kv_on_host ? 0 : kv, plan_.activations, options_.kv_on_host ? kv : 0};
    }

    void forward(const BitnetGpuStep& step) {
        check(cudaSetDevice(options_.device), "choosing the device");
        n_outputs_ = 0;
        scored_first_ = -1;
        const Shape shape = place(step);
        check(cudaMemcpyAsync(step_.as<char>(), step_host_.as<char>(), shape.bytes, cudaMemcpyHostToDevice, stream_), "sending a step");
        const bool decode = m_.is_whole && shape.n_tokens <= kMaxGraphTokens && shape.n_tiles == 0 && shape.n_outputs == shape.n_tokens;
        if (decode)
            launch_graph(shape);
        else
            enqueue(shape);
        check(cudaGetLastError(), "a step");
        check(cudaStreamSynchronize(stream_), "a step");
        if (*flag_host_.as<int>())
            throw Failure{BITNET_GPU_NOT_FINITE, "the weights produce values that are not finite"};
        std::memcpy(step.out, out_host_.as<float>(), sizeof(float) * static_cast<size_t>(rows_out(shape)) * static_cast<size_t>(m_.hidden_size));
        n_outputs_ = shape.n_outputs;
    }

    void copy_block(int source, int target) {
        check(cudaSetDevice(options_.device), "choosing the device");
        uint8_t* base = kv_.as<uint8_t>();
        check(cudaMemcpyAsync(base + static_cast<size_t>(target) * block_bytes_, base + static_cast<size_t>(source) * block_bytes_, block_bytes_,
                              cudaMemcpyDefault, stream_),
              "copying a block of keys and values");
        check(cudaStreamSynchronize(stream_), "copying a block of keys and values");
    }

    void logits(int first, int n, float* out) {
        check(cudaSetDevice(options_.device), "choosing the device");
        const int group = static_cast<int>(scores_.size() / (sizeof(float) * static_cast<size_t>(m_.vocab_size)));
        scored_first_ = -1;  // its place is taken
        for (int done = 0; done < n; done += group) {
            const int count = std::min(group, n - done);
            launch(stream_, exact_logits, dim3((static_cast<unsigned>(m_.vocab_size) + 7) / 8), kHeadThreads, 0, head_, m_.vocab_size,
                   static_cast<const float*>(hidden_.as<float>() + static_cast<size_t>(first + done) * static_cast<size_t>(m_.hidden_size)),
                   m_.hidden_size, count, scores_.as<float>());
            fetch(out + static_cast<size_t>(done) * static_cast<size_t>(m_.vocab_size), scores_.as<float>(),
                  sizeof(float) * static_cast<size_t>(count) * static_cast<size_t>(m_.vocab_size), "logits");
        }
    }

    void approximate(int output, float* out) {
        check(cudaSetDevice(options_.device), "choosing the device");
        score(output);
        fetch(out, scores_.as<float>() + static_cast<size_t>(output - scored_first_) * static_cast<size_t>(m_.vocab_size),
              sizeof(float) * static_cast<size_t>(m_.vocab_size), "scores");
    }

    void candidates(const BitnetGpuSearch* searches, int n, BitnetGpuCandidate* out, int capacity, int* n_found) {
        check(cudaSetDevice(options_.device), "choosing the device");
        for (int done = 0; done < n;) {
            score(searches[done].output);
            int count = 1;
            while (done + count < n && searches[done + count].output < scored_first_ + n_scored_ && searches[done + count].output >= scored_first_) count++;
            find(searches + done, count, out + static_cast<size_t>(done) * static_cast<size_t>(capacity), capacity, n_found + done);
            done += count;
        }
    }

private:
    struct LayerWeights {
        const float *attn_norm, *ffn_norm, *post_attn_norm, *post_ffn_norm;  // on the device; the last two may be null
        HeadNorms head_norms;
        Products qkv, o, gate_up, down;
    };

    // A step's numbers on the device: offsets in bytes into step_, all a function of the counts.
    struct Shape {
        int n_tokens = 0, n_outputs = 0, n_single = 0, n_tiles = 0;
        size_t rope = 0, tokens = 0, positions = 0, table_starts = 0, outputs = 0, single = 0, tiles = 0, tables = 0, bytes = 0;

        void lay_out(int n_rot) {
            size_t end = 0;
            const auto put = [&end](size_t size) {
                const size_t at = end;
                end = round_up(end + size, 16);
                return at;
            };
            const size_t n = static_cast<size_t>(n_tokens);
            rope = put(sizeof(float) * n * static_cast<size_t>(n_rot));
            tokens = put(sizeof(int) * n);
            positions = put(sizeof(int) * n);
            table_starts = put(sizeof(int) * n);
            outputs = put(sizeof(int) * static_cast<size_t>(n_outputs));
            single = put(sizeof(int) * static_cast<size_t>(n_single));
            tiles = put(sizeof(QueryTile) * static_cast<size_t>(n_tiles));
            tables = end;
        }
    };

    // ---- memory -------------------------------------------------------------------------------------------------------

    void set_sizes() {
        const size_t hidden = static_cast<size_t>(m_.hidden_size), ffn = static_cast<size_t>(m_.ffn_size), head_dim = static_cast<size_t>(m_.head_dim);
        const size_t q = static_cast<size_t>(m_.n_heads) * head_dim, kv = static_cast<size_t>(m_.n_kv_heads) * head_dim;
        const size_t tokens = static_cast<size_t>(options_.max_batch_tokens), vocab = static_cast<size_t>(m_.vocab_size);
        widest_ = std::max({hidden, ffn, q});
        group_ = m_.n_heads / m_.n_kv_heads;
        part_bytes_ = options_.kv_q8_0 ? kKvBlock * (head_dim + 2 * ((head_dim + kKvGroup - 1) / kKvGroup)) : kKvBlock * head_dim * 2;
        block_bytes_ = static_cast<size_t>(m_.n_layers) * static_cast<size_t>(m_.n_kv_heads) * 2 * part_bytes_;
        spare_rows_ = sizeof(float) * (widest_ + kRowScratch) > processors_.shared_bytes;
        can_tile_ = group_ <= kTileQueries && m_.head_dim <= 256 && attend_tile_shared_bytes(m_.head_dim, options_.kv_q8_0) <= processors_.shared_bytes;

        for (int i = 0; i < m_.n_layers; i++) {
            plan_.layer = std::max(plan_.layer, layer_bytes(m_.layers[i]));  // layers differ at most in norms
            for (const Group& group : groups(m_.layers[i])) n_operands_ = std::max(n_operands_, operand_count(group));
        }
        plan_.kv_layer = static_cast<uint64_t>(m_.n_kv_heads) * 2 * part_bytes_ * static_cast<uint64_t>(options_.n_blocks);
        if (has_head_) {
            plan_.dense = m_.embedding.row_bytes * vocab + m_.head_stride * vocab + 3 * sizeof(float) * vocab;
            if (m_.head.data != m_.embedding.data) plan_.dense += m_.head.row_bytes * vocab;
        }
        operand_stride_ = std::max(round_up(widest_, kChunk), has_head_ ? static_cast<size_t>(m_.head_stride) : 0);
        score_outputs_ = static_cast<size_t>(std::min(options_.max_batch_tokens, kScoreOutputs));
        plan_.activations = tokens * (sizeof(float) * (4 * hidden + 2 * q + 2 * kv + 2 * ffn + 2 * n_operands_) + operand_stride_ * n_operands_ + 16);
        if (spare_rows_) plan_.activations += tokens * n_operands_ * sizeof(float) * widest_;
        if (has_head_) plan_.activations += sizeof(float) * score_outputs_ * vocab;
        plan_.activations += tokens * sizeof(float) * static_cast<size_t>(m_.n_rot + 16);
    }

    // Throws unless everything fits, with what to change.
    void check_memory(const char* name) const {
        size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "asking for free memory");
        constexpr uint64_t kReserve = 64ull << 20;  // of the driver: kernels, graphs, and what alignment wastes
        const uint64_t per_layer = plan_.layer + (options_.kv_on_host ? 0 : plan_.kv_layer), n = static_cast<uint64_t>(m_.n_layers);
        const uint64_t fixed = plan_.dense + plan_.activations + kReserve, needed = per_layer * n + fixed;
        if (needed <= free) return;
        const uint64_t fixed_of_some = plan_.activations + kReserve;  // with some layers elsewhere, so are embedding and head
        const uint64_t fitting = free > fixed_of_some ? std::min((free - fixed_of_some) / per_layer, n > 1 ? n - 1 : 0) : 0;
        std::string message = std::string("the GPU (") + name + ") has " + size_text(free) + " of its " + size_text(total) + " free, and " +
                              std::to_string(m_.n_layers) + " layers need " + size_text(needed) + ": weights " + size_text(plan_.layer * n) +
                              ", keys and values " + (options_.kv_on_host ? std::string("none (they are in the host's memory)") : size_text(plan_.kv_layer * n));
        if (has_head_) message += ", embedding and head " + size_text(plan_.dense);
        message += ", activations and the like " + size_text(plan_.activations + kReserve) + "; set n_gpu_layers to " + std::to_string(fitting);
        if (!options_.kv_on_host) message += ", lower n_batch or n_ctx, or set low_vram";
        throw Failure{BITNET_GPU_OUT_OF_MEMORY, message};
    }

    // Projections of the same input, which are computed together.
    using Group = std::vector<const BitnetGpuProjection*>;
    static std::array<Group, 4> groups(const BitnetGpuLayer& layer) {
        return {Group{&layer.q, &layer.k, &layer.v}, {&layer.o}, {&layer.gate, &layer.up}, {&layer.down}};
    }

    // Where any has a norm of its own, each has an operand of its own.
    static size_t operand_count(const Group& group) {
        return std::any_of(group.begin(), group.end(), [](const BitnetGpuProjection* p) { return p->input_norm; }) ? group.size() : 1;
    }

    uint64_t layer_bytes(const BitnetGpuLayer& layer) const {
        size_t bytes = 0;
        const auto add = [&bytes](const float* norm, int n) { bytes += norm ? sizeof(float) * static_cast<size_t>(n) : 0; };
        for (const float* norm : {layer.attn_norm, layer.ffn_norm, layer.post_attn_norm, layer.post_ffn_norm}) add(norm, m_.hidden_size);
        for (const float* norm : {layer.q_head_norm, layer.k_head_norm}) add(norm, m_.head_dim);
        for (const Group& group : groups(layer))
            for (const BitnetGpuProjection* p : group) {
                bytes += tile_bytes(p->w.rows, p->w.cols);
                add(p->input_norm, p->w.cols);
            }
        return bytes;
    }

    void allocate() {
        const size_t n = static_cast<size_t>(options_.max_batch_tokens), hidden = static_cast<size_t>(m_.hidden_size);
        const size_t q = static_cast<size_t>(m_.n_heads) * static_cast<size_t>(m_.head_dim), kv = static_cast<size_t>(m_.n_kv_heads) * static_cast<size_t>(m_.head_dim);
        const auto floats = [&](size_t count) { return Buffer(sizeof(float) * count, "activations"); };
        kv_ = Buffer(block_bytes_ * static_cast<size_t>(options_.n_blocks), "keys and values", options_.kv_on_host);
        x_ = floats(n * hidden);
        other_x_ = floats(n * hidden);
        projected_ = floats(n * hidden);
        hidden_ = floats(n * hidden);
        q_ = floats(n * q);
        attended_ = floats(n * q);
        k_ = floats(n * kv);
        v_ = floats(n * kv);
        gate_ = floats(n * static_cast<size_t>(m_.ffn_size));
        up_ = floats(n * static_cast<size_t>(m_.ffn_size));
        operand_ = Buffer(n * n_operands_ * operand_stride_, "activations");
        scales_ = floats(n * n_operands_);
        sums_ = floats(n * n_operands_);
        if (spare_rows_) spare_ = floats(n * n_operands_ * widest_);
        if (has_head_) scores_ = floats(score_outputs_ * static_cast<size_t>(m_.vocab_size));
        flag_ = Buffer(sizeof(int), "a flag");
        flag_host_ = Staging(sizeof(int), "a flag");
        out_host_ = Staging(sizeof(float) * n * hidden, "results");
        check(cudaMemsetAsync(flag_.as<int>(), 0, sizeof(int), stream_), "clearing a flag");
        grow_step(n * (sizeof(float) * static_cast<size_t>(m_.n_rot) + 6 * sizeof(int)) + sizeof(int) * static_cast<size_t>(options_.n_blocks) + 256);
    }

    // The buffers of a step's numbers; graphs hold their addresses.
    void grow_step(size_t bytes) {
        if (bytes <= step_.size()) return;
        for (auto& [n, graph] : graphs_) cudaGraphExecDestroy(graph);
        graphs_.clear();
        step_ = Buffer(bytes, "a step's tokens");
        step_host_ = Staging(bytes, "a step's tokens");
    }

    // Every kernel of a step may have as much shared memory as the device allows. It is loaded thereby, too, which must not
    // happen while a step is captured.
    void allow_shared_memory() {
        const auto allow = [this](auto* kernel) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(processors_.shared_bytes)), "setting up kernels");
        };
        allow(embed);
        allow(norm_quantise);
        allow(rope_and_store);
        allow(add_rows);
        allow(final_norm);
        allow(quantise_hidden);
        allow(attend);
        allow(attend_tile<2>);
        allow(attend_tile<4>);
        allow(attend_tile<8>);
        allow_products(processors_);
    }

    template <class T>
    const T* send(const T* host, size_t count, const char* what) {
        if (!host) return nullptr;
        weights_.emplace_back(sizeof(T) * count, what);
        T* device = weights_.back().template as<T>();
        check(cudaMemcpyAsync(device, host, sizeof(T) * count, cudaMemcpyHostToDevice, stream_), what);
        check(cudaStreamSynchronize(stream_), what);
        return device;
    }

    void upload() {
        size_t most = 0;
        const size_t hidden = static_cast<size_t>(m_.hidden_size), head_dim = static_cast<size_t>(m_.head_dim);
        for (const Group& group : groups(m_.layers[0]))
            for (const BitnetGpuProjection* p : group) most = std::max(most, panel_bytes(p->w));
        const Buffer panels(most, "weights on their way");
        const auto norm = [&](const float* values, size_t n) { return send(values, n, "norms"); };
        const auto products = [&](const Group& group) {
            Products all{};
            all.n_chunks = (group[0]->w.cols + kChunk - 1) / kChunk;
            all.n_operands = static_cast<int>(operand_count(group));
            for (size_t i = 0; i < group.size(); i++) {
                const BitnetGpuMatrix& w = group[i]->w;
                weights_.emplace_back(tile_bytes(w.rows, w.cols), "weights");
                all.p[i] = send_matrix(stream_, w, panels, weights_.back());
                all.p[i].input_norm = norm(group[i]->input_norm, static_cast<size_t>(w.cols));
                all.p[i].operand = all.n_operands > 1 ? static_cast<int>(i) : 0;
            }
            return all;
        };
        for (int i = 0; i < m_.n_layers; i++) {
            const BitnetGpuLayer& layer = m_.layers[i];
            const auto of = groups(layer);
            layers_.push_back({norm(layer.attn_norm, hidden), norm(layer.ffn_norm, hidden), norm(layer.post_attn_norm, hidden), norm(layer.post_ffn_norm, hidden),
                               {norm(layer.q_head_norm, head_dim), norm(layer.k_head_norm, head_dim), m_.norm_eps},
                               products(of[0]), products(of[1]), products(of[2]), products(of[3])});
        }
        output_norm_ = norm(m_.output_norm, hidden);
        if (!has_head_) return;
        const size_t vocab = static_cast<size_t>(m_.vocab_size);
        embedding_ = {m_.embedding.type, send(m_.embedding.data, m_.embedding.row_bytes * vocab, "the embedding"), m_.embedding.row_bytes};
        head_ = {m_.head.type, m_.head.data == m_.embedding.data ? embedding_.data : send(m_.head.data, m_.head.row_bytes * vocab, "the head"), m_.head.row_bytes};
        int8_head_ = {send(m_.head_values, m_.head_stride * vocab, "the head"), static_cast<size_t>(m_.head_stride), send(m_.head_scales, vocab, "the head"),
                      send(m_.head_error_norms, vocab, "the head"), send(m_.head_row_norms, vocab, "the head"), m_.vocab_size};
    }

    // ---- a step -------------------------------------------------------------------------------------------------------

    // Write the step's numbers to step_host_.
    Shape place(const BitnetGpuStep& step) {
        Shape shape;
        shape.n_tokens = step.n_tokens;
        shape.n_outputs = step.n_outputs;
        std::vector<QueryTile> tiles;
        std::vector<int> single, positions, table_starts, tables;
        for (int s = 0, first = 0; s < step.n_slices; first += step.lengths[s++]) {
            const int start = step.starts[s], length = step.lengths[s], n_blocks = (start + length - 1) / kKvBlock + 1;
            for (int i = 0; i < length; i++) {
                positions.push_back(start + i);
                table_starts.push_back(static_cast<int>(tables.size()));
            }
            tables.insert(tables.end(), step.blocks[s], step.blocks[s] + n_blocks);
            if (can_tile_ && length >= kMinTileTokens) {
                const int tokens = kTileQueries / group_;
                for (int i = 0; i < length; i += tokens) tiles.push_back({first + i, std::min(tokens, length - i)});
            } else {
                for (int i = 0; i < length; i++) single.push_back(first + i);
            }
        }
        shape.n_single = static_cast<int>(single.size());
        shape.n_tiles = static_cast<int>(tiles.size());
        shape.lay_out(m_.n_rot);
        shape.bytes = shape.tables + sizeof(int) * tables.size();
        grow_step(shape.bytes);
        char* base = step_host_.as<char>();
        const auto write = [base](size_t at, const void* from, size_t bytes) {
            if (bytes) std::memcpy(base + at, from, bytes);
        };
        const size_t n = static_cast<size_t>(shape.n_tokens);
        write(shape.rope, step.rope, sizeof(float) * n * static_cast<size_t>(m_.n_rot));
        write(shape.tokens, step.tokens, sizeof(int) * n);
        write(shape.positions, positions.data(), sizeof(int) * n);
        write(shape.table_starts, table_starts.data(), sizeof(int) * n);
        write(shape.outputs, step.outputs, sizeof(int) * static_cast<size_t>(shape.n_outputs));
        write(shape.single, single.data(), sizeof(int) * single.size());
        write(shape.tiles, tiles.data(), sizeof(QueryTile) * tiles.size());
        write(shape.tables, tables.data(), sizeof(int) * tables.size());
        if (!has_head_) std::memcpy(out_host_.as<float>(), step.x, sizeof(float) * n * static_cast<size_t>(m_.hidden_size));
        return shape;
    }

    int rows_out(const Shape& shape) const { return m_.is_whole ? shape.n_outputs : shape.n_tokens; }

    void launch_graph(const Shape& shape) {
        auto found = graphs_.find(shape.n_tokens);
        if (found == graphs_.end()) {
            cudaGraph_t graph = nullptr;
            cudaGraphExec_t executable = nullptr;
            check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing a step");
            enqueue(shape);
            check(cudaStreamEndCapture(stream_, &graph), "capturing a step");
            const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
            cudaGraphDestroy(graph);
            check(error, "capturing a step");
            found = graphs_.emplace(shape.n_tokens, executable).first;
        }
        check(cudaGraphLaunch(found->second, stream_), "a step");
    }

    size_t row_shared() const { return sizeof(float) * (kRowScratch + (spare_rows_ ? 0 : widest_)); }

    Operand operand(int width) const {
        return {operand_.as<int8_t>(), round_up(static_cast<size_t>(width), kChunk), scales_.as<float>(), sums_.as<int>(), false};
    }

    // All kernels of a step, and the copy of its results to the host.
    void enqueue(const Shape& shape) {
        const unsigned n = static_cast<unsigned>(shape.n_tokens);
        const size_t row_bytes = sizeof(float) * static_cast<size_t>(m_.hidden_size);
        const char* base = step_.as<char>();
        const auto ints = [base](size_t at) { return reinterpret_cast<const int*>(base + at); };
        const StepTokens step{ints(shape.positions), ints(shape.table_starts), ints(shape.tables), reinterpret_cast<const float*>(base + shape.rope), m_.n_rot};
        if (has_head_)
            launch(stream_, embed, dim3(n), kRowThreads, 0, embedding_, ints(shape.tokens), m_.hidden_size, m_.embedding_scale, x_.as<float>());
        else
            check(cudaMemcpyAsync(x_.as<float>(), out_host_.as<float>(), row_bytes * n, cudaMemcpyHostToDevice, stream_), "sending a step");

        const int q_size = m_.n_heads * m_.head_dim;
        float *x = x_.as<float>(), *other = other_x_.as<float>();  // the residual stream, and where its next state goes
        float* projected = projected_.as<float>();
        const float* last_norm = nullptr;  // of what the last layer has projected
        for (int i = 0; i < m_.n_layers; i++) {
            const LayerWeights& w = layers_[static_cast<size_t>(i)];
            multiply(w.qkv, {x, i > 0 ? projected : nullptr, last_norm, i > 0 ? other : nullptr, 0}, {w.attn_norm, m_.hidden_size, m_.norm_eps},
                     {q_.as<float>(), k_.as<float>(), v_.as<float>()}, shape.n_tokens);
            if (i > 0) std::swap(x, other);
            const KvLayer kv{kv_.as<uint8_t>() + static_cast<size_t>(i) * static_cast<size_t>(m_.n_kv_heads) * 2 * part_bytes_, block_bytes_, part_bytes_,
                             m_.n_kv_heads, m_.head_dim, options_.kv_q8_0 != 0};
            launch(stream_, rope_and_store, dim3(n), kRowThreads, 0, q_.as<float>(), k_.as<float>(), static_cast<const float*>(v_.as<float>()), m_.n_heads, w.head_norms, step, kv);
            attention(shape, step, kv);
            multiply(w.o, {attended_.as<float>(), nullptr, nullptr, nullptr, 0}, {nullptr, q_size, m_.norm_eps}, {projected}, shape.n_tokens);
            multiply(w.gate_up, {x, projected, w.post_attn_norm, other, 0}, {w.ffn_norm, m_.hidden_size, m_.norm_eps}, {gate_.as<float>(), up_.as<float>()}, shape.n_tokens);
            std::swap(x, other);
            multiply(w.down, {gate_.as<float>(), up_.as<float>(), nullptr, nullptr, m_.activation}, {nullptr, m_.ffn_size, m_.norm_eps}, {projected}, shape.n_tokens);
            last_norm = w.post_ffn_norm;
        }

        const float* result = x;
        const RowSource last{x, projected, last_norm, x, 0};
        const Norm output_norm{output_norm_, m_.hidden_size, m_.norm_eps};
        if (m_.is_whole) {
            if (shape.n_outputs > 0)
                launch(stream_, final_norm, dim3(static_cast<unsigned>(shape.n_outputs)), kRowThreads, row_shared(), last, ints(shape.outputs), output_norm,
                       hidden_.as<float>(), spare_.as<float>(), flag_.as<int>());
            result = hidden_.as<float>();
        } else {
            launch(stream_, add_rows, dim3(n), kRowThreads, row_shared(), last, output_norm, spare_.as<float>());
        }
        const int rows = rows_out(shape);
        if (rows > 0)
            check(cudaMemcpyAsync(out_host_.as<float>(), result, row_bytes * static_cast<size_t>(rows), cudaMemcpyDeviceToHost, stream_), "fetching results");
        check(cudaMemcpyAsync(flag_host_.as<int>(), flag_.as<int>(), sizeof(int), cudaMemcpyDeviceToHost, stream_), "fetching results");
        check(cudaMemsetAsync(flag_.as<int>(), 0, sizeof(int), stream_), "clearing a flag");
    }

    // y = products * quantise(own norms(norm(source))). `source.sum` is not source.x: blocks read one while another writes.
    void multiply(Products products, const RowSource& source, const Norm& norm, std::initializer_list<float*> results, int n_tokens) {
        int i = 0;
        for (float* y : results) products.p[i++].y = y;
        if (n_tokens == 1 && one_shared_bytes(norm.n) <= kMaxOneShared) {
            const int split = split_of(products, processors_);
            launch(stream_, multiply_one, dim3(static_cast<unsigned>(product_blocks(products, 8 / split))), kFewThreads, one_shared_bytes(norm.n), products,
                   source, norm, split, flag_.as<int>());
            return;
        }
        const Operand x = operand(norm.n);
        const InputNorms own{products.p[0].input_norm, products.p[1].input_norm, products.p[2].input_norm};
        launch(stream_, norm_quantise, dim3(static_cast<unsigned>(n_tokens), static_cast<unsigned>(products.n_operands)), kRowThreads, row_shared(), source,
               norm, own, x, spare_.as<float>(), flag_.as<int>());
        launch_products(stream_, processors_, products, x, n_tokens);
    }

    void attention(const Shape& shape, const StepTokens& step, const KvLayer& kv) {
        const Attention a{q_.as<float>(), attended_.as<float>(), m_.n_heads, 1.0f / std::sqrt(static_cast<float>(m_.head_dim))};
        const char* base = step_.as<char>();
        if (shape.n_single > 0)
            launch(stream_, attend, dim3(static_cast<unsigned>(m_.n_heads), static_cast<unsigned>(shape.n_single)), kAttentionThreads,
                   attend_shared_bytes(m_.head_dim), a, step, kv, reinterpret_cast<const int*>(base + shape.single));
        if (shape.n_tiles > 0) {
            const auto tiled = [&](auto* kernel) {
                launch(stream_, kernel, dim3(static_cast<unsigned>(m_.n_kv_heads), static_cast<unsigned>(shape.n_tiles)), kTileThreads,
                       attend_tile_shared_bytes(m_.head_dim, options_.kv_q8_0), a, step, kv, reinterpret_cast<const QueryTile*>(base + shape.tiles));
            };
            if (m_.head_dim <= 64)
                tiled(attend_tile<2>);
            else if (m_.head_dim <= 128)
                tiled(attend_tile<4>);
            else
                tiled(attend_tile<8>);
        }
    }

    // ---- head ---------------------------------------------------------------------------------------------------------

    void fetch(void* to, const void* from, size_t bytes, const char* what) {
        check(cudaGetLastError(), what);
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_), what);
        check(cudaStreamSynchronize(stream_), what);
    }

    // The int8 scores of a group of outputs that has `output` in it.
    void score(int output) {
        if (scored_first_ >= 0 && output >= scored_first_ && output < scored_first_ + n_scored_) return;
        const int group = static_cast<int>(score_outputs_);
        scored_first_ = output / group * group;
        n_scored_ = std::min(group, n_outputs_ - scored_first_);
        const unsigned n = static_cast<unsigned>(n_scored_);
        const Operand x{operand_.as<int8_t>(), int8_head_.stride, scales_.as<float>(), sums_.as<int>(), true};
        launch(stream_, quantise_hidden, dim3(n), kRowThreads, row_shared(),
               static_cast<const float*>(hidden_.as<float>() + static_cast<size_t>(scored_first_) * static_cast<size_t>(m_.hidden_size)), m_.hidden_size, x,
               spare_.as<float>(), flag_.as<int>());
        const auto scores = [&](auto* kernel, unsigned tiles) {
            launch(stream_, kernel, dim3((static_cast<unsigned>(m_.vocab_size) + 127) / 128, (n + 8 * tiles - 1) / (8 * tiles)), kHeadThreads, 0, int8_head_, x,
                   n_scored_, scores_.as<float>());
        };
        if (n <= 8)
            scores(head_scores<1>, 1);
        else if (n <= 16)
            scores(head_scores<2>, 2);
        else
            scores(head_scores<4>, 4);
        check(cudaGetLastError(), "the output head");
    }

    void find(const BitnetGpuSearch* searches, int n, BitnetGpuCandidate* out, int capacity, int* n_found) {
        // On the device: searches, masks, counts, candidates.
        size_t mask_words = 0;
        for (int i = 0; i < n; i++) mask_words += searches[i].mask ? static_cast<size_t>(searches[i].n_mask_words) : 0;
        const size_t count = static_cast<size_t>(n), masks_at = round_up(sizeof(Search) * count, 16), found_at = round_up(masks_at + 4 * mask_words, 16);
        const size_t out_at = round_up(found_at + sizeof(int) * count, 16), bytes = out_at + sizeof(Candidate) * count * static_cast<size_t>(capacity);
        if (search_.size() < bytes) {
            search_ = Buffer(bytes, "a search");
            search_host_ = Staging(bytes, "a search");
        }
        char *device = search_.as<char>(), *host = search_host_.as<char>();
        uint32_t* mask = reinterpret_cast<uint32_t*>(host + masks_at);
        for (int i = 0; i < n; i++) {
            const BitnetGpuSearch& s = searches[i];
            Search search{s.output - scored_first_, s.count, nullptr, s.n_mask_words, s.error_factor, s.norm_factor};
            if (s.mask) {
                std::memcpy(mask, s.mask, sizeof(uint32_t) * static_cast<size_t>(s.n_mask_words));
                search.mask = reinterpret_cast<const uint32_t*>(device + (reinterpret_cast<char*>(mask) - host));
                mask += s.n_mask_words;
            }
            std::memcpy(host + sizeof(Search) * static_cast<size_t>(i), &search, sizeof search);
            std::memset(host + found_at + sizeof(int) * static_cast<size_t>(i), 0, sizeof(int));
        }
        check(cudaMemcpyAsync(device, host, out_at, cudaMemcpyHostToDevice, stream_), "a search");
        const Search* on_device = reinterpret_cast<const Search*>(device);
        Candidate* candidates = reinterpret_cast<Candidate*>(device + out_at);
        int* found = reinterpret_cast<int*>(device + found_at);
        launch(stream_, find_candidates, dim3(static_cast<unsigned>(n)), kSearchThreads, sizeof(uint32_t) * (kBins + 128), int8_head_, on_device,
               static_cast<const float*>(scores_.as<float>()), candidates, capacity, found);
        launch(stream_, score_candidates, dim3((static_cast<unsigned>(capacity) + 7) / 8, static_cast<unsigned>(n)), kHeadThreads, 0, head_,
               static_cast<const float*>(hidden_.as<float>() + static_cast<size_t>(scored_first_) * static_cast<size_t>(m_.hidden_size)), m_.hidden_size, on_device,
               candidates, capacity, static_cast<const int*>(found));
        fetch(host + found_at, device + found_at, bytes - found_at, "a search");
        std::memcpy(n_found, host + found_at, sizeof(int) * count);
        static_assert(sizeof(Candidate) == sizeof(BitnetGpuCandidate));
        std::memcpy(static_cast<void*>(out), host + out_at, sizeof(Candidate) * count * static_cast<size_t>(capacity));
    }

    BitnetGpuOptions options_;
    BitnetGpuModel m_;  // its pointers are those of the host, used by the constructor only
    Plan plan_;
    Processors processors_;
    int group_ = 1;
    size_t widest_ = 0, part_bytes_ = 0, block_bytes_ = 0, operand_stride_ = 0, n_operands_ = 1, score_outputs_ = 0;
    bool has_head_ = false, spare_rows_ = false, can_tile_ = false;
    cudaStream_t stream_ = nullptr;

    std::vector<Buffer> weights_;
    std::vector<LayerWeights> layers_;
    const float* output_norm_ = nullptr;
    DenseRows embedding_{}, head_{};
    Int8Head int8_head_{};

    Buffer kv_;         // as kv/kv_store.h has it
    Buffer x_, other_x_, projected_, hidden_, q_, attended_, k_, v_, gate_, up_;  // f32 [max_batch_tokens][...], as in model/runner.h
    Buffer operand_, scales_, sums_, spare_;
    Buffer scores_;     // [score_outputs_][vocab]
    Buffer flag_;       // something was not finite
    Buffer step_;
    Buffer search_;
    Staging step_host_, out_host_, flag_host_, search_host_;
    std::map<int, cudaGraphExec_t> graphs_;  // of decode steps, by their number of tokens

    int n_outputs_ = 0;
    int scored_first_ = -1, n_scored_ = 0;  // the outputs whose scores are in scores_
};

}  // namespace bitnet::cuda
