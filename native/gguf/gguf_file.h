// GGUF v2/v3 reader: memory-mapped and bounds-checked. It knows the container only: keys, values, tensor names, types
// and extents; what they mean belongs to model/.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "platform/mapped_file.h"
#include "quant/tensor_type.h"

namespace bitnet {

enum class ValueType : uint32_t {
    U8 = 0, I8 = 1, U16 = 2, I16 = 3, U32 = 4, I32 = 5, F32 = 6, Bool = 7, String = 8, Array = 9, U64 = 10, I64 = 11, F64 = 12,
};

// A metadata array. Numbers stay in the file (unaligned, little-endian); strings are views into the mapping.
struct MetadataArray {
    ValueType element_type = ValueType::U8;
    uint64_t count = 0;
    const uint8_t* numbers = nullptr;        // count elements of element_type, when it is not String
    std::vector<std::string_view> strings;   // when it is String
};

struct MetadataValue {
    ValueType type = ValueType::U8;
    // unsigned and bool -> uint64_t, signed -> int64_t, floats -> double
    std::variant<uint64_t, int64_t, double, std::string_view, MetadataArray> value;
};

struct TensorInfo {
    std::string_view name;
    uint32_t type_id = 0;              // as in the file
    std::optional<TensorType> type;    // what it means; nullopt: this engine cannot read it
    uint32_t n_dims = 0;
    std::array<uint64_t, 4> dims{1, 1, 1, 1};  // dims[0] is the fastest (K, in-features)
    uint64_t offset = 0;               // from the start of the data section
    const uint8_t* data = nullptr;     // start of the tensor in the mapping
    uint64_t extent = 0;               // bytes up to the next tensor (or the end of the file); >= required bytes for readable types

    uint64_t n_rows() const { return dims[1] * dims[2] * dims[3]; }
    uint64_t n_elements() const { return dims[0] * n_rows(); }  // checked at open: does not overflow
    std::string type_name() const { return type ? tensor_type_name(*type) : unreadable_type_name(type_id); }
};

// Text from a file, for a message: quoted, on one line, without control characters, and not at any length.
std::string quote(std::string_view text);

class GgufFile {
public:
    // Throws ModelFileError on anything malformed; see the checks listed in gguf_file.cpp.
    static std::shared_ptr<GgufFile> open(const std::string& path);

    const std::string& path() const { return file_->path(); }
    const MappedFile& file() const { return *file_; }
    uint32_t version() const { return version_; }
    const std::vector<std::pair<std::string_view, MetadataValue>>& metadata() const { return metadata_; }  // file order
    const std::vector<TensorInfo>& tensors() const { return tensors_; }

    const MetadataValue* find(std::string_view key) const;
    const TensorInfo* find_tensor(std::string_view name) const;

    // Typed access. The `require_` forms throw ModelFileError naming the key when it is missing; all throw when the type is
    // wrong or the number does not fit (any integer type that holds the value is accepted).
    std::string_view require_string(std::string_view key) const;
    uint32_t require_u32(std::string_view key) const;
    uint32_t get_u32(std::string_view key, uint32_t fallback) const;
    float require_f32(std::string_view key) const;
    float get_f32(std::string_view key, float fallback) const;
    bool get_bool(std::string_view key, bool fallback) const;

    // "PATH: MESSAGE"
    [[noreturn]] void fail(const std::string& message) const;

private:
    GgufFile() = default;
    std::shared_ptr<MappedFile> file_;
    uint32_t version_ = 0;
    std::vector<std::pair<std::string_view, MetadataValue>> metadata_;
    std::map<std::string_view, size_t> metadata_index_;  // ordered: crafted names cannot make a lookup slow
    std::vector<TensorInfo> tensors_;
    std::map<std::string_view, size_t> tensor_index_;
};

}  // namespace bitnet
