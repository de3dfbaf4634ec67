// The tensor types of model files: ids, names and sizes. Source: the GGUF type numbers of upstream llama.cpp and of
// bitnet.cpp (I2_S = 36).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace bitnet {

enum class TensorType : uint32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q8_0 = 8,
    Q6_K = 14,
    BF16 = 30,
    I2_S = 36,  // ternary, 128 elements in 32 bytes over the flat tensor, one f32 scale behind the codes
};

// Human-readable name of any type id: "I2_S" for a supported type, "Q4_K (12)" or "unknown (99)" for all others.
std::string tensor_type_name(uint32_t id);

// The type of a name such as "f16" or "Q6_K"; nullopt if it is unknown or this engine cannot read it.
std::optional<TensorType> tensor_type_named(std::string_view name);

// Whether this engine can read tensors of the type.
bool is_supported(uint32_t id);

// Elements per block (32 for Q4_0 and Q8_0, 256 for Q6_K, 1 for plain floats and for I2_S, which is blocked over the flat tensor).
uint32_t block_elements(TensorType type);

// Bytes of a tensor with `n_elements` elements (a multiple of block_elements): nullopt on overflow. For I2_S:
// ceil(n/128)*32 of codes, the f32 scale and 28 bytes of padding. Published files have n % 128 == 0, where this is the
// M*K/4 + 32 of bitnet.cpp; for other n its writers drop the last codes, ours write the whole last block.
std::optional<uint64_t> tensor_bytes(TensorType type, uint64_t n_elements);

}  // namespace bitnet
