// The GGUF reader against files built here field by field: what it accepts, every check it makes, and its messages.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "check.h"
#include "gguf/gguf_file.h"
#include "platform/errors.h"
#include "platform/mapped_file.h"

using namespace bitnet;

namespace {

// Little-endian fields, appended in order.
struct Bytes {
    std::string data;

    template <typename T>
    Bytes& number(T value) {
        char raw[sizeof(T)];
        std::memcpy(raw, &value, sizeof raw);
        data.append(raw, sizeof raw);
        return *this;
    }
    Bytes& u32(uint32_t value) { return number(value); }
    Bytes& u64(uint64_t value) { return number(value); }
    Bytes& string(const std::string& text) {
        u64(text.size());
        data += text;
        return *this;
    }
    Bytes& raw(const std::string& bytes) {
        data += bytes;
        return *this;
    }
    Bytes& pad(size_t alignment) {
        data.resize((data.size() + alignment - 1) / alignment * alignment);
        return *this;
    }
};

Bytes header(uint64_t n_tensors, uint64_t n_key_values, uint32_t version = 3) {
    return Bytes().raw("GGUF").u32(version).u64(n_tensors).u64(n_key_values);
}

// A tensor record: name, dims, type, offset.
std::string tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    Bytes info;
    info.string(name).u32(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) info.u64(dim);
    return info.u32(type).u64(offset).data;
}

std::string key_value(const std::string& key, ValueType type, const std::string& value) {
    return Bytes().string(key).u32(static_cast<uint32_t>(type)).raw(value).data;
}

template <typename T>
std::string raw(T value) {
    return Bytes().number(value).data;
}

// Writes the bytes to a file of their own, removed at the end of the scope.
class TemporaryFile {
public:
    explicit TemporaryFile(const std::string& bytes) {
        static const uint32_t run = std::random_device{}();
        static int number = 0;
        path_ = (std::filesystem::temp_directory_path() /
                 ("bitnet-test-" + std::to_string(run) + "-" + std::to_string(number++) + ".gguf")).string();
        std::ofstream(path_, std::ios::binary) << bytes;
    }
    ~TemporaryFile() {
        std::error_code still_mapped;  // Windows refuses to remove a mapped file
        std::filesystem::remove(path_, still_mapped);
    }
    const std::string& path() const { return path_; }

private:
    std::string path_;
};

std::shared_ptr<GgufFile> open_bytes(const std::string& bytes) {
    const TemporaryFile file(bytes);  // POSIX keeps the mapping when the name is gone
    return GgufFile::open(file.path());
}

#define CHECK_REFUSED(bytes, text) CHECK_THROWS(open_bytes(bytes), ModelFileError, std::string(text).c_str())

// One key-value record in a file without tensors.
std::string with_key(const std::string& record) { return header(0, 1).raw(record).data; }

// Tensor records and a data section.
std::string with_tensors(const std::vector<std::string>& infos, size_t data_bytes) {
    Bytes file = header(infos.size(), 0);
    for (const std::string& info : infos) file.raw(info);
    return file.pad(32).raw(std::string(data_bytes, '\0')).data;
}

}  // namespace

TEST(gguf_worked_example) {
    // v3, no tensors, one KV general.alignment = 32
    const unsigned char bytes[] = {
        0x47, 0x47, 0x55, 0x46, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0, 0, 0,
        0x67, 0x65, 0x6e, 0x65, 0x72, 0x61, 0x6c, 0x2e, 0x61, 0x6c, 0x69, 0x67, 0x6e, 0x6d, 0x65, 0x6e, 0x74,
        4, 0, 0, 0, 32, 0, 0, 0};
    const auto gguf = open_bytes(std::string(reinterpret_cast<const char*>(bytes), sizeof bytes));
    CHECK(gguf->version() == 3);
    CHECK(gguf->tensors().empty());
    CHECK(gguf->metadata().size() == 1);
    CHECK(gguf->metadata()[0].first == "general.alignment");
    CHECK(gguf->require_u32("general.alignment") == 32);
}

TEST(gguf_reads_every_value_type) {
    Bytes file = header(0, 17, 2);
    file.raw(key_value("u8", ValueType::U8, raw<uint8_t>(255)));
    file.raw(key_value("i8", ValueType::I8, raw<int8_t>(-1)));
    file.raw(key_value("u16", ValueType::U16, raw<uint16_t>(65535)));
    file.raw(key_value("i16", ValueType::I16, raw<int16_t>(7)));
    file.raw(key_value("u32", ValueType::U32, raw<uint32_t>(4294967295u)));
    file.raw(key_value("i32", ValueType::I32, raw<int32_t>(-5)));
    file.raw(key_value("u64", ValueType::U64, raw<uint64_t>(4294967296u)));
    file.raw(key_value("i64", ValueType::I64, raw<int64_t>(42)));
    file.raw(key_value("f32", ValueType::F32, raw<float>(1.5f)));
    file.raw(key_value("f64", ValueType::F64, raw<double>(1e-5)));
    file.raw(key_value("f64.huge", ValueType::F64, raw<double>(1e300)));
    file.raw(key_value("true", ValueType::Bool, raw<uint8_t>(1)));
    file.raw(key_value("false", ValueType::Bool, raw<uint8_t>(0)));
    file.raw(key_value("string", ValueType::String, Bytes().string("gr\xc3\xbc\xc3\x9f").data));
    file.raw(key_value("strings", ValueType::Array, Bytes().u32(8).u64(3).string("a").string("").string("xyz").data));
    file.raw(key_value("floats", ValueType::Array, Bytes().u32(6).u64(2).number(0.5f).number(-1.0f).data));
    file.raw(key_value("empty", ValueType::Array, Bytes().u32(5).u64(0).data));
    const auto gguf = open_bytes(file.data);

    CHECK(gguf->version() == 2);
    CHECK(gguf->metadata().size() == 17);
    CHECK(gguf->require_u32("u8") == 255);
    CHECK(gguf->require_u32("u16") == 65535);
    CHECK(gguf->require_u32("i16") == 7);
    CHECK(gguf->require_u32("u32") == 4294967295u);
    CHECK(gguf->require_u32("i64") == 42);
    CHECK(gguf->get_u32("absent", 9) == 9);
    CHECK(gguf->get_u32("u8", 9) == 255);
    CHECK_THROWS(gguf->require_u32("absent"), ModelFileError, "key 'absent' is missing");
    CHECK_THROWS(gguf->require_u32("i8"), ModelFileError,
                 "key 'i8' must be an integer from 0 to 4294967295, but is the integer -1");
    CHECK_THROWS(gguf->require_u32("u64"), ModelFileError, "but is the integer 4294967296");
    CHECK_THROWS(gguf->require_u32("true"), ModelFileError, "but is a bool");
    CHECK_THROWS(gguf->get_u32("f32", 1), ModelFileError, "but is the float 1.5");
    CHECK(gguf->require_f32("f32") == 1.5f);
    CHECK(gguf->require_f32("f64") == 1e-5f);
    CHECK(gguf->get_f32("absent", 2.0f) == 2.0f);
    CHECK_THROWS(gguf->require_f32("f64.huge"), ModelFileError, "must be a 32-bit float, but is the float 1e+300");
    CHECK_THROWS(gguf->require_f32("u8"), ModelFileError, "must be a 32-bit float, but is the integer 255");
    CHECK_THROWS(gguf->require_f32("absent"), ModelFileError, "is missing");
    CHECK(gguf->get_bool("true", false));
    CHECK(!gguf->get_bool("false", true));
    CHECK(gguf->get_bool("absent", true));
    CHECK_THROWS(gguf->get_bool("u8", true), ModelFileError, "must be a bool, but is the integer 255");
    CHECK(gguf->require_string("string") == "gr\xc3\xbc\xc3\x9f");
    CHECK_THROWS(gguf->require_string("strings"), ModelFileError, "must be a string, but is an array of 3 elements");
    CHECK_THROWS(gguf->require_string("absent"), ModelFileError, "is missing");

    const auto& strings = std::get<MetadataArray>(gguf->find("strings")->value);
    CHECK(strings.element_type == ValueType::String && strings.count == 3);
    CHECK(strings.strings == (std::vector<std::string_view>{"a", "", "xyz"}));
    const auto& floats = std::get<MetadataArray>(gguf->find("floats")->value);
    float values[2];
    std::memcpy(values, floats.numbers, sizeof values);
    CHECK(floats.count == 2 && values[0] == 0.5f && values[1] == -1.0f);
    CHECK(std::get<MetadataArray>(gguf->find("empty")->value).count == 0);
    CHECK(gguf->find("absent") == nullptr);
}

TEST(gguf_reads_tensors) {
    // Stored out of order, with a gap, a type this engine does not read, and bytes behind the last tensor.
    const std::string bytes = with_tensors(
        {tensor("b", {128, 3}, 36, 64), tensor("a", {4}, 0, 0), tensor("q4", {32}, 2, 256),
         tensor("scalar", {}, 0, 320)},
        500);
    const auto gguf = open_bytes(bytes);
    const uint64_t data_start = bytes.size() - 500;
    CHECK(gguf->tensors().size() == 4);
    const TensorInfo& b = gguf->tensors()[0];
    CHECK(b.name == "b" && b.type == TensorType::I2_S && b.n_dims == 2 && b.dims[0] == 128 && b.dims[1] == 3 && b.dims[2] == 1);
    CHECK(b.n_elements() == 384 && b.offset == 64 && b.extent == 192);
    CHECK(b.data == gguf->file().data() + data_start + 64);
    CHECK(gguf->find_tensor("a")->extent == 64);
    CHECK(gguf->find_tensor("q4")->extent == 64);
    CHECK(gguf->find_tensor("scalar")->extent == 180);
    CHECK(gguf->find_tensor("scalar")->n_elements() == 1);
    CHECK(gguf->find_tensor("absent") == nullptr);
}

TEST(gguf_refuses_bad_headers) {
    CHECK_THROWS(GgufFile::open("/no/such/file.gguf"), ModelFileError, "/no/such/file.gguf: cannot open the file: ");
    CHECK_THROWS(GgufFile::open(std::filesystem::temp_directory_path().string()), ModelFileError, ": ");
    CHECK_REFUSED("", "the file is empty");
    CHECK_REFUSED("GG", "the header: the GGUF magic needs 4 bytes at offset 0, but the file ends after 2");
    CHECK_REFUSED("PK\x03\x04 zip", "not a GGUF file: it must begin with 'GGUF', but begins with 'PK\\x03\\x04'");
    CHECK_REFUSED("GGUF\x03", "the version needs 4 bytes at offset 4, but the file ends after 5");
    CHECK_REFUSED(header(0, 0, 1).data, "GGUF version 1 is not supported");
    CHECK_REFUSED(header(0, 0, 3u << 24).data, "big-endian");
    CHECK_REFUSED(header(0, 0, 0).data, "GGUF version must be 2 or 3, but is 0");
    CHECK_REFUSED(header(0, 0, 4).data, "GGUF version must be 2 or 3, but is 4");
    CHECK_REFUSED(Bytes().raw("GGUF").u32(3).u64(0).data, "the key-value count needs 8 bytes");
    for (const uint64_t count : {uint64_t{1}, uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}}) {
        CHECK_REFUSED(header(count, 0).data, "the header announces " + std::to_string(count) + " tensors");
        CHECK_REFUSED(header(0, count).data, "the header announces " + std::to_string(count) + " key-value pairs");
    }
    open_bytes(header(0, 0).data);
}

TEST(gguf_refuses_bad_metadata) {
    const std::string one = raw<uint8_t>(1);
    CHECK_REFUSED(with_key(key_value("", ValueType::U32, raw<uint32_t>(1))),
                  "the key must have 1 to 65535 bytes, but has 0");
    CHECK_REFUSED(with_key(key_value(std::string(65536, 'k'), ValueType::U8, one)), "but has 65536");
    CHECK_REFUSED(with_key(Bytes().u64(~uint64_t{0}).raw(std::string(30, 'k')).data), "but has 18446744073709551615");
    CHECK_REFUSED(with_key(Bytes().u64(40).raw(std::string(30, 'k')).data),
                  "key-value pair 0: the key needs 40 bytes at offset 32, but the file ends after 62");
    CHECK_REFUSED(with_key(key_value("k\xff", ValueType::U8, one)), "the key is not valid UTF-8: 'k\\xff'");
    CHECK_REFUSED(with_key(key_value("k", ValueType{13}, one)), "key 'k': the value type must be 0 to 12, but is 13");
    CHECK_REFUSED(with_key(key_value("k", ValueType::Bool, raw<uint8_t>(2))),
                  "key 'k': a bool must be 0 or 1, but is 2");
    CHECK_REFUSED(with_key(key_value("k", ValueType::U64, raw<uint32_t>(2))), "key 'k': the value needs 8 bytes");
    CHECK_REFUSED(with_key(key_value("k", ValueType::String, Bytes().u64(1000).raw("abc").data)),
                  "key 'k': the value needs 1000 bytes");
    CHECK_REFUSED(header(0, 2).raw(key_value("k", ValueType::U8, one) + key_value("k", ValueType::U8, one)).data,
                  "key 'k' occurs more than once");

    const auto array = [](const Bytes& value) { return with_key(key_value("list", ValueType::Array, value.data)); };
    CHECK_REFUSED(array(Bytes().u32(9).u64(1).u32(4).u64(1).u32(7)), "key 'list': arrays of arrays are not supported");
    CHECK_REFUSED(array(Bytes().u32(99).u64(1).u64(0)), "the array's element type must be 0 to 12, but is 99");
    CHECK_REFUSED(array(Bytes().u32(4).u64(3).u32(1).u32(2)), "an array of 3 elements needs at least 4 bytes each");
    CHECK_REFUSED(array(Bytes().u32(4).u64(uint64_t{1} << 62).u32(1)), "an array of 4611686018427387904 elements");
    CHECK_REFUSED(array(Bytes().u32(8).u64(~uint64_t{0}).u32(1)), "an array of 18446744073709551615 elements");
    CHECK_REFUSED(array(Bytes().u32(8).u64(2).string("abcdefghi").u32(0)),
                  "key 'list': a string of the array needs 8 bytes");
    CHECK_REFUSED(array(Bytes().u32(8).u64(1).string("ab\xc0\xaf")), "is not valid UTF-8");
    CHECK_REFUSED(array(Bytes().u32(7).u64(2).raw(std::string("\x01\x03", 2))), "a bool must be 0 or 1, but is 3");

    for (const uint32_t alignment : {0u, 3u, 33u, 0xffffffffu}) {
        CHECK_REFUSED(with_key(key_value("general.alignment", ValueType::U32, raw(alignment))),
                      "general.alignment must be a power of two, but is " + std::to_string(alignment));
    }
    CHECK_REFUSED(with_key(key_value("general.alignment", ValueType::U64, raw<uint64_t>(32))),
                  "general.alignment must be a u32");
    // Names never break the line a message is on.
    CHECK_REFUSED(with_key(key_value("a\nb\x1b", ValueType{13}, one)), "key 'a\\x0ab\\x1b'");
}

TEST(gguf_utf8) {
    const auto value = [](const std::string& text) {
        return with_key(key_value("k", ValueType::String, Bytes().string(text).data));
    };
    for (const char* good :
         {"", "plain ASCII of more than eight bytes", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
          "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "12345678\xc4\xa0 and 1234567\xc4\xa0"}) {
        open_bytes(value(good));
    }
    for (const char* bad :
         {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x9f\xbf", "\xe2\x82", "\xed\xa0\x80",
          "\xf0\x8f\xbf\xbf", "\xf0\x90\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "12345678\xff",
          "1234567\xff" "90abcdefgh"}) {
        CHECK_REFUSED(value(bad), "key 'k': the value is not valid UTF-8");
    }
}

TEST(gguf_refuses_bad_tensors) {
    const uint64_t huge = uint64_t{1} << 62;
    CHECK_REFUSED(with_tensors({tensor("", {4}, 0, 0)}, 64), "tensor 0: the name must have 1 to 63 bytes, but has 0");
    CHECK_REFUSED(with_tensors({tensor(std::string(64, 'n'), {4}, 0, 0)}, 64), "must have 1 to 63 bytes, but has 64");
    open_bytes(with_tensors({tensor(std::string(63, 'n'), {4}, 0, 0)}, 64));
    CHECK_REFUSED(with_tensors({tensor("\xe2\x28", {4}, 0, 0)}, 64), "the name is not valid UTF-8");
    CHECK_REFUSED(with_tensors({tensor("t", {4}, 0, 0), tensor("t", {4}, 0, 32)}, 64),
                  "tensor 't' occurs more than once");
    CHECK_REFUSED(with_tensors({tensor("t", {1, 1, 1, 1, 1}, 0, 0)}, 64), "must have at most 4 dimensions, but has 5");
    CHECK_REFUSED(with_tensors({tensor("t", {4, 0}, 0, 0)}, 64), "tensor 't': dimension 1 must not be zero");
    CHECK_REFUSED(with_tensors({tensor("t", {huge, 2}, 0, 0)}, 64), "must have fewer than 2^63 elements");
    CHECK_REFUSED(with_tensors({tensor("t", {~uint64_t{0}}, 0, 0)}, 64), "must have fewer than 2^63 elements");
    CHECK_REFUSED(with_tensors({tensor("t", {uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0)}, 64),
                  "fewer than 2^63 elements");
    CHECK_REFUSED(with_tensors({tensor("t", {huge}, 0, 0)}, 64), "must have fewer than 2^64 bytes");
    CHECK_REFUSED(with_tensors({tensor("t", {huge}, 36, 0)}, 64), "needs 1152921504606847008 bytes");
    CHECK_REFUSED(with_tensors({tensor("t", {48}, 8, 0)}, 64),
                  "of type Q8_0 must have rows of a multiple of 32 elements");
    CHECK_REFUSED(with_tensors({tensor("t", {128, 2}, 14, 0)}, 640),
                  "of type Q6_K must have rows of a multiple of 256 elements");
    CHECK_REFUSED(with_tensors({tensor("t", {4}, 0, 16)}, 64),
                  "must start at a multiple of the alignment 32, but starts at offset 16");
    CHECK_REFUSED(with_tensors({tensor("t", {4}, 0, 64)}, 64),
                  "starts at offset 64 of the data section, which has only 64 bytes");
    CHECK_REFUSED(with_tensors({tensor("t", {4}, 0, ~uint64_t{31})}, 64), "starts at offset 18446744073709551584");
    CHECK_REFUSED(with_tensors({tensor("t", {32}, 2, 64)}, 64), "starts at offset 64 of the data section");
    CHECK_REFUSED(with_tensors({tensor("t", {9}, 0, 32)}, 64),
                  "tensor 't' needs 36 bytes at offset 96, but the file ends after 128");
    CHECK_REFUSED(with_tensors({tensor("t", {4}, 0, 0)}, 0), "the data of 1 tensors must start at offset 64");
    CHECK_REFUSED(with_tensors({tensor("t", {128, 2}, 36, 0)}, 95), "tensor 't' needs 96 bytes");
    open_bytes(with_tensors({tensor("t", {128, 2}, 36, 0)}, 96));
    // Overlaps: same start, one byte too many, and a tensor of unknown size on top of another.
    CHECK_REFUSED(with_tensors({tensor("s", {4}, 0, 0), tensor("t", {4}, 0, 0)}, 64), "overlap");
    CHECK_REFUSED(with_tensors({tensor("s", {9}, 0, 32), tensor("t", {4}, 0, 64)}, 128),
                  "tensors 's' and 't' overlap: the first needs 36 bytes, but the second starts 32 bytes behind it");
    CHECK_REFUSED(with_tensors({tensor("s", {32}, 12, 32), tensor("t", {4}, 0, 32)}, 128), "overlap");
    // Every truncation of a file with metadata and tensors is refused; the whole file and any longer one is not.
    Bytes file = header(2, 2);
    file.raw(key_value("name", ValueType::String, Bytes().string("tiny").data));
    file.raw(key_value("list", ValueType::Array, Bytes().u32(8).u64(2).string("one").string("two").data));
    file.raw(tensor("a", {8}, 0, 0)).raw(tensor("b", {128}, 36, 32)).pad(32).raw(std::string(32 + 64, '\1'));
    for (size_t size = 0; size < file.data.size(); size++) CHECK_REFUSED(file.data.substr(0, size), ": ");
    open_bytes(file.data);
    open_bytes(file.data + "trailing");
}

TEST(gguf_alignment_moves_the_data) {
    for (const uint32_t alignment : {1u, 8u, 64u, 4096u}) {
        Bytes file = header(1, 1);
        file.raw(key_value("general.alignment", ValueType::U32, raw(alignment)));
        file.raw(tensor("t", {2}, 0, 0)).pad(alignment);
        const size_t data_start = file.data.size();
        const auto gguf = open_bytes(file.number(1.0f).number(2.0f).data);
        CHECK(gguf->find_tensor("t")->data == gguf->file().data() + data_start);
    }
}

TEST(mapped_file) {
    const TemporaryFile file(std::string(100000, 'x'));
    const auto mapped = MappedFile::open(file.path());
    CHECK(mapped->size() == 100000 && mapped->path() == file.path());
    mapped->forget(10, 99000);
    mapped->forget(0, ~size_t{0});
    mapped->forget(200000, 1);
    CHECK(mapped->data()[0] == 'x' && mapped->data()[50000] == 'x' && mapped->data()[99999] == 'x');
    std::string reason;
    CHECK(mapped->lock(&reason) || !reason.empty());
}
