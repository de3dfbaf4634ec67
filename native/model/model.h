// A loaded model: architecture, sizes, packed weights, norms, and the embedding and head rows.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "gguf/gguf_file.h"
#include "model/architecture.h"
#include "model/packed_weights.h"

namespace bitnet {

// Rows of a dense matrix in any supported format: in the file mapping, in private memory or among the packed weights.
struct DenseRows {
    TensorType type = TensorType::F32;
    const uint8_t* data = nullptr;
    size_t row_bytes = 0;

    const uint8_t* row(int32_t i) const { return data + static_cast<size_t>(i) * row_bytes; }
};

// A linear map with ternary weights, and the RMSNorm of its input that only it has; [in features], or empty.
struct Projection {
    TernaryWeights weights;
    std::vector<float> input_norm;
};

struct LayerWeights {
    std::vector<float> attn_norm;                 // [hidden]
    Projection q, k, v, o;
    std::vector<float> q_head_norm, k_head_norm;  // [head_dim], or empty
    std::vector<float> post_attn_norm;            // [hidden], or empty
    std::vector<float> ffn_norm;                  // [hidden]
    Projection gate, up, down;
    std::vector<float> post_ffn_norm;             // [hidden], or empty
};

struct ModelOptions {
    int n_threads = 1;        // for packing
    bool use_mmap = true;     // embedding and head rows stay in the file mapping; false copies them
    bool use_mlock = false;
    std::string cache_path;   // packed weights; empty = private memory
    bool divide_by_scales = false;  // W = t / scale, of files whose writer stored inverse scales
    LayoutChoice layout;      // of the ternary tensors, where the file does not say
    std::optional<Activation> activation;  // of the feed-forward network; nullopt = what the file stands for
    std::optional<TensorType> embedding_type;  // embedding and head are kept in this type; nullopt = as in the file
};

class Model {
public:
    // Throws ModelFileError for anything this engine does not compute exactly as trained.
    static std::shared_ptr<Model> load(std::shared_ptr<GgufFile> file, const ModelOptions& options);

    const std::string& path() const { return file_->path(); }
    const Architecture& architecture() const { return *architecture_; }
    Activation activation() const { return activation_; }
    const ModelSizes& sizes() const { return sizes_; }
    const std::vector<LayerWeights>& layers() const { return layers_; }
    const std::vector<float>& output_norm() const { return output_norm_; }
    const DenseRows& embedding() const { return embedding_; }
    const DenseRows& head() const { return head_; }
    const PackedWeights& packed() const { return *packed_; }
    bool tied_head() const { return tied_head_; }
    float embedding_scale() const;  // what embeddings are multiplied with; 1 = they are not
    uint64_t n_parameters() const { return n_parameters_; }
    size_t dense_bytes() const;  // embedding and head rows as kept
    const std::vector<std::string>& repairs() const { return repairs_; }    // what was wrong in the file, and is handled
    const std::vector<std::string>& warnings() const { return warnings_; }

private:
    Model() = default;

    std::shared_ptr<GgufFile> file_;
    const Architecture* architecture_ = nullptr;
    Activation activation_ = Activation::Relu2;
    ModelSizes sizes_;
    std::vector<LayerWeights> layers_;
    std::vector<float> output_norm_;
    DenseRows embedding_;
    DenseRows head_;
    PageBuffer dense_memory_;  // use_mmap = false: copies of the file's rows
    std::shared_ptr<PackedWeights> packed_;
    bool tied_head_ = true;
    uint64_t n_parameters_ = 0;
    std::vector<std::string> repairs_, warnings_;
};

}  // namespace bitnet
