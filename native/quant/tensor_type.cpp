// Names and sizes of tensor types. The table of names is wider than what is supported, so that a refusal can say what
// the file holds.
#include "quant/tensor_type.h"

#include <algorithm>
#include <cctype>
#include <limits>

namespace bitnet {

namespace {

// Bytes per block of block_elements(type) elements; 0 for types that are not stored row by row.
uint64_t block_bytes(TensorType type) {
    switch (type) {
        case TensorType::F32: return 4;
        case TensorType::F16: return 2;
        case TensorType::BF16: return 2;
        case TensorType::Q4_0: return 18;   // f16 scale + 32 nibbles
        case TensorType::Q8_0: return 34;   // f16 scale + 32 int8
        case TensorType::Q6_K: return 210;  // 128 low nibbles, 64 high pairs, 16 int8 scales, f16 scale
        case TensorType::TQ1_0: return 54;  // 52 bytes of base-3 digits, f16 scale
        case TensorType::TQ2_0: return 66;  // 64 bytes of 2-bit codes, f16 scale
        case TensorType::Q2_0: return 18;   // f16 scale, 16 bytes of 2-bit codes
        case TensorType::I2_S:
        case TensorType::TL1:
        case TensorType::TL2: break;
    }
    return 0;
}

constexpr TensorType kReadable[] = {TensorType::F32,   TensorType::F16,   TensorType::Q4_0, TensorType::Q8_0, TensorType::Q6_K, TensorType::BF16,
                                    TensorType::TQ1_0, TensorType::TQ2_0, TensorType::I2_S, TensorType::TL1,  TensorType::TL2,  TensorType::Q2_0};

uint64_t align32(uint64_t n) { return (n + 31) / 32 * 32; }

const char* known_name(uint32_t id) {
    switch (id) {
        case 0: return "F32";
        case 1: return "F16";
        case 2: return "Q4_0";
        case 3: return "Q4_1";
        case 6: return "Q5_0";
        case 7: return "Q5_1";
        case 8: return "Q8_0";
        case 9: return "Q8_1";
        case 10: return "Q2_K";
        case 11: return "Q3_K";
        case 12: return "Q4_K";
        case 13: return "Q5_K";
        case 14: return "Q6_K";
        case 15: return "Q8_K";
        case 16: return "IQ2_XXS";
        case 17: return "IQ2_XS";
        case 18: return "IQ3_XXS";
        case 19: return "IQ1_S";
        case 20: return "IQ4_NL";
        case 21: return "IQ3_S";
        case 22: return "IQ2_S";
        case 23: return "IQ4_XS";
        case 24: return "I8";
        case 25: return "I16";
        case 26: return "I32";
        case 27: return "I64";
        case 28: return "F64";
        case 29: return "IQ1_M";
        case 30: return "BF16";
        case 34: return "TQ1_0";
        case 35: return "TQ2_0";
        case 36: return "I2_S";
        case 37: return "I8_S";
        case 38: return "TL1";
        case 39: return "MXFP4";  // where it is not TL2
        case 40: return "NVFP4";
        case 41: return "Q1_0";
        case 42: return "Q2_0";  // where it is not TL2
        case 134: return "IQ1_BN";
        case 135: return "IQ2_BN";
        case 335: return "IQ2_BN_R4";
        default: return "unknown";
    }
}

}  // namespace

bool is_ternary(TensorType type) {
    switch (type) {
        case TensorType::TQ1_0:
        case TensorType::TQ2_0:
        case TensorType::I2_S:
        case TensorType::TL1:
        case TensorType::TL2:
        case TensorType::Q2_0: return true;
        default: return false;
    }
}

std::string tensor_type_name(TensorType type) { return type == TensorType::TL2 ? "TL2" : known_name(static_cast<uint32_t>(type)); }

std::string unreadable_type_name(uint32_t id) { return std::string(known_name(id)) + " (" + std::to_string(id) + ")"; }

std::optional<TensorType> tensor_type_named(std::string_view name) {
    for (const TensorType type : kReadable) {
        const std::string known = tensor_type_name(type);
        if (std::equal(known.begin(), known.end(), name.begin(), name.end(),
                       [](char a, char b) { return std::tolower(a) == std::tolower(static_cast<unsigned char>(b)); }))
            return type;
    }
    return std::nullopt;
}

std::optional<TensorType> resolve_type(uint32_t id, uint64_t cols, uint64_t rows, uint64_t extent) {
    const bool can_be_tl2 = cols >= 256 && rows % 32 == 0;  // its narrowest matrix, its blocks of rows
    const auto fits = [&](uint64_t elements, uint64_t bytes) {
        return cols % elements == 0 && extent / bytes / (cols / elements) >= rows;
    };
    if (id == 39) return can_be_tl2 && !fits(32, 17) ? std::optional(TensorType::TL2) : std::nullopt;  // MXFP4: 17 bytes for 32
    if (id == 42) return can_be_tl2 && !fits(64, 18) ? TensorType::TL2 : TensorType::Q2_0;
    for (const TensorType type : kReadable)
        if (static_cast<uint32_t>(type) == id) return type;
    return std::nullopt;
}

uint32_t block_elements(TensorType type) {
    switch (type) {
        case TensorType::Q4_0:
        case TensorType::Q8_0: return 32;
        case TensorType::Q2_0: return 64;
        case TensorType::TQ1_0:
        case TensorType::TQ2_0:
        case TensorType::Q6_K: return 256;
        default: return 1;
    }
}

uint64_t tl2_payload_bytes(uint64_t cols, uint64_t rows) { return (cols - 256) * rows / 3 * 5 / 8 + 256 * rows / 2 * 4 / 8; }

std::optional<uint64_t> tensor_bytes(TensorType type, uint64_t cols, uint64_t rows) {
    constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
    if (cols != 0 && rows > kMost / cols) return std::nullopt;
    const uint64_t n = cols * rows;
    switch (type) {
        case TensorType::I2_S: return (n / 128 + (n % 128 != 0)) * 32 + 32;  // at most 2^62 + 64: cannot overflow
        case TensorType::TL1: return align32(n / 4) + 32;
        case TensorType::TL2:
            if (cols < 256 || n > kMost / 16) return std::nullopt;
            return align32(tl2_payload_bytes(cols, rows)) + 32;
        default: break;
    }
    const uint64_t blocks = n / block_elements(type);
    if (blocks > kMost / block_bytes(type)) return std::nullopt;
    return blocks * block_bytes(type);
}

}  // namespace bitnet
