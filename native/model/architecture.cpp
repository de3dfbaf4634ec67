#include "model/architecture.h"

#include <cmath>

#include "platform/errors.h"

namespace bitnet {

namespace {

constexpr Architecture kArchitectures[] = {
    // name          activation            sub    rows   head   proj.  post   scaled
    {"bitnet-b1.58", Activation::Relu2,    true,  false, false, false, false, false},  // BitNet b1.58 2B-4T
    {"bitnet-25",    Activation::Relu2,    true,  false, false, false, false, false},  // its first published files
    {"bitnet",       Activation::Silu,     true,  false, false, false, false, false},  // 1bitLLM bitnet_b1_58-large and 3B
    {"llama",        Activation::Silu,     false, true,  false, false, false, false},  // Llama3-8B-1.58, Falcon3, Falcon-E
    {"qwen3",        Activation::Silu,     false, false, true,  true,  false, false},  // BitNet-embedding-0.6B
    {"gemma3",       Activation::GeluTanh, false, false, true,  true,  true,  true},   // BitNet-embedding-270M
};

// Keys that ask for another graph, unless they are 0 or false.
constexpr const char* kForeignKeys[] = {
    "attention.sliding_window", "attention.scale", "attention.alibi_bias_max", "attention.clamp_kqv",
    "attn_logit_softcapping",   "final_logit_softcapping", "expert_count", "embedding_scale", "residual_scale", "logit_scale",
};

// The vocabularies of the two models whose converters mix up their architectures: SentencePiece with two added tokens, and
// Llama 3's.
constexpr uint64_t kOneBitLlmVocabulary = 32002, kLlama3Vocabulary = 128256;

uint64_t n_tokens(const GgufFile& file) {
    const MetadataValue* tokens = file.find("tokenizer.ggml.tokens");
    const auto* array = tokens ? std::get_if<MetadataArray>(&tokens->value) : nullptr;
    return array ? array->count : 0;
}

bool is_zero(const MetadataValue& value) {
    if (const auto* natural = std::get_if<uint64_t>(&value.value)) return *natural == 0;
    if (const auto* integer = std::get_if<int64_t>(&value.value)) return *integer == 0;
    if (const auto* number = std::get_if<double>(&value.value)) return *number == 0;
    return false;
}

void refuse_other_graphs(const GgufFile& file, const Architecture& architecture) {
    const std::string prefix = std::string(architecture.name) + ".";
    for (const char* key : kForeignKeys) {
        const MetadataValue* value = file.find(prefix + key);
        if (value && !is_zero(*value))
            file.fail("the key '" + prefix + key + "' asks for something that this engine does not compute; BitNet models of the "
                      "architecture " + quote(architecture.name) + " have no such key");
    }
    if (!file.get_bool(prefix + "attention.causal", true))
        file.fail("'" + prefix + "attention.causal' is false: attention in both directions is not computed here");
}

}  // namespace

std::string_view activation_name(Activation activation) {
    switch (activation) {
        case Activation::Relu2: return "relu2";
        case Activation::Silu: return "silu";
        case Activation::GeluTanh: break;
    }
    return "gelu_tanh";
}

std::optional<Activation> activation_named(std::string_view name) {
    for (const Activation activation : {Activation::Relu2, Activation::Silu, Activation::GeluTanh})
        if (activation_name(activation) == name) return activation;
    return std::nullopt;
}

const Architecture& find_architecture(const GgufFile& file) {
    const std::string_view name = file.require_string("general.architecture");
    for (const Architecture& architecture : kArchitectures) {
        if (architecture.name != name) continue;
        refuse_other_graphs(file, architecture);
        return architecture;
    }
    std::string known;
    for (const Architecture& architecture : kArchitectures)
        known += (known.empty() ? "" : ", ") + std::string(architecture.name);
    file.fail("unknown architecture " + quote(name) + "; this engine computes " + known);
}

Activation choose_activation(const GgufFile& file, const Architecture& architecture, std::optional<Activation> wanted, std::string* repair) {
    if (!architecture.sub_norms) {
        if (wanted && *wanted != architecture.activation)
            throw InvalidRequestError("activation: models of the architecture '" + std::string(architecture.name) + "' have " +
                                      std::string(activation_name(architecture.activation)) + "; leave it out");
        return architecture.activation;
    }
    if (wanted == Activation::GeluTanh) throw InvalidRequestError("activation: BitNet models have relu2 or silu, not gelu_tanh");
    if (wanted) return *wanted;
    const MetadataValue* tokenizer = file.find("tokenizer.ggml.model");
    const auto* kind = tokenizer ? std::get_if<std::string_view>(&tokenizer->value) : nullptr;
    const auto has = [&](uint64_t count, std::string_view model) { return n_tokens(file) == count && kind && *kind == model; };
    const auto other = [&](Activation activation, const char* family) {
        *repair = "the architecture is called " + quote(architecture.name) + ", but the vocabulary is that of " + family + ": " +
                  std::string(activation_name(activation)) + " is computed (activation says otherwise)";
        return activation;
    };
    if (architecture.activation == Activation::Relu2 && has(kOneBitLlmVocabulary, "llama")) return other(Activation::Silu, "the 1bitLLM models");
    if (architecture.activation == Activation::Silu && has(kLlama3Vocabulary, "gpt2")) return other(Activation::Relu2, "BitNet b1.58 2B-4T");
    return architecture.activation;
}

ModelSizes read_sizes(const GgufFile& file) {
    const std::string prefix = std::string(file.require_string("general.architecture")) + ".";
    const auto size = [&](const char* key, uint32_t limit) {
        const uint32_t value = file.require_u32(prefix + key);
        if (value == 0 || value > limit)
            file.fail("'" + prefix + key + "' must be 1.." + std::to_string(limit) + ", found " + std::to_string(value));
        return static_cast<int32_t>(value);
    };
    const auto optional_size = [&](const char* key, int32_t fallback, uint32_t limit) {
        return file.find(prefix + key) ? size(key, limit) : fallback;
    };

    ModelSizes s;
    s.n_layers = size("block_count", 1024);
    s.hidden_size = size("embedding_length", 65536);
    s.ffn_size = size("feed_forward_length", 131072);  // kernels sum exactly up to this width
    s.n_heads = size("attention.head_count", 1024);
    s.n_kv_heads = optional_size("attention.head_count_kv", s.n_heads, 1024);
    s.context_length = size("context_length", 1u << 24);
    if (s.n_heads % s.n_kv_heads != 0)
        file.fail("head_count " + std::to_string(s.n_heads) + " is not a multiple of head_count_kv " + std::to_string(s.n_kv_heads));

    if (!file.find(prefix + "attention.key_length") && s.hidden_size % s.n_heads != 0)
        file.fail("embedding_length " + std::to_string(s.hidden_size) + " is not a multiple of head_count " +
                  std::to_string(s.n_heads) + ", and attention.key_length is missing");
    s.head_dim = optional_size("attention.key_length", s.hidden_size / s.n_heads, 4096);
    if (optional_size("attention.value_length", s.head_dim, 4096) != s.head_dim)
        file.fail("attention.value_length differs from the key length " + std::to_string(s.head_dim) + ": not supported");
    if (s.head_dim % 2 != 0) file.fail("head dimension must be even, found " + std::to_string(s.head_dim));
    if (int64_t{s.n_heads} * s.head_dim > 131072)
        file.fail("attention width must be at most 131072, found " + std::to_string(int64_t{s.n_heads} * s.head_dim));
    s.n_rot = optional_size("rope.dimension_count", s.head_dim, 4096);
    if (s.n_rot % 2 != 0 || s.n_rot > s.head_dim)
        file.fail("rope.dimension_count must be even and at most the head dimension " + std::to_string(s.head_dim) + ", found " +
                  std::to_string(s.n_rot));

    if (find_architecture(file).interleaved_rope_rows && s.n_rot != s.head_dim)
        file.fail("rope.dimension_count " + std::to_string(s.n_rot) + " differs from the head dimension " +
                  std::to_string(s.head_dim) + ": partial rotation is not supported for this architecture");

    s.norm_eps = file.require_f32(prefix + "attention.layer_norm_rms_epsilon");
    if (!(s.norm_eps > 0 && s.norm_eps < 1))
        file.fail("'" + prefix + "attention.layer_norm_rms_epsilon' must be between 0 and 1, found " + std::to_string(s.norm_eps));
    s.rope_base = file.get_f32(prefix + "rope.freq_base", 10000.0f);
    if (!(s.rope_base > 0) || !std::isfinite(s.rope_base))
        file.fail("'" + prefix + "rope.freq_base' must be positive, found " + std::to_string(s.rope_base));
    if (file.find(prefix + "rope.scaling.type")) {
        const std::string_view scaling = file.require_string(prefix + "rope.scaling.type");
        const float factor = file.get_f32(prefix + "rope.scaling.factor", 1.0f);
        if (scaling != "none" && !(scaling == "linear" && factor == 1.0f))
            file.fail("rope scaling " + quote(scaling) + " is not supported");
    }

    const TensorInfo* embedding = file.find_tensor("token_embd.weight");
    if (!embedding) file.fail("tensor 'token_embd.weight' is missing");
    const MetadataValue* tokens = file.find("tokenizer.ggml.tokens");
    const auto* token_array = tokens ? std::get_if<MetadataArray>(&tokens->value) : nullptr;
    if (!token_array || token_array->element_type != ValueType::String)
        file.fail("'tokenizer.ggml.tokens' must be an array of strings");
    if (embedding->n_dims != 2 || embedding->dims[1] != token_array->count)
        file.fail("'token_embd.weight' must have one row per token (" + std::to_string(token_array->count) + "), found " +
                  std::to_string(embedding->dims[1]));
    if (token_array->count == 0 || token_array->count > (1u << 24)) file.fail("the vocabulary must have 1..16777216 tokens");
    s.vocab_size = static_cast<int32_t>(token_array->count);
    if (file.find(prefix + "vocab_size") && file.require_u32(prefix + "vocab_size") != token_array->count)
        file.fail("'" + prefix + "vocab_size' is " + std::to_string(file.require_u32(prefix + "vocab_size")) + ", but the vocabulary has " +
                  std::to_string(token_array->count) + " tokens");
    return s;
}

}  // namespace bitnet
