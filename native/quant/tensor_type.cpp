// Names and sizes of tensor types. The table of names is wider than what is supported, so that a refusal can say what
// the file holds.
#include "quant/tensor_type.h"

#include <algorithm>
#include <cctype>
#include <limits>

namespace bitnet {

namespace {

// Bytes per block of block_elements(type) elements; I2_S has none of its own, see tensor_bytes.
uint64_t block_bytes(TensorType type) {
    switch (type) {
        case TensorType::F32: return 4;
        case TensorType::F16: return 2;
        case TensorType::BF16: return 2;
        case TensorType::Q4_0: return 18;   // f16 scale + 32 nibbles
        case TensorType::Q8_0: return 34;   // f16 scale + 32 int8
        case TensorType::Q6_K: return 210;  // 128 low nibbles, 64 high pairs, 16 int8 scales, f16 scale
        case TensorType::I2_S: break;
    }
    return 0;
}

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
        case 39: return "MXFP4 or TL2";  // the same number in llama.cpp and in bitnet.cpp
        case 40: return "NVFP4";
        case 41: return "Q1_0";
        case 42: return "Q2_0 or TL2";   // likewise
        case 134: return "IQ1_BN";
        case 135: return "IQ2_BN";
        case 335: return "IQ2_BN_R4";
        default: return "unknown";
    }
}

}  // namespace

std::string tensor_type_name(uint32_t id) {
    if (is_supported(id)) return known_name(id);
    return std::string(known_name(id)) + " (" + std::to_string(id) + ")";
}

std::optional<TensorType> tensor_type_named(std::string_view name) {
    for (const TensorType type : {TensorType::F32, TensorType::F16, TensorType::Q4_0, TensorType::Q8_0, TensorType::Q6_K,
                                  TensorType::BF16, TensorType::I2_S}) {
        const std::string_view known = known_name(static_cast<uint32_t>(type));
        if (std::equal(known.begin(), known.end(), name.begin(), name.end(),
                       [](char a, char b) { return std::tolower(a) == std::tolower(static_cast<unsigned char>(b)); }))
            return type;
    }
    return std::nullopt;
}

bool is_supported(uint32_t id) {
    switch (static_cast<TensorType>(id)) {
        case TensorType::F32:
        case TensorType::F16:
        case TensorType::Q4_0:
        case TensorType::Q8_0:
        case TensorType::Q6_K:
        case TensorType::BF16:
        case TensorType::I2_S: return true;
    }
    return false;
}

uint32_t block_elements(TensorType type) {
    switch (type) {
        case TensorType::Q4_0:
        case TensorType::Q8_0: return 32;
        case TensorType::Q6_K: return 256;
        default: return 1;
    }
}

std::optional<uint64_t> tensor_bytes(TensorType type, uint64_t n_elements) {
    if (type == TensorType::I2_S) {
        const uint64_t blocks = n_elements / 128 + (n_elements % 128 != 0);
        return blocks * 32 + 32;  // at most 2^62 + 64: cannot overflow
    }
    const uint64_t blocks = n_elements / block_elements(type);
    if (blocks > std::numeric_limits<uint64_t>::max() / block_bytes(type)) return std::nullopt;
    return blocks * block_bytes(type);
}

}  // namespace bitnet
