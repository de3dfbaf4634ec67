// What a model file's architecture string means: the descriptor table (data, not subclasses) and the sizes read from the
// metadata. Anything unknown refuses to load; the activation above all is never guessed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "gguf/gguf_file.h"

namespace bitnet {

enum class Activation { Relu2, Silu, GeluTanh };

struct Architecture {
    std::string_view name;      // general.architecture
    Activation activation;      // see choose_activation
    bool sub_norms;             // RMSNorm before the attention output and the FFN down projection
    bool interleaved_rope_rows; // q/k rows were permuted for interleaved RoPE by the converter; undone at load, so that one
                                // RoPE (NEOX, halves) serves all
    bool head_norms;            // RMSNorm of every head of q and k, before RoPE
    bool projection_norms;      // a linear map may have an RMSNorm of its input, which nothing else sees (tensors *_norm_in)
    bool post_norms;            // RMSNorm of what attention and FFN add to the residual stream
    bool scaled_embedding;      // embeddings times sqrt(hidden_size)
};

// All tensor widths, checked against each other and against sane limits.
struct ModelSizes {
    int32_t n_layers = 0;
    int32_t hidden_size = 0;
    int32_t ffn_size = 0;
    int32_t n_heads = 0;
    int32_t n_kv_heads = 0;
    int32_t head_dim = 0;       // even
    int32_t n_rot = 0;          // rotated dimensions of each head
    int32_t vocab_size = 0;
    int32_t context_length = 0;
    float norm_eps = 0;
    float rope_base = 0;

    int32_t q_size() const { return n_heads * head_dim; }
    int32_t kv_size() const { return n_kv_heads * head_dim; }
};

// Throws ModelFileError for an unknown architecture, and for keys that ask for another graph than it has here.
const Architecture& find_architecture(const GgufFile& file);

// The activation of the feed-forward network, which no file says. Two architectures carry models of either kind; their
// vocabularies tell which. `repair` is then set to a sentence for the user.
// wanted: what the user says; throws InvalidRequestError where there is no choice.
Activation choose_activation(const GgufFile& file, const Architecture& architecture, std::optional<Activation> wanted, std::string* repair);

// Throws ModelFileError for missing keys, wrong types and contradictory or absurd sizes.
ModelSizes read_sizes(const GgufFile& file);

std::string_view activation_name(Activation activation);
std::optional<Activation> activation_named(std::string_view name);

}  // namespace bitnet
