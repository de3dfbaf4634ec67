// The tensor types of model files: ids, names and sizes. Source: the GGUF type numbers of upstream llama.cpp and of
// bitnet.cpp (I2_S, TL1, TL2), which collide at 39 (MXFP4 or TL2) and 42 (Q2_0 or TL2).
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
    // Ternary, see quant/ternary_layout.h.
    TQ1_0 = 34,
    TQ2_0 = 35,
    I2_S = 36,
    TL1 = 38,
    TL2 = 39,  // 42 in some files; this engine does not read MXFP4
    Q2_0 = 42,
};

bool is_ternary(TensorType type);

std::string tensor_type_name(TensorType type);  // such as "I2_S"

// What is known of an id that this engine cannot read: "Q4_K (12)", "unknown (99)".
std::string unreadable_type_name(uint32_t id);

// The type of a name such as "f16" or "Q6_K"; nullopt if this engine cannot read it.
std::optional<TensorType> tensor_type_named(std::string_view name);

// The type of a tensor [cols, rows] that a file calls `id` and has `extent` bytes for; nullopt if this engine cannot read it.
// Where two types share an id, the one that needs more bytes is meant if there are so many.
std::optional<TensorType> resolve_type(uint32_t id, uint64_t cols, uint64_t rows, uint64_t extent);

// Elements per block of a row: 32 for Q4_0 and Q8_0, 64 for Q2_0, 256 for Q6_K, TQ1_0 and TQ2_0, else 1.
uint32_t block_elements(TensorType type);

// Bytes of a tensor with rows of `cols` elements (a multiple of block_elements): nullopt on overflow.
//   I2_S: ceil(n/128)*32 of codes, the f32 scale and 28 bytes of padding. Published files have n % 128 == 0, where this is
//         the M*K/4 + 32 of bitnet.cpp; for other n its writers drop the last codes, ours write the whole last block.
//   TL1:  M*K/4 of codes, up to a multiple of 32; the scale and padding as above
//   TL2:  tl2_payload_bytes, likewise
std::optional<uint64_t> tensor_bytes(TensorType type, uint64_t cols, uint64_t rows);

// What bitnet.cpp declares as the size of TL2 codes (always as if the two-column part were 256 wide); cols >= 256.
uint64_t tl2_payload_bytes(uint64_t cols, uint64_t rows);

}  // namespace bitnet
