// Models, the runners that compute them, and their weights and head for engines that compute elsewhere.
#include "bindings/bindings.h"

#include <atomic>
#include <cstring>

#include "gguf/gguf_file.h"
#include "model/model.h"
#include "model/runner.h"
#include "platform/cpu_features.h"
#include "platform/errors.h"
#include "platform/thread_pool.h"
#include "quant/dense.h"

using namespace nb::literals;

namespace bitnet {
namespace {

// ---- models and runners -------------------------------------------------------------------------------------------------

std::shared_ptr<Model> load(std::shared_ptr<GgufFile> file, int n_threads, bool use_mmap, bool use_mlock, const std::string& cache_path,
                            const std::string& embd_type, const std::string& layout, const TileRows& tl_tiles, const std::string& activation,
                            bool divide_by_scales) {
    ModelOptions options;
    if (!embd_type.empty()) options.embedding_type = type_of_kind(embd_type, false);
    options.layout = layout_choice(layout, tl_tiles);
    options.activation = activation_choice(activation);
    options.divide_by_scales = divide_by_scales;
    options.n_threads = n_threads > 0 ? n_threads : physical_cores();
    options.use_mmap = use_mmap;
    options.use_mlock = use_mlock;
    options.cache_path = use_mmap ? cache_path : "";
    nb::gil_scoped_release release;
    return Model::load(std::move(file), options);
}

std::shared_ptr<Runner> new_runner(std::shared_ptr<Model> model, int n_blocks, int max_batch_tokens, int n_threads, const std::string& name,
                                   const std::string& kv_type, int table_min_tokens, int row_block, int pieces_per_thread, int n_gpu_layers,
                                   int main_gpu, bool low_vram, const std::string& gpu_library) {
    const Kernels* kernels = select_kernels(name.c_str());
    if (!kernels) throw InvalidRequestError("this processor has no kernels called '" + name + "'");
    if (n_blocks < 1 || max_batch_tokens < 1 || n_threads < 0 || n_threads > 1024)
        throw InvalidRequestError("n_blocks and max_batch_tokens must be at least 1, n_threads 0..1024");
    if (kv_type != "f16" && kv_type != "q8_0") throw InvalidRequestError("kv_type must be f16 or q8_0, not '" + kv_type + "'");
    if (table_min_tokens < 0 || row_block < kPanelRows || row_block > kPanelRows * kMostTablePanels || row_block % kPanelRows != 0 ||
        pieces_per_thread < 1 || pieces_per_thread > 1024)
        throw InvalidRequestError("table_min_tokens must be at least 0, row_block a multiple of 32 from 32 to 2560, pieces_per_thread 1..1024");
    const KvType type = kv_type == "q8_0" ? KvType::Q8_0 : KvType::F16;
    nb::gil_scoped_release release;
    std::unique_ptr<Offload> offload;
    if (n_gpu_layers != 0)
        offload = std::make_unique<Offload>(*model, GpuOptions{gpu_library, n_gpu_layers, main_gpu, low_vram}, n_blocks, max_batch_tokens, type);
    return std::make_shared<Runner>(std::move(model), n_blocks, max_batch_tokens, n_threads > 0 ? n_threads : physical_cores(), *kernels, type,
                                    Tiles{table_min_tokens, row_block, pieces_per_thread}, std::move(offload));
}

void forward(Runner& runner, TokenArray token_ids, const std::vector<std::vector<int32_t>>& block_tables,
             const std::vector<int32_t>& starts, const std::vector<int32_t>& lengths, const std::vector<int32_t>& outputs) {
    if (block_tables.size() != starts.size() || starts.size() != lengths.size())
        throw InvalidRequestError("block_tables, starts and lengths must have one entry per sequence");
    const std::vector<int32_t> tokens(token_ids.data(), token_ids.data() + token_ids.size());
    std::vector<SequenceSlice> slices;
    for (size_t s = 0; s < starts.size(); s++) slices.push_back({block_tables[s], starts[s], lengths[s]});
    nb::gil_scoped_release release;
    runner.forward(tokens, slices, outputs);
}

// ---- weights and logits for engines that compute elsewhere -----------------------------------------------------------------

const LayerWeights& layer_at(const Model& model, int layer) {
    if (layer < 0 || layer >= model.sizes().n_layers) throw InvalidRequestError("layer " + std::to_string(layer) + " does not exist");
    return model.layers()[static_cast<size_t>(layer)];
}

const Projection& projection_named(const LayerWeights& layer, const std::string& name) {
    const std::pair<const char*, const Projection*> all[] = {{"q", &layer.q},       {"k", &layer.k},   {"v", &layer.v},      {"o", &layer.o},
                                                             {"gate", &layer.gate}, {"up", &layer.up}, {"down", &layer.down}};
    const auto* found = std::find_if(std::begin(all), std::end(all), [&](const auto& entry) { return name == entry.first; });
    if (found == std::end(all)) throw InvalidRequestError("a layer has no projection '" + name + "'");
    return *found->second;
}

// A ternary matrix of a layer as [rows][words] at 2 bits a weight, rows filled up with zero weights, and its scale.
std::pair<nb::ndarray<nb::numpy, uint32_t, nb::ndim<2>>, float> ternary_rows(const Model& model, int layer, const std::string& name, int words_multiple) {
    if (words_multiple < 1) throw InvalidRequestError("words_multiple must be at least 1");
    const TernaryWeights& w = projection_named(layer_at(model, layer), name).weights;
    const size_t rows = static_cast<size_t>(w.rows), multiple = static_cast<size_t>(words_multiple);
    const size_t words = (static_cast<size_t>(w.k_blocks) + multiple - 1) / multiple * multiple;
    uint32_t* data;
    const auto array = own_array<uint32_t, 2>({rows, words}, &data);
    {
        nb::gil_scoped_release release;
        std::fill(data, data + rows * words, 0x55555555u);  // zero weights
        for (size_t r = 0; r < rows; r++) n9_row_words(w, static_cast<int32_t>(r), data + r * words);
    }
    return {array, w.scale};
}

nb::object norm_weights(const Model& model, int layer, const std::string& name) {
    const std::vector<float>* values = &model.output_norm();
    if (name != "output_norm") {
        const LayerWeights& weights = layer_at(model, layer);
        const std::pair<const char*, const std::vector<float>*> all[] = {
            {"attn_norm", &weights.attn_norm},           {"ffn_norm", &weights.ffn_norm},
            {"q_head_norm", &weights.q_head_norm},       {"k_head_norm", &weights.k_head_norm},
            {"post_attn_norm", &weights.post_attn_norm}, {"post_ffn_norm", &weights.post_ffn_norm}};
        const auto* found = std::find_if(std::begin(all), std::end(all), [&](const auto& entry) { return name == entry.first; });
        values = found == std::end(all) ? &projection_named(weights, name).input_norm : found->second;
    }
    if (values->empty()) return nb::none();
    float* data;
    const auto array = own_array<float, 1>({values->size()}, &data);
    std::copy(values->begin(), values->end(), data);
    return nb::cast(array);
}

nb::ndarray<nb::numpy, float, nb::ndim<2>> embedding_rows(const Model& model, TokenArray token_ids) {
    const size_t size = static_cast<size_t>(model.sizes().hidden_size), count = token_ids.size();
    for (size_t i = 0; i < count; i++)
        if (token_ids.data()[i] < 0 || token_ids.data()[i] >= model.sizes().vocab_size)
            throw InvalidRequestError("token id " + std::to_string(token_ids.data()[i]) + " is outside the vocabulary of " +
                                      std::to_string(model.sizes().vocab_size));
    float* data;
    const auto array = own_array<float, 2>({count, size}, &data);
    nb::gil_scoped_release release;
    const DenseRows& rows = model.embedding();
    for (size_t i = 0; i < count; i++) decode_row(rows.type, rows.row(token_ids.data()[i]), size, data + i * size);
    if (const float scale = model.embedding_scale(); scale != 1)
        for (size_t i = 0; i < count * size; i++) data[i] *= scale;
    return array;
}

// The output head in 8 bits, [vocab][stride] and its scales [vocab]: views, which keep the model alive.
std::pair<nb::object, nb::object> head_rows(std::shared_ptr<Model> model) {
    const HeadRows& rows = model->packed().head();
    const size_t vocab = static_cast<size_t>(model->sizes().vocab_size);
    auto* owner = new std::shared_ptr<Model>(model);
    nb::capsule keeper(owner, [](void* p) noexcept { delete static_cast<std::shared_ptr<Model>*>(p); });
    using Values = nb::ndarray<nb::numpy, const int8_t, nb::ndim<2>>;
    using Scales = nb::ndarray<nb::numpy, const float, nb::ndim<1>>;
    return {nb::cast(Values(rows.values, {vocab, rows.stride}, keeper)), nb::cast(Scales(rows.scales, {vocab}, keeper))};
}

// Logits of hidden states that another engine computed: the candidates exactly, on this processor.
class Head {
public:
    Head(std::shared_ptr<Model> model, int n_threads)
        : model_(std::move(model)), pool_(n_threads > 0 ? n_threads : physical_cores()), head_(*model_, *select_kernels(), pool_, nullptr) {}

    void take(FloatRows hidden, FloatRows scores, float rounding) {
        const size_t vocab = static_cast<size_t>(model_->sizes().vocab_size), size = static_cast<size_t>(model_->sizes().hidden_size);
        if (hidden.shape(1) != size || scores.shape(1) != vocab || hidden.shape(0) != scores.shape(0))
            throw InvalidRequestError("hidden must be [n, hidden_size], and scores [n, vocab_size]");
        if (!(rounding >= 0)) throw InvalidRequestError("rounding must not be negative");
        n_ = static_cast<int>(hidden.shape(0));
        nb::gil_scoped_release release;
        head_.take(hidden.data(), scores.data(), n_, rounding);
    }

    Sampled sample(int row, Sampler& sampler, int n_logprobs) {
        if (row < 0 || row >= n_)
            throw InvalidRequestError("output row " + std::to_string(row) + " does not exist: there are " + std::to_string(n_));
        return sampler.sample(head_.row(row), n_logprobs);
    }

    nb::ndarray<nb::numpy, float, nb::ndim<2>> logits(FloatRows hidden) {
        if (hidden.shape(1) != static_cast<size_t>(model_->sizes().hidden_size)) throw InvalidRequestError("hidden must be [n, hidden_size]");
        float* data;
        const auto array = own_array<float, 2>({hidden.shape(0), static_cast<size_t>(model_->sizes().vocab_size)}, &data);
        nb::gil_scoped_release release;
        head_.exact(hidden.data(), 0, static_cast<int>(hidden.shape(0)), data);
        return array;
    }

    int n_threads() const { return pool_.size(); }

private:
    std::shared_ptr<Model> model_;
    ThreadPool pool_;
    OutputHead head_;
    int n_ = 0;
};

// What another library's native code asks whether it should stop, without the interpreter.
struct Flag {
    std::atomic<bool> value = false;
};

extern "C" bool flag_is_set(void* flag) { return static_cast<const Flag*>(flag)->value; }

}  // namespace

std::optional<Activation> activation_choice(const std::string& name) {
    const std::optional<Activation> chosen = activation_named(name);
    if (!name.empty() && !chosen) throw InvalidRequestError("activation must be relu2, silu or gelu_tanh, not '" + name + "'");
    return chosen;
}

void bind_models(nb::module_& m) {
    nb::class_<Model>(m, "Model")
        .def(nb::new_(&load), "file"_a, nb::kw_only(), "n_threads"_a = 0, "use_mmap"_a = true, "use_mlock"_a = false, "cache_path"_a = "",
             "embd_type"_a = "", "layout"_a = "", "tl_tiles"_a = TileRows{}, "activation"_a = "", "divide_by_scales"_a = false)
        .def_prop_ro("architecture", [](const Model& m) { return std::string(m.architecture().name); })
        .def_prop_ro("activation", [](const Model& m) { return std::string(activation_name(m.activation())); })
        .def_prop_ro("n_layers", [](const Model& m) { return m.sizes().n_layers; })
        .def_prop_ro("hidden_size", [](const Model& m) { return m.sizes().hidden_size; })
        .def_prop_ro("ffn_size", [](const Model& m) { return m.sizes().ffn_size; })
        .def_prop_ro("n_heads", [](const Model& m) { return m.sizes().n_heads; })
        .def_prop_ro("n_kv_heads", [](const Model& m) { return m.sizes().n_kv_heads; })
        .def_prop_ro("head_dim", [](const Model& m) { return m.sizes().head_dim; })
        .def_prop_ro("vocab_size", [](const Model& m) { return m.sizes().vocab_size; })
        .def_prop_ro("context_length", [](const Model& m) { return m.sizes().context_length; })
        .def_prop_ro("tied_head", &Model::tied_head)
        .def_prop_ro("n_parameters", &Model::n_parameters)
        .def_prop_ro("ternary_bytes", [](const Model& m) { return m.packed().ternary_bytes(); })
        .def_prop_ro("embd_type", [](const Model& m) { return tensor_type_name(m.embedding().type); })
        .def_prop_ro("head_bytes", [](const Model& m) { return m.dense_bytes() + m.packed().head_bytes(); })
        .def_prop_ro("from_cache", [](const Model& m) { return m.packed().from_cache(); })
        .def_prop_ro("repairs", &Model::repairs)
        .def_prop_ro("warnings", &Model::warnings)
        .def_prop_ro("n_rot", [](const Model& m) { return m.sizes().n_rot; })
        .def_prop_ro("norm_eps", [](const Model& m) { return m.sizes().norm_eps; })
        .def_prop_ro("rope_base", [](const Model& m) { return m.sizes().rope_base; })
        .def("ternary_rows", ternary_rows, "layer"_a, "name"_a, "words_multiple"_a = 1)
        .def("norm", norm_weights, "layer"_a, "name"_a)
        .def("embedding_rows", embedding_rows, "token_ids"_a)
        .def("head_rows", head_rows);

    nb::class_<Head>(m, "Head")
        .def(nb::new_([](std::shared_ptr<Model> model, int n_threads) { return std::make_shared<Head>(std::move(model), n_threads); }), "model"_a,
             nb::kw_only(), "n_threads"_a = 0)
        .def_prop_ro("n_threads", &Head::n_threads)
        .def("take", &Head::take, "hidden"_a, "scores"_a, nb::kw_only(), "rounding"_a)
        .def("sample", &Head::sample, "row"_a, "sampler"_a, "logprobs"_a = -1, nb::call_guard<nb::gil_scoped_release>())
        .def("logits", &Head::logits, "hidden"_a);

    nb::class_<Flag>(m, "Flag")
        .def(nb::init<>())
        .def("set", [](Flag& flag) { flag.value = true; })
        .def("take", [](Flag& flag) { return flag.value.exchange(false); })
        .def_prop_ro("address", [](const Flag& flag) { return reinterpret_cast<uintptr_t>(&flag); })
        .def_prop_ro("reader", [](const Flag&) { return reinterpret_cast<uintptr_t>(&flag_is_set); });

    nb::class_<Runner>(m, "Runner")
        .def(nb::new_(&new_runner), "model"_a, nb::kw_only(), "n_blocks"_a, "max_batch_tokens"_a = 512, "n_threads"_a = 0, "kernels"_a = "",
             "kv_type"_a = "f16", "table_min_tokens"_a = 0, "row_block"_a = Tiles{}.row_block,
             "pieces_per_thread"_a = Tiles{}.pieces_per_thread, "n_gpu_layers"_a = 0, "main_gpu"_a = 0, "low_vram"_a = false,
             "gpu_library"_a = "")
        .def_prop_ro("block_size", [](const Runner&) { return kKvBlock; })
        .def_prop_ro("n_blocks", [](const Runner& r) { return r.kv().n_blocks(); })
        .def_prop_ro("n_threads", &Runner::n_threads)
        .def_prop_ro("tiles", [](const Runner& r) {
            nb::dict tiles;
            tiles["table_min_tokens"] = r.tiles().table_min_tokens;
            tiles["row_block"] = r.tiles().row_block;
            tiles["pieces_per_thread"] = r.tiles().pieces_per_thread;
            return tiles;
        })
        .def_prop_ro("n_products", [](const Runner& r) { return std::pair(r.n_multiplied(), r.n_looked_up()); })
        .def_prop_ro("kernels", [](const Runner& r) { return std::string(r.kernels().name); })
        .def_prop_ro("kv_type", [](const Runner& r) { return std::string(r.kv().type() == KvType::Q8_0 ? "q8_0" : "f16"); })
        .def_prop_ro("kv_bytes", &Runner::kv_bytes)
        .def_prop_ro("n_gpu_layers", [](const Runner& r) { return r.offload() ? r.offload()->n_layers() : 0; })
        .def_prop_ro("gpu_bytes", [](const Runner& r) {
            if (!r.offload()) return uint64_t{0};
            const BitnetGpuMemory& memory = r.offload()->memory();
            return memory.weights + memory.dense + memory.kv + memory.activations;
        })
        .def_prop_ro("max_batch_tokens", &Runner::max_batch_tokens)
        .def("forward", forward, "token_ids"_a, "block_tables"_a, "starts"_a, "lengths"_a, "outputs"_a)
        .def("logits", [](Runner& r) {
            float* data;
            auto array = own_array<float, 2>({static_cast<size_t>(r.n_outputs()), static_cast<size_t>(r.model().sizes().vocab_size)}, &data);
            {
                nb::gil_scoped_release release;
                r.logits(data);
            }
            return array;
        })
        .def("hidden", [](const Runner& r) {
            float* data;
            const size_t rows = static_cast<size_t>(r.n_outputs()), cols = static_cast<size_t>(r.model().sizes().hidden_size);
            auto array = own_array<float, 2>({rows, cols}, &data);
            std::memcpy(data, r.hidden(), rows * cols * sizeof(float));
            return array;
        })
        .def("logprobs", [](Runner& r, TokenArray target_ids, int first_output) {
            const std::vector<int32_t> targets(target_ids.data(), target_ids.data() + target_ids.size());
            nb::gil_scoped_release release;
            return r.logprobs(targets, first_output);
        }, "target_ids"_a, "first_output"_a = 0)
        .def("sample", &Runner::sample, "output"_a, "sampler"_a, "logprobs"_a = -1, nb::call_guard<nb::gil_scoped_release>())
        .def("copy_block", &Runner::copy_block, "source"_a, "target"_a, nb::call_guard<nb::gil_scoped_release>())
        .def("cancel", &Runner::cancel);
}

}  // namespace bitnet
