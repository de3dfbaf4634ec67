// What a model file's architecture string means: the descriptor table (data, not subclasses) and the sizes read from the
// metadata. Anything unknown refuses to load; the activation above all is never guessed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "gguf/gguf_file.h"

namespace bitnet {

enum class Activation { Relu2, Silu };

struct Architecture {
    std::string_view name;      // general.architecture
    Activation activation;
    bool sub_norms;             // RMSNorm before the attention output and the FFN down projection
    bool interleaved_rope_rows; // q/k rows were permuted for interleaved RoPE by the converter; undone at load, so that one
                                // RoPE (NEOX, halves) serves all
};

// All tensor widths, checked against each other and against sane limits.
struct ModelSizes {
    int32_t n_layers = 0;
    int32_t hidden_size = 0;
    int32_t ffn_size = 0;
    int32_t n_heads = 0;
    int32_t n_kv_heads = 0;
    int32_t head_dim = 0;
    int32_t n_rot = 0;          // rotated dimensions of each head
    int32_t vocab_size = 0;
    int32_t context_length = 0;
    float norm_eps = 0;
    float rope_base = 0;

    int32_t q_size() const { return n_heads * head_dim; }
    int32_t kv_size() const { return n_kv_heads * head_dim; }
};

// Throws ModelFileError for an unknown architecture or a model of a known name that needs another graph.
const Architecture& find_architecture(const GgufFile& file);

// Throws ModelFileError for missing keys, wrong types and contradictory or absurd sizes.
ModelSizes read_sizes(const GgufFile& file);

std::string_view activation_name(Activation activation);

}  // namespace bitnet
