// Finds every tensor a descriptor asks for, checks its type and shape, and refuses whatever it does not know.
#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "platform/errors.h"
#include "quant/dense.h"

namespace bitnet {

namespace {

// Collects the tensors that were used, so that left-over ones (biases, scaling factors: a graph we do not compute) are found.
class TensorFinder {
public:
    explicit TensorFinder(const GgufFile& file) : file_(file) {}

    const TensorInfo& find(const std::string& name, uint64_t dim0, uint64_t dim1) {
        const TensorInfo* tensor = file_.find_tensor(name);
        if (!tensor) file_.fail("tensor '" + name + "' is missing");
        used_.insert(tensor->name);
        const bool vector = dim1 == 1;
        if (tensor->dims[0] != dim0 || tensor->dims[1] != dim1 || tensor->dims[2] != 1 || tensor->dims[3] != 1 ||
            (vector && tensor->n_dims > 2))
            file_.fail("tensor '" + name + "' must have shape [" + std::to_string(dim0) +
                       (vector ? "" : ", " + std::to_string(dim1)) + "], found [" + shape(*tensor) + "]");
        if (!tensor->type)
            file_.fail("tensor '" + name + "' has type " + tensor->type_name() + ", which this engine does not read");
        return *tensor;
    }

    TernarySource ternary(const std::string& name, int32_t cols, int32_t rows, const LayoutChoice& layout) {
        const TensorInfo& tensor = find(name + ".weight", static_cast<uint64_t>(cols), static_cast<uint64_t>(rows));
        if (!is_ternary(*tensor.type))
            file_.fail("tensor '" + name + ".weight' must be ternary, found " + tensor.type_name() +
                       ": only models with 1.58-bit weights are computed here; convert them with a ternary type");
        TernarySource source{&tensor, view(tensor, cols, rows, layout), {}, 1};
        const std::string scale = name + ".scale";  // beside the tensor's own
        if (file_.find_tensor(scale)) {
            source.factor = vector(scale, 1)[0];
            if (source.factor < 0) file_.fail("tensor '" + scale + "' must not be negative, found " + std::to_string(source.factor));
        }
        return source;
    }

    const TensorInfo& dense(const std::string& name, int32_t cols, int32_t rows) {
        const TensorInfo& tensor = find(name, static_cast<uint64_t>(cols), static_cast<uint64_t>(rows));
        if (is_ternary(*tensor.type)) file_.fail("tensor '" + name + "' must be a float or block format, found " + tensor.type_name());
        return tensor;
    }

    std::vector<float> vector(const std::string& name, int32_t size) {
        const TensorInfo& tensor = dense(name, size, 1);
        const TensorType type = *tensor.type;
        if (type != TensorType::F32 && type != TensorType::F16 && type != TensorType::BF16)
            file_.fail("tensor '" + name + "' must be F32, F16 or BF16, found " + tensor.type_name());
        std::vector<float> values(static_cast<size_t>(size));
        decode_row(type, tensor.data, values.size(), values.data());
        for (float value : values)
            if (!std::isfinite(value)) file_.fail("tensor '" + name + "' has a value that is not finite");
        return values;
    }

    void refuse_unused() const {
        for (const TensorInfo& tensor : file_.tensors())
            if (!used_.count(tensor.name))
                file_.fail("unexpected tensor " + quote(tensor.name) + ": this architecture is not known to have it");
    }

private:
    TernaryTensor view(const TensorInfo& tensor, int32_t cols, int32_t rows, const LayoutChoice& layout) const {
        try {
            return TernaryTensor(*tensor.type, tensor.data, rows, cols, layout);
        } catch (const LayoutError& error) {
            file_.fail("tensor '" + std::string(tensor.name) + "': " + error.what());
        }
    }

    static std::string shape(const TensorInfo& tensor) {
        std::string text;
        for (uint32_t d = 0; d < tensor.n_dims; d++) text += (d ? ", " : "") + std::to_string(tensor.dims[d]);
        return text;
    }

    const GgufFile& file_;
    std::unordered_set<std::string_view> used_;
};

// Where row m of a NEOX-paired q or k stands in a file whose converter interleaved the pairs:
// file row 2*i + j of each head holds original row j*(head_dim/2) + i.
std::vector<int32_t> undo_interleaving(int32_t n_heads, int32_t head_dim) {
    std::vector<int32_t> order(static_cast<size_t>(n_heads) * static_cast<size_t>(head_dim));
    const int32_t half = head_dim / 2;
    for (int32_t head = 0; head < n_heads; head++)
        for (int32_t j = 0; j < 2; j++)
            for (int32_t i = 0; i < half; i++)
                order[static_cast<size_t>(head * head_dim + j * half + i)] = head * head_dim + 2 * i + j;
    return order;
}

DenseRows dense_rows(const TensorInfo& tensor) {
    return {*tensor.type, tensor.data, row_bytes(*tensor.type, tensor.dims[0])};
}

// What embedding and head have to be converted to so that both are of the wanted type; nullopt: nothing.
std::optional<TensorType> type_to_convert_to(std::optional<TensorType> wanted, const TensorInfo& embedding, const TensorInfo& head) {
    if (!wanted) return std::nullopt;
    if (embedding.type == wanted && head.type == wanted) return std::nullopt;
    if (embedding.dims[0] % block_elements(*wanted) != 0)
        throw InvalidRequestError("embd_type: " + tensor_type_name(*wanted) + " has blocks of " + std::to_string(block_elements(*wanted)) +
                                  " elements, and rows of " + std::to_string(embedding.dims[0]) +
                                  " cannot be divided into them; choose another type");
    return wanted;
}

void check_token_ids(const GgufFile& file, int32_t vocab_size) {
    for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                            "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"}) {
        if (file.find(key) && file.require_u32(key) >= static_cast<uint32_t>(vocab_size))
            file.fail("'" + std::string(key) + "' is " + std::to_string(file.require_u32(key)) + ", but the vocabulary has " +
                      std::to_string(vocab_size) + " tokens");
    }
}

std::string describe_zeros(const std::vector<std::string_view>& names) {
    constexpr size_t kNamed = 8;
    std::string text = std::to_string(names.size()) + (names.size() == 1 ? " tensor is" : " tensors are") + " entirely zero: ";
    for (size_t i = 0; i < std::min(names.size(), kNamed); i++) text += (i ? ", " : "") + std::string(names[i]);
    if (names.size() > kNamed) text += " and " + std::to_string(names.size() - kNamed) + " more";
    return text + ". This file is probably damaged, expect poor output; download or convert it again.";
}

}  // namespace

std::shared_ptr<Model> Model::load(std::shared_ptr<GgufFile> file, const ModelOptions& options) {
    auto model = std::shared_ptr<Model>(new Model());
    model->file_ = file;
    model->architecture_ = &find_architecture(*file);
    const Architecture& architecture = *model->architecture_;
    std::string repair;
    model->activation_ = choose_activation(*file, architecture, options.activation, &repair);
    if (!repair.empty()) model->repairs_.push_back(repair);
    const ModelSizes s = model->sizes_ = read_sizes(*file);
    check_token_ids(*file, s.vocab_size);

    TensorFinder finder(*file);
    const TensorInfo& embedding = finder.dense("token_embd.weight", s.hidden_size, s.vocab_size);
    const TensorInfo* head = &embedding;
    if (file->find_tensor("output.weight")) {
        head = &finder.dense("output.weight", s.hidden_size, s.vocab_size);
        model->tied_head_ = false;
    }
    model->output_norm_ = finder.vector("output_norm.weight", s.hidden_size);

    std::vector<TernarySource> sources;
    for (int32_t i = 0; i < s.n_layers; i++) {
        const std::string prefix = "blk." + std::to_string(i) + ".";
        const auto norm = [&](const char* name, int32_t size) { return finder.vector(prefix + name + ".weight", size); };
        LayerWeights layer;
        layer.attn_norm = norm("attn_norm", s.hidden_size);
        layer.ffn_norm = norm("ffn_norm", s.hidden_size);
        if (architecture.sub_norms) {
            layer.o.input_norm = norm("attn_sub_norm", s.q_size());
            layer.down.input_norm = norm("ffn_sub_norm", s.ffn_size);
        }
        if (architecture.head_norms) {
            layer.q_head_norm = norm("attn_q_norm", s.head_dim);
            layer.k_head_norm = norm("attn_k_norm", s.head_dim);
        }
        if (architecture.post_norms) {
            layer.post_attn_norm = norm("post_attention_norm", s.hidden_size);
            layer.post_ffn_norm = norm("post_ffw_norm", s.hidden_size);
        }
        const auto add = [&](Projection& projection, const char* name, int32_t cols, int32_t rows, std::vector<int32_t> order = {}) {
            sources.push_back(finder.ternary(prefix + name, cols, rows, options.layout));
            sources.back().row_order = std::move(order);
            const std::string own_norm = prefix + name + "_norm_in.weight";
            if (architecture.projection_norms && file->find_tensor(own_norm)) projection.input_norm = finder.vector(own_norm, cols);
        };
        const auto order = [&](int32_t n_heads) {
            return architecture.interleaved_rope_rows ? undo_interleaving(n_heads, s.head_dim) : std::vector<int32_t>{};
        };
        add(layer.q, "attn_q", s.hidden_size, s.q_size(), order(s.n_heads));
        add(layer.k, "attn_k", s.hidden_size, s.kv_size(), order(s.n_kv_heads));
        add(layer.v, "attn_v", s.hidden_size, s.kv_size());
        add(layer.o, "attn_output", s.q_size(), s.hidden_size);
        add(layer.gate, "ffn_gate", s.hidden_size, s.ffn_size);
        add(layer.up, "ffn_up", s.hidden_size, s.ffn_size);
        add(layer.down, "ffn_down", s.ffn_size, s.hidden_size);
        model->layers_.push_back(std::move(layer));
    }
    finder.refuse_unused();

    const DenseSources dense{&embedding, head, type_to_convert_to(options.embedding_type, embedding, *head)};
    model->packed_ = PackedWeights::create(*file, sources, dense, options.n_threads, options.cache_path);
    const PackedWeights& packed = *model->packed_;
    if (!packed.warning().empty()) model->warnings_.push_back(packed.warning());
    size_t index = 0;
    std::vector<std::string_view> zeros;
    for (LayerWeights& layer : model->layers_)
        for (Projection* projection : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
            if (packed.is_all_zero(index)) zeros.push_back(sources[index].tensor->name);
            TernaryWeights& weights = projection->weights = packed.matrix(index);
            if (options.divide_by_scales && weights.scale > 0) weights.scale = 1 / weights.scale;
            if (!std::isfinite(weights.scale))
                file->fail("the scale of tensor '" + std::string(sources[index].tensor->name) + "' is too small to divide by");
            index++;
        }
    if (!zeros.empty()) model->warnings_.push_back(describe_zeros(zeros));

    model->embedding_ = dense_rows(embedding);
    model->head_ = dense_rows(*head);
    if (dense.kept_as) {
        const size_t bytes = row_bytes(*dense.kept_as, static_cast<size_t>(s.hidden_size));
        model->embedding_ = {*dense.kept_as, packed.converted_embedding(), bytes};
        model->head_ = {*dense.kept_as, packed.converted_head(), bytes};
    }
    for (const TensorInfo& tensor : file->tensors()) model->n_parameters_ += tensor.n_elements();
    if (!options.use_mmap && !dense.kept_as) {
        const size_t embedding_bytes = model->embedding_.row_bytes * static_cast<size_t>(s.vocab_size);
        const size_t head_bytes = model->tied_head_ ? 0 : model->head_.row_bytes * static_cast<size_t>(s.vocab_size);
        model->dense_memory_ = PageBuffer(embedding_bytes + head_bytes);
        uint8_t* memory = model->dense_memory_.data();
        std::memcpy(memory, model->embedding_.data, embedding_bytes);
        if (head_bytes) std::memcpy(memory + embedding_bytes, model->head_.data, head_bytes);
        model->embedding_.data = memory;
        model->head_.data = model->tied_head_ ? memory : memory + embedding_bytes;
    }
    if (!options.use_mmap) file->file().forget(0, file->file().size());
    if (options.use_mlock) {
        std::string reason;
        const auto lock_rows = [&] {
            if (dense.kept_as) return true;  // they are among the packed weights
            if (options.use_mmap) return file->file().lock(&reason);
            return model->dense_memory_.lock() || (reason = "the system refused", false);
        };
        const bool locked = packed.lock(&reason) && lock_rows();
        if (!locked) model->warnings_.push_back("use_mlock: the weights could not be locked in memory: " + reason);
    }
    return model;
}

float Model::embedding_scale() const {
    return architecture_->scaled_embedding ? std::sqrt(static_cast<float>(sizes_.hidden_size)) : 1.0f;
}

size_t Model::dense_bytes() const {
    const size_t rows = static_cast<size_t>(sizes_.vocab_size);
    return embedding_.row_bytes * rows + (tied_head_ ? 0 : head_.row_bytes * rows);
}

}  // namespace bitnet
