// bitnet._native: translation between Python objects and the engine, nothing else. The GIL is released wherever the engine
// reads files, packs weights or computes. The Python view of it is src/bitnet/_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

#include "gguf/gguf_file.h"
#include "model/model.h"
#include "model/runner.h"
#include "model/statistics.h"
#include "platform/cpu_features.h"
#include "platform/errors.h"
#include "platform/thread_pool.h"
#include "quant/dense.h"
#include "quant/ternary_layout.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet {
namespace {

// ---- metadata ---------------------------------------------------------------------------------------------------------

nb::object text(std::string_view s) {
    return nb::steal(PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "surrogateescape"));
}

template <class T>
T read(const uint8_t* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

template <class T>
nb::list number_list(const MetadataArray& array) {
    nb::list list;
    for (uint64_t i = 0; i < array.count; i++) list.append(read<T>(array.numbers + i * sizeof(T)));
    return list;
}

nb::list array_list(const MetadataArray& array) {
    switch (array.element_type) {
        case ValueType::U8: return number_list<uint8_t>(array);
        case ValueType::I8: return number_list<int8_t>(array);
        case ValueType::U16: return number_list<uint16_t>(array);
        case ValueType::I16: return number_list<int16_t>(array);
        case ValueType::U32: return number_list<uint32_t>(array);
        case ValueType::I32: return number_list<int32_t>(array);
        case ValueType::U64: return number_list<uint64_t>(array);
        case ValueType::I64: return number_list<int64_t>(array);
        case ValueType::F32: return number_list<float>(array);
        case ValueType::F64: return number_list<double>(array);
        case ValueType::Bool: {
            nb::list list;
            for (uint64_t i = 0; i < array.count; i++) list.append(array.numbers[i] != 0);
            return list;
        }
        default: break;
    }
    nb::list list;
    for (std::string_view s : array.strings) list.append(text(s));
    return list;
}

nb::object to_python(const MetadataValue& value) {
    if (const auto* array = std::get_if<MetadataArray>(&value.value)) return array_list(*array);
    if (const auto* s = std::get_if<std::string_view>(&value.value)) return text(*s);
    if (const auto* d = std::get_if<double>(&value.value)) return nb::cast(*d);
    if (const auto* i = std::get_if<int64_t>(&value.value)) return nb::cast(*i);
    const uint64_t u = std::get<uint64_t>(value.value);
    return value.type == ValueType::Bool ? nb::cast(u != 0) : nb::cast(u);
}

nb::dict metadata(const GgufFile& file) {
    nb::dict dict;
    for (const auto& [key, value] : file.metadata()) dict[text(key)] = to_python(value);
    return dict;
}

const char* kind_name(ValueType type) {
    constexpr const char* kNames[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    return kNames[static_cast<uint32_t>(type)];
}

// The type of each value, as GgufWriter.add_metadata has it.
nb::dict metadata_kinds(const GgufFile& file) {
    nb::dict dict;
    for (const auto& [key, value] : file.metadata()) {
        const auto* array = std::get_if<MetadataArray>(&value.value);
        dict[text(key)] = array ? nb::object(nb::make_tuple("array", kind_name(array->element_type))) : nb::cast(kind_name(value.type));
    }
    return dict;
}

// Where the data section begins in the file; its end for a file without tensors.
uint64_t data_offset(const GgufFile& file) {
    if (file.tensors().empty()) return file.file().size();
    const TensorInfo& first = file.tensors().front();
    return static_cast<uint64_t>(first.data - file.file().data()) - first.offset;
}

// A copy that outlives the file's mapping.
struct TensorSummary {
    std::string name, type_name;
    std::vector<uint64_t> shape;
    uint64_t offset, n_bytes;
};

std::vector<TensorSummary> tensors(const GgufFile& file) {
    std::vector<TensorSummary> summaries;
    for (const TensorInfo& t : file.tensors())
        summaries.push_back({std::string(t.name), t.type_name(), {t.dims.begin(), t.dims.begin() + t.n_dims}, t.offset, t.extent});
    return summaries;
}

// ---- arrays -----------------------------------------------------------------------------------------------------------

// An array that owns its memory, [shape], and where it is.
template <class T, size_t N>
nb::ndarray<nb::numpy, T, nb::ndim<N>> own_array(const std::array<size_t, N>& shape, T** data) {
    size_t n = 1;
    for (const size_t dim : shape) n *= dim;
    *data = new T[std::max<size_t>(1, n)];
    nb::capsule owner(*data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<N>>(*data, N, shape.data(), owner);
}

using TokenArray = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

// ---- tensor codecs ------------------------------------------------------------------------------------------------------

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using TileRows = std::vector<std::array<int32_t, 5>>;  // rows, cols, row_block, col_block, simd_rows

TensorType type_of_kind(const std::string& name, bool ternary) {
    const std::optional<TensorType> type = tensor_type_named(name);
    if (!type || is_ternary(*type) != ternary)
        throw InvalidRequestError("'" + name + "' is no " + (ternary ? "ternary type: i2_s, tl1, tl2, tq1_0, tq2_0 or q2_0"
                                                                      : "type of dense rows: f32, f16, bf16, q8_0, q6_k or q4_0"));
    return *type;
}

LayoutChoice layout_choice(const std::string& layout, const TileRows& tl_tiles) {
    LayoutChoice choice = layout_named(layout);
    for (const auto& t : tl_tiles) choice.tl_tiles.push_back({t[0], t[1], t[2], t[3], t[4]});
    return choice;
}

void check_blocks(TensorType type, size_t cols) {
    if (cols % block_elements(type) != 0)
        throw InvalidRequestError("rows of " + tensor_type_name(type) + " must have a multiple of " + std::to_string(block_elements(type)) +
                                  " elements, not " + std::to_string(cols));
}

void check_size(TensorType type, size_t n_bytes, size_t rows, size_t cols) {
    if (rows < 1 || cols < 1 || rows > (1u << 30) || cols > (1u << 30))
        throw InvalidRequestError("a tensor must have 1 to 2^30 rows and columns");
    check_blocks(type, cols);
    const std::optional<uint64_t> needed = tensor_bytes(type, cols, rows);
    if (!needed || n_bytes < *needed)
        throw InvalidRequestError(std::to_string(n_bytes) + " bytes are too few for " + std::to_string(rows) + " x " + std::to_string(cols) +
                                  " elements of " + tensor_type_name(type));
}

nb::tuple decode_ternary(Bytes data, const std::string& name, size_t rows, size_t cols, const std::string& layout, const TileRows& tl_tiles) {
    const TensorType type = type_of_kind(name, true);
    check_size(type, data.size(), rows, cols);
    const TernaryTensor tensor(type, data.data(), static_cast<int32_t>(rows), static_cast<int32_t>(cols), layout_choice(layout, tl_tiles));
    int8_t* codes;
    float* scales;
    auto code_array = own_array<int8_t, 2>({rows, cols}, &codes);
    auto scale_array = own_array<float, 1>({tensor.n_scales()}, &scales);
    bool valid = true, good_scales = true;
    {
        nb::gil_scoped_release release;
        for (size_t r = 0; r < rows; r++) valid = tensor.decode_row(static_cast<int32_t>(r), codes + r * cols) && valid;
        tensor.scales(scales);
        for (size_t i = 0; i < tensor.n_scales(); i++) good_scales = good_scales && std::isfinite(scales[i]) && scales[i] >= 0;
    }
    if (!valid) throw InvalidRequestError("a code of the tensor stands for no ternary weight: it is damaged, or has another layout");
    if (!good_scales) throw InvalidRequestError("a scale of the tensor is negative or not finite");
    return nb::make_tuple(code_array, scale_array);
}

nb::object encode_ternary_bytes(Codes codes, float scale, const std::string& name, const std::string& layout, const TileRows& tl_tiles) {
    const TensorType type = type_of_kind(name, true);
    if (codes.shape(0) > (1u << 30) || codes.shape(1) > (1u << 30)) throw InvalidRequestError("a tensor must have at most 2^30 rows and columns");
    const LayoutChoice choice = layout_choice(layout, tl_tiles);
    std::vector<uint8_t> bytes;
    {
        nb::gil_scoped_release release;
        bytes = encode_ternary(type, codes.data(), static_cast<int32_t>(codes.shape(0)), static_cast<int32_t>(codes.shape(1)), scale, choice);
    }
    return nb::bytes(bytes.data(), bytes.size());
}

nb::object decode_rows(Bytes data, const std::string& name, size_t rows, size_t cols) {
    const TensorType type = type_of_kind(name, false);
    check_size(type, data.size(), rows, cols);
    float* values;
    auto array = own_array<float, 2>({rows, cols}, &values);
    {
        nb::gil_scoped_release release;
        const size_t bytes = row_bytes(type, cols);
        for (size_t r = 0; r < rows; r++) decode_row(type, data.data() + r * bytes, cols, values + r * cols);
    }
    return nb::cast(array);
}

nb::object encode_rows(FloatRows values, const std::string& name) {
    const TensorType type = type_of_kind(name, false);
    const size_t rows = values.shape(0), cols = values.shape(1);
    check_blocks(type, cols);
    const size_t bytes = row_bytes(type, cols);
    uint8_t* data;
    auto array = own_array<uint8_t, 2>({rows, bytes}, &data);
    {
        nb::gil_scoped_release release;
        for (size_t r = 0; r < rows; r++) encode_row(type, values.data() + r * cols, cols, data + r * bytes);
    }
    return nb::cast(array);
}

// ---- models and runners -------------------------------------------------------------------------------------------------
using CodeRows = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// codes [rows, cols] (-1, 0, 1) times x [n_tokens, cols] on a GPU.
nb::tuple gpu_product(const std::string& library, int device, CodeRows codes, CodeRows x, bool timed) {
    const size_t rows = codes.shape(0), cols = codes.shape(1), tokens = x.shape(0);
    if (rows == 0 || cols == 0 || tokens == 0 || x.shape(1) != cols || cols > 131072 || rows > 1u << 24 || tokens > 65536)
        throw InvalidRequestError("codes must be [rows, cols] and x [n_tokens, cols], with cols up to 131072 and n_tokens up to 65536");
    float* data;
    auto y = own_array<float, 2>({tokens, rows}, &data);
    BitnetGpuTiming timing{};
    {
        nb::gil_scoped_release release;
        TernaryWeights w;
        w.rows = static_cast<int32_t>(rows);
        w.cols = static_cast<int32_t>(cols);
        std::vector<uint8_t> panels(n9_bytes(w.rows, w.cols));
        for (size_t row = 0; row < rows; row += kPanelRows)
            pack_n9_panel(codes.data() + row * cols, static_cast<int32_t>(std::min<size_t>(kPanelRows, rows - row)), w.cols,
                          panels.data() + row / kPanelRows * n9_bytes(kPanelRows, w.cols));
        w.panels = panels.data();
        GpuLibrary::open(library)->product(device, w, x.data(), static_cast<int>(tokens), data, timed ? &timing : nullptr);
    }
    return nb::make_tuple(nb::cast(y), timing.seconds, timing.weight_bytes, timing.copy_bytes_per_second);
}

std::optional<Activation> activation_choice(const std::string& name) {
    const std::optional<Activation> chosen = activation_named(name);
    if (!name.empty() && !chosen) throw InvalidRequestError("activation must be relu2, silu or gelu_tanh, not '" + name + "'");
    return chosen;
}

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

nb::object compare_logits(FloatRows a, FloatRows b, TokenArray target_ids, int n_threads) {
    const size_t rows = a.shape(0), vocab = a.shape(1);
    if (b.shape(0) != rows || b.shape(1) != vocab || target_ids.size() != rows || vocab == 0 || vocab > INT32_MAX)
        throw InvalidRequestError("a and b must have the same shape [n, vocab], and target_ids a token for each row");
    for (size_t i = 0; i < rows; i++)
        if (target_ids.data()[i] < -1 || target_ids.data()[i] >= static_cast<int64_t>(vocab))
            throw InvalidRequestError("token id " + std::to_string(target_ids.data()[i]) + " is outside the vocabulary of " + std::to_string(vocab));
    constexpr size_t kColumns = sizeof(PositionComparison) / sizeof(double);
    double* data;
    auto array = own_array<double, 2>({rows, kColumns}, &data);
    {
        nb::gil_scoped_release release;
        ThreadPool pool(n_threads > 0 ? n_threads : physical_cores());
        pool.run([&](ThreadPool::Worker& worker) {
            worker.parallel_for(static_cast<int64_t>(rows), 1, [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; i++) {
                    const size_t row = static_cast<size_t>(i);
                    const PositionComparison c = compare_position(a.data() + row * vocab, b.data() + row * vocab,
                                                                  static_cast<int32_t>(vocab), target_ids.data()[row]);
                    std::memcpy(data + row * kColumns, &c, sizeof c);
                }
            });
        });
    }
    return nb::cast(array);
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
    if (model.architecture().scaled_embedding) {
        const float scale = std::sqrt(static_cast<float>(size));
        for (size_t i = 0; i < count * size; i++) data[i] *= scale;
    }
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

Sampler new_sampler(float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty, float presence_penalty,
                    float frequency_penalty, uint64_t seed, const std::optional<nb::dict>& logit_bias, const std::vector<int32_t>& prompt_ids) {
    std::vector<std::pair<int32_t, float>> bias;
    if (logit_bias)
        for (const auto& [token, value] : *logit_bias) bias.emplace_back(nb::cast<int32_t>(token), nb::cast<float>(value));
    if (!(repetition_penalty > 0)) throw InvalidRequestError("repetition_penalty must be positive");
    return Sampler({temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed}, std::move(bias), prompt_ids);
}

// Native exceptions become the Python exceptions of bitnet.errors, looked up when raised.
void raise(const char* name, const char* message) {
    nb::object type = nb::module_::import_("bitnet.errors").attr(name);
    PyErr_SetObject(type.ptr(), text(message).ptr());  // the message may quote a path that is not UTF-8
}

void translate(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const ModelFileError& e) {
        raise("ModelFileError", e.what());
    } catch (const InvalidRequestError& e) {
        raise("ValidationError", e.what());
    } catch (const LayoutError& e) {
        raise("ValidationError", e.what());
    } catch (const DeviceError& e) {
        raise("DeviceError", e.what());
    } catch (const CancelledError& e) {
        raise("CancelledError", e.what());
    }
}

}  // namespace
}  // namespace bitnet

NB_MODULE(_native, m) {
    using namespace bitnet;
    nb::set_leak_warnings(false);  // interpreter exit with live generations is normal; the pools join in their destructors
    nb::register_exception_translator(translate);

    nb::class_<TensorSummary>(m, "TensorInfo")
        .def_ro("name", &TensorSummary::name)
        .def_ro("type_name", &TensorSummary::type_name)
        .def_ro("shape", &TensorSummary::shape)
        .def_ro("offset", &TensorSummary::offset)
        .def_ro("n_bytes", &TensorSummary::n_bytes);

    nb::class_<GgufFile>(m, "ModelFile")
        .def(nb::new_([](const std::string& path) {
                 nb::gil_scoped_release release;
                 return GgufFile::open(path);
             }),
             "path"_a)
        .def_prop_ro("path", &GgufFile::path)
        .def_prop_ro("version", &GgufFile::version)
        .def_prop_ro("size", [](const GgufFile& f) { return f.file().size(); })
        .def_prop_ro("metadata", metadata)
        .def_prop_ro("metadata_kinds", metadata_kinds)
        .def_prop_ro("data_offset", data_offset)
        .def("activation", [](const GgufFile& file, const std::string& wanted) {
                 std::string repair;
                 return std::string(activation_name(choose_activation(file, find_architecture(file), activation_choice(wanted), &repair)));
             }, "wanted"_a = "")
        .def_prop_ro("tensors", tensors);

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

    nb::class_<Sampled>(m, "Sampled")
        .def_ro("token_id", &Sampled::token)
        .def_ro("logprob", &Sampled::logprob)
        .def_ro("top", &Sampled::top);

    nb::class_<Sampler>(m, "Sampler")
        .def(nb::new_(&new_sampler), nb::kw_only(), "temperature"_a = 0.7f, "top_k"_a = 40, "top_p"_a = 0.9f, "min_p"_a = 0.0f,
             "repetition_penalty"_a = 1.0f, "presence_penalty"_a = 0.0f, "frequency_penalty"_a = 0.0f, "seed"_a = 0,
             "logit_bias"_a = nb::none(), "prompt_ids"_a = std::vector<int32_t>{})
        .def("accept", &Sampler::accept, "token_id"_a)
        .def("sample", [](Sampler& sampler, Logits logits, int n_logprobs) {
                 return sampler.sample(LogitRow::of_logits(logits.data(), static_cast<int32_t>(logits.size())), n_logprobs);
             }, "logits"_a, "logprobs"_a = -1, nb::call_guard<nb::gil_scoped_release>())
        .def("set_mask", [](Sampler& sampler, std::optional<TokenArray> mask) {
                 std::vector<uint32_t> words;
                 if (mask) {
                     words.resize(mask->size());
                     std::memcpy(words.data(), mask->data(), words.size() * sizeof(uint32_t));
                 }
                 sampler.set_mask(std::move(words));
             }, "mask"_a.none());

    nb::class_<Flag>(m, "Flag")
        .def(nb::init<>())
        .def("set", [](Flag& flag) { flag.value = true; })
        .def("take", [](Flag& flag) { return flag.value.exchange(false); })
        .def_prop_ro("address", [](const Flag& flag) { return reinterpret_cast<uintptr_t>(&flag); })
        .def_prop_ro_static("reader", [](nb::handle) { return reinterpret_cast<uintptr_t>(&flag_is_set); });

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

    m.def("cpu_kernels", [] {
        std::vector<std::string> names;
        for (const Kernels* const* table = supported_kernels(); *table; ++table) names.emplace_back((*table)->name);
        return names;
    });
    m.def("decode_ternary", decode_ternary, "data"_a, "type_name"_a, "rows"_a, "cols"_a, "layout"_a = "", "tl_tiles"_a = TileRows{});
    m.def("encode_ternary", encode_ternary_bytes, "codes"_a, "scale"_a, "type_name"_a, "layout"_a = "", "tl_tiles"_a = TileRows{});
    m.def("decode_rows", decode_rows, "data"_a, "type_name"_a, "rows"_a, "cols"_a);
    nb::class_<GpuDevice>(m, "GpuDevice")
        .def_ro("name", &GpuDevice::name)
        .def_prop_ro("capability", [](const GpuDevice& d) { return std::to_string(d.major) + "." + std::to_string(d.minor); })
        .def_ro("n_processors", &GpuDevice::n_processors)
        .def_ro("total_bytes", &GpuDevice::total_bytes)
        .def_ro("free_bytes", &GpuDevice::free_bytes)
        .def_ro("emulated", &GpuDevice::emulated)
        .def_ro("problem", &GpuDevice::problem);
    m.def("gpu_devices", [](const std::string& library) {
        nb::gil_scoped_release release;
        std::string problem;
        std::vector<GpuDevice> devices = GpuLibrary::open(library)->devices(&problem);
        return std::pair(std::move(devices), std::move(problem));
    }, "library"_a);
    m.def("gpu_product", gpu_product, "library"_a, "device"_a, "codes"_a, "x"_a, "timed"_a = false);
    m.def("encode_rows", encode_rows, "values"_a, "type_name"_a);
    m.def("compare_logits", compare_logits, "a"_a, "b"_a, "target_ids"_a, "n_threads"_a = 0);
    m.def("physical_cores", physical_cores);
    m.def("build_info", [] {
        nb::dict info;
#if defined(__clang__)
        info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
        info["compiler"] = "gcc " __VERSION__;
#else
        info["compiler"] = "unknown";
#endif
        info["version"] = BITNET_VERSION;
        info["kernels"] = select_kernels()->name;
        return info;
    });
}
