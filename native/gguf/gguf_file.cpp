// Parses a GGUF file once, from front to back, trusting nothing in it. What is checked, in file order:
//   header    magic; version 2 or 3 (version 1 and byte-swapped files get their own message); both counts against the
//             bytes that are left
//   metadata  keys: non-empty, at most 65535 bytes, UTF-8, unique; known value types; no nested arrays; string lengths
//             and array counts against the bytes that are left, before any allocation; every string UTF-8; bools 0 or 1
//   alignment u32, a power of two
//   tensors   names: non-empty, below 64 bytes, UTF-8, unique; at most 4 dimensions, none zero, product below 2^63;
//             whole blocks per row; offsets aligned
//   data      every tensor of a type of known size lies inside the file and overlaps no other; tensors of other types
//             begin inside it. Bytes behind the last tensor are nobody's business.
// After that every view and pointer handed out is valid for as long as the GgufFile lives.
#include "gguf/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "platform/errors.h"

namespace bitnet {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian and are read in place");

std::string quote(std::string_view text) {
    constexpr size_t kShown = 80;
    std::string quoted = "'";
    for (const char c : text.substr(0, kShown)) {
        if (c >= 0x20 && c < 0x7f) {
            quoted += c;
        } else {
            constexpr char kHex[] = "0123456789abcdef";
            quoted += "\\x";
            quoted += kHex[static_cast<uint8_t>(c) >> 4];
            quoted += kHex[static_cast<uint8_t>(c) & 15];
        }
    }
    return quoted + (text.size() > kShown ? "...'" : "'");
}

namespace {

constexpr uint64_t kMaxKeyBytes = 65535;      // GGUF specification
constexpr uint64_t kMaxTensorNameBytes = 63;  // GGML_MAX_NAME of llama.cpp, without its terminator
constexpr uint64_t kMinKeyValueBytes = 14;    // key length 8, key 1, type 4, value 1
constexpr uint64_t kMinTensorInfoBytes = 25;  // name length 8, name 1, n_dims 4, type 4, offset 8
constexpr uint32_t kDefaultAlignment = 32;

// Strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF. Most text is ASCII: 8 bytes a step.
bool is_utf8(std::string_view text) {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(text.data());
    const uint8_t* end = p + text.size();
    while (p < end) {
        if (end - p >= 8) {
            uint64_t word;
            std::memcpy(&word, p, sizeof word);
            if ((word & 0x8080808080808080u) == 0) {
                p += 8;
                continue;
            }
        }
        const uint8_t lead = *p++;
        if (lead < 0x80) continue;
        if (lead < 0xc2 || lead > 0xf4) return false;
        const int n_following = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        if (end - p < n_following) return false;
        // The second byte's range excludes overlong forms (E0, F0), surrogates (ED) and values too large (F4).
        const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
        const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        if (p[0] < low || p[0] > high) return false;
        for (int i = 1; i < n_following; i++) {
            if ((p[i] & 0xc0) != 0x80) return false;
        }
        p += n_following;
    }
    return true;
}

template <typename T>
T load(const uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

// Bytes of one number of the type; 0 for strings and arrays.
uint64_t number_bytes(ValueType type) {
    switch (type) {
        case ValueType::U8:
        case ValueType::I8:
        case ValueType::Bool: return 1;
        case ValueType::U16:
        case ValueType::I16: return 2;
        case ValueType::U32:
        case ValueType::I32:
        case ValueType::F32: return 4;
        case ValueType::U64:
        case ValueType::I64:
        case ValueType::F64: return 8;
        case ValueType::String:
        case ValueType::Array: break;
    }
    return 0;
}

std::string describe(const MetadataValue& value) {
    switch (value.type) {
        case ValueType::Bool: return "a bool";
        case ValueType::F32:
        case ValueType::F64: {
            char number[32];
            std::snprintf(number, sizeof number, "%g", std::get<double>(value.value));
            return std::string("the float ") + number;
        }
        case ValueType::String: return "the string " + quote(std::get<std::string_view>(value.value));
        case ValueType::Array:
            return "an array of " + std::to_string(std::get<MetadataArray>(value.value).count) + " elements";
        case ValueType::U8:
        case ValueType::U16:
        case ValueType::U32:
        case ValueType::U64: return "the integer " + std::to_string(std::get<uint64_t>(value.value));
        case ValueType::I8:
        case ValueType::I16:
        case ValueType::I32:
        case ValueType::I64: return "the integer " + std::to_string(std::get<int64_t>(value.value));
    }
    return "an unknown value";
}

// A position in the file that only moves over bytes that exist. `subject` names the record being read, for messages.
class Reader {
public:
    explicit Reader(const GgufFile& gguf) : gguf_(gguf), bytes_(gguf.file().data()), size_(gguf.file().size()) {}

    std::string subject = "the header";

    uint64_t position() const { return position_; }
    uint64_t remaining() const { return size_ - position_; }

    [[noreturn]] void fail(const std::string& message) const { gguf_.fail(message); }

    const uint8_t* take(uint64_t n_bytes, const char* what) {
        if (n_bytes > remaining()) {
            fail(subject + ": " + what + " needs " + std::to_string(n_bytes) + " bytes at offset " +
                 std::to_string(position_) + ", but the file ends after " + std::to_string(size_));
        }
        const uint8_t* bytes = bytes_ + position_;
        position_ += n_bytes;
        return bytes;
    }

    template <typename T>
    T number(const char* what) {
        return load<T>(take(sizeof(T), what));
    }

    std::string_view string(const char* what) {
        const uint64_t length = number<uint64_t>(what);
        const std::string_view text(reinterpret_cast<const char*>(take(length, what)), length);
        if (!is_utf8(text)) fail(subject + ": " + what + " is not valid UTF-8: " + quote(text));
        return text;
    }

    // A key or tensor name: its length is judged before its bytes are looked for.
    std::string_view name(const char* what, uint64_t max_bytes) {
        const uint64_t length = number<uint64_t>(what);
        if (length == 0 || length > max_bytes) {
            fail(subject + ": " + what + " must have 1 to " + std::to_string(max_bytes) + " bytes, but has " +
                 std::to_string(length));
        }
        position_ -= sizeof length;
        return string(what);
    }

private:
    const GgufFile& gguf_;
    const uint8_t* bytes_;
    uint64_t size_;
    uint64_t position_ = 0;
};

ValueType read_value_type(Reader& reader, const char* what) {
    const uint32_t id = reader.number<uint32_t>(what);
    if (id > static_cast<uint32_t>(ValueType::F64)) {
        reader.fail(reader.subject + ": " + what + " must be 0 to 12, but is " + std::to_string(id));
    }
    return static_cast<ValueType>(id);
}

bool read_bool(Reader& reader, const uint8_t* byte) {
    if (*byte > 1) reader.fail(reader.subject + ": a bool must be 0 or 1, but is " + std::to_string(*byte));
    return *byte == 1;
}

MetadataArray read_array(Reader& reader) {
    MetadataArray array;
    array.element_type = read_value_type(reader, "the array's element type");
    array.count = reader.number<uint64_t>("the array's count");
    if (array.element_type == ValueType::Array) reader.fail(reader.subject + ": arrays of arrays are not supported");
    const bool is_string = array.element_type == ValueType::String;
    const uint64_t min_element_bytes = is_string ? sizeof(uint64_t) : number_bytes(array.element_type);
    if (array.count > reader.remaining() / min_element_bytes) {
        reader.fail(reader.subject + ": an array of " + std::to_string(array.count) + " elements needs at least " +
                    std::to_string(min_element_bytes) + " bytes each, but only " + std::to_string(reader.remaining()) +
                    " bytes are left in the file");
    }
    if (is_string) {
        array.strings.reserve(array.count);
        for (uint64_t i = 0; i < array.count; i++) array.strings.push_back(reader.string("a string of the array"));
        return array;
    }
    array.numbers = reader.take(array.count * min_element_bytes, "the array");
    if (array.element_type == ValueType::Bool) {
        for (uint64_t i = 0; i < array.count; i++) read_bool(reader, array.numbers + i);
    }
    return array;
}

MetadataValue read_value(Reader& reader) {
    MetadataValue result;
    result.type = read_value_type(reader, "the value type");
    constexpr const char* kWhat = "the value";
    switch (result.type) {
        case ValueType::U8: result.value = uint64_t{reader.number<uint8_t>(kWhat)}; break;
        case ValueType::U16: result.value = uint64_t{reader.number<uint16_t>(kWhat)}; break;
        case ValueType::U32: result.value = uint64_t{reader.number<uint32_t>(kWhat)}; break;
        case ValueType::U64: result.value = reader.number<uint64_t>(kWhat); break;
        case ValueType::I8: result.value = int64_t{reader.number<int8_t>(kWhat)}; break;
        case ValueType::I16: result.value = int64_t{reader.number<int16_t>(kWhat)}; break;
        case ValueType::I32: result.value = int64_t{reader.number<int32_t>(kWhat)}; break;
        case ValueType::I64: result.value = reader.number<int64_t>(kWhat); break;
        case ValueType::F32: result.value = double{reader.number<float>(kWhat)}; break;
        case ValueType::F64: result.value = reader.number<double>(kWhat); break;
        case ValueType::Bool: result.value = uint64_t{read_bool(reader, reader.take(1, kWhat))}; break;
        case ValueType::String: result.value = reader.string(kWhat); break;
        case ValueType::Array: result.value = read_array(reader); break;
    }
    return result;
}

uint32_t read_alignment(const GgufFile& gguf) {
    const MetadataValue* value = gguf.find("general.alignment");
    if (value == nullptr) return kDefaultAlignment;
    if (value->type != ValueType::U32) gguf.fail("general.alignment must be a u32, but is " + describe(*value));
    const uint32_t alignment = static_cast<uint32_t>(std::get<uint64_t>(value->value));
    if (!std::has_single_bit(alignment)) {
        gguf.fail("general.alignment must be a power of two, but is " + std::to_string(alignment));
    }
    return alignment;
}

TensorInfo read_tensor_info(Reader& reader, uint32_t alignment) {
    TensorInfo info;
    info.name = reader.name("the name", kMaxTensorNameBytes);
    reader.subject = "tensor " + quote(info.name);
    info.n_dims = reader.number<uint32_t>("the number of dimensions");
    if (info.n_dims > info.dims.size()) {
        reader.fail(reader.subject + " must have at most 4 dimensions, but has " + std::to_string(info.n_dims));
    }
    uint64_t n_elements = 1;
    for (uint32_t d = 0; d < info.n_dims; d++) {
        info.dims[d] = reader.number<uint64_t>("a dimension");
        if (info.dims[d] == 0) reader.fail(reader.subject + ": dimension " + std::to_string(d) + " must not be zero");
        if (info.dims[d] > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / n_elements) {
            reader.fail(reader.subject + " must have fewer than 2^63 elements, but dimension " + std::to_string(d) +
                        " of " + std::to_string(info.dims[d]) + " exceeds that");
        }
        n_elements *= info.dims[d];
    }
    info.type_id = reader.number<uint32_t>("the tensor type");
    info.offset = reader.number<uint64_t>("the data offset");
    if (info.offset % alignment != 0) {
        reader.fail(reader.subject + " must start at a multiple of the alignment " + std::to_string(alignment) +
                    ", but starts at offset " + std::to_string(info.offset));
    }
    return info;
}

// Bytes a tensor must have. Of a type this reader cannot size only the first byte is certain.
uint64_t required_bytes(const GgufFile& gguf, const TensorInfo& info) {
    if (!info.type) return 1;
    const uint32_t block = block_elements(*info.type);
    if (info.dims[0] % block != 0) {
        gguf.fail("tensor " + quote(info.name) + " of type " + info.type_name() + " must have rows of a multiple of " +
                  std::to_string(block) + " elements, but they have " + std::to_string(info.dims[0]));
    }
    const auto bytes = tensor_bytes(*info.type, info.dims[0], info.n_rows());
    if (!bytes) {
        gguf.fail("tensor " + quote(info.name) + " must have fewer than 2^64 bytes, but has " +
                  std::to_string(info.n_elements()) + " elements of type " + info.type_name());
    }
    return *bytes;
}

// Sets data and extent of every tensor, in order of offset.
void place_tensors(const GgufFile& gguf, uint64_t header_end, uint32_t alignment, std::vector<TensorInfo>& tensors) {
    const uint64_t file_size = gguf.file().size();
    const uint64_t data_start = (header_end + alignment - 1) / alignment * alignment;
    if (tensors.empty()) return;
    if (data_start >= file_size) {
        gguf.fail("the data of " + std::to_string(tensors.size()) + " tensors must start at offset " +
                  std::to_string(data_start) + ", but the file ends after " + std::to_string(file_size));
    }
    const uint64_t data_bytes = file_size - data_start;
    std::vector<TensorInfo*> by_offset;
    by_offset.reserve(tensors.size());
    for (TensorInfo& info : tensors) by_offset.push_back(&info);
    std::sort(by_offset.begin(), by_offset.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });

    for (size_t i = 0; i < by_offset.size(); i++) {
        TensorInfo& info = *by_offset[i];
        if (info.offset >= data_bytes) {
            gguf.fail("tensor " + quote(info.name) + " starts at offset " + std::to_string(info.offset) +
                      " of the data section, which has only " + std::to_string(data_bytes) + " bytes");
        }
        const TensorInfo* next = i + 1 < by_offset.size() ? by_offset[i + 1] : nullptr;
        info.data = gguf.file().data() + data_start + info.offset;
        info.extent = (next != nullptr ? std::min(next->offset, data_bytes) : data_bytes) - info.offset;
        info.type = resolve_type(info.type_id, info.dims[0], info.n_rows(), info.extent);
        const uint64_t required = required_bytes(gguf, info);
        if (required > data_bytes - info.offset) {
            gguf.fail("tensor " + quote(info.name) + " needs " + std::to_string(required) + " bytes at offset " +
                      std::to_string(data_start + info.offset) + ", but the file ends after " +
                      std::to_string(file_size));
        }
        if (required > info.extent) {
            gguf.fail("tensors " + quote(info.name) + " and " + quote(next->name) + " overlap: the first needs " +
                      std::to_string(required) + " bytes, but the second starts " + std::to_string(info.extent) +
                      " bytes behind it");
        }
    }
}

[[noreturn]] void wrong_value(const GgufFile& gguf, std::string_view key, const char* expected,
                              const MetadataValue& found) {
    gguf.fail("key " + quote(key) + " must be " + expected + ", but is " + describe(found));
}

[[noreturn]] void missing(const GgufFile& gguf, std::string_view key) {
    gguf.fail("key " + quote(key) + " is missing");
}

uint32_t to_u32(const GgufFile& gguf, std::string_view key, const MetadataValue& found) {
    constexpr uint32_t kMax = std::numeric_limits<uint32_t>::max();
    if (found.type != ValueType::Bool) {
        const auto* natural = std::get_if<uint64_t>(&found.value);
        if (natural && *natural <= kMax) return static_cast<uint32_t>(*natural);
        const auto* integer = std::get_if<int64_t>(&found.value);
        if (integer && *integer >= 0 && *integer <= int64_t{kMax}) return static_cast<uint32_t>(*integer);
    }
    wrong_value(gguf, key, "an integer from 0 to 4294967295", found);
}

float to_f32(const GgufFile& gguf, std::string_view key, const MetadataValue& found) {
    if (const auto* number = std::get_if<double>(&found.value)) {
        const bool fits = !std::isfinite(*number) || std::fabs(*number) <= double{std::numeric_limits<float>::max()};
        if (fits) return static_cast<float>(*number);
    }
    wrong_value(gguf, key, "a 32-bit float", found);
}

}  // namespace

std::shared_ptr<GgufFile> GgufFile::open(const std::string& path) {
    std::shared_ptr<GgufFile> gguf(new GgufFile);
    gguf->file_ = MappedFile::open(path);
    Reader reader(*gguf);

    const uint8_t* magic = reader.take(4, "the GGUF magic");
    if (std::memcmp(magic, "GGUF", 4) != 0) {
        gguf->fail("not a GGUF file: it must begin with 'GGUF', but begins with " +
                   quote({reinterpret_cast<const char*>(magic), 4}));
    }
    const uint32_t version = reader.number<uint32_t>("the version");
    if (version == 1) gguf->fail("GGUF version 1 is not supported (expected 2 or 3): convert the model again");
    if (version != 0 && (version & 0xffff) == 0) gguf->fail("a big-endian GGUF file; expected a little-endian one");
    if (version != 2 && version != 3) gguf->fail("GGUF version must be 2 or 3, but is " + std::to_string(version));
    gguf->version_ = version;

    const uint64_t n_tensors = reader.number<uint64_t>("the tensor count");
    const uint64_t n_key_values = reader.number<uint64_t>("the key-value count");
    const auto check_count = [&](uint64_t count, const char* records, uint64_t min_bytes) {
        if (count > reader.remaining() / min_bytes) {
            gguf->fail("the header announces " + std::to_string(count) + records + " of at least " +
                       std::to_string(min_bytes) + " bytes each, but only " + std::to_string(reader.remaining()) +
                       " bytes follow");
        }
    };
    check_count(n_tensors, " tensors", kMinTensorInfoBytes);
    check_count(n_key_values, " key-value pairs", kMinKeyValueBytes);

    for (uint64_t i = 0; i < n_key_values; i++) {
        reader.subject = "key-value pair " + std::to_string(i);
        const std::string_view key = reader.name("the key", kMaxKeyBytes);
        reader.subject = "key " + quote(key);
        if (!gguf->metadata_index_.emplace(key, gguf->metadata_.size()).second) {
            gguf->fail(reader.subject + " occurs more than once");
        }
        gguf->metadata_.emplace_back(key, read_value(reader));
    }

    const uint32_t alignment = read_alignment(*gguf);
    for (uint64_t i = 0; i < n_tensors; i++) {
        reader.subject = "tensor " + std::to_string(i);
        gguf->tensors_.push_back(read_tensor_info(reader, alignment));
        if (!gguf->tensor_index_.emplace(gguf->tensors_.back().name, gguf->tensors_.size() - 1).second) {
            gguf->fail(reader.subject + " occurs more than once");
        }
    }
    place_tensors(*gguf, reader.position(), alignment, gguf->tensors_);
    return gguf;
}

const MetadataValue* GgufFile::find(std::string_view key) const {
    const auto found = metadata_index_.find(key);
    return found == metadata_index_.end() ? nullptr : &metadata_[found->second].second;
}

const TensorInfo* GgufFile::find_tensor(std::string_view name) const {
    const auto found = tensor_index_.find(name);
    return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

std::string_view GgufFile::require_string(std::string_view key) const {
    const MetadataValue* value = find(key);
    if (value == nullptr) missing(*this, key);
    if (value->type != ValueType::String) wrong_value(*this, key, "a string", *value);
    return std::get<std::string_view>(value->value);
}

uint32_t GgufFile::require_u32(std::string_view key) const {
    const MetadataValue* value = find(key);
    if (value == nullptr) missing(*this, key);
    return to_u32(*this, key, *value);
}

uint32_t GgufFile::get_u32(std::string_view key, uint32_t fallback) const {
    const MetadataValue* value = find(key);
    return value == nullptr ? fallback : to_u32(*this, key, *value);
}

float GgufFile::require_f32(std::string_view key) const {
    const MetadataValue* value = find(key);
    if (value == nullptr) missing(*this, key);
    return to_f32(*this, key, *value);
}

float GgufFile::get_f32(std::string_view key, float fallback) const {
    const MetadataValue* value = find(key);
    return value == nullptr ? fallback : to_f32(*this, key, *value);
}

bool GgufFile::get_bool(std::string_view key, bool fallback) const {
    const MetadataValue* value = find(key);
    if (value == nullptr) return fallback;
    if (value->type != ValueType::Bool) wrong_value(*this, key, "a bool", *value);
    return std::get<uint64_t>(value->value) != 0;
}

void GgufFile::fail(const std::string& message) const {
    throw ModelFileError(path() + ": " + message);
}

}  // namespace bitnet
