// Model files: their metadata and tensors, and tensors as they store them, to arrays and back.
#include "bindings/bindings.h"

#include <cmath>
#include <cstring>

#include "gguf/gguf_file.h"
#include "platform/errors.h"
#include "quant/dense.h"
#include "quant/ternary.h"

using namespace nb::literals;

namespace bitnet {
namespace {

// ---- metadata ---------------------------------------------------------------------------------------------------------

template <class T>
T read(const uint8_t* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

template <class T>
nb::list number_list(const MetadataArray& array) {
    nb::list list;
    for (uint64_t i = 0; i < array.count; i++) list.append(read<T>(array.numbers + i * sizeof(T)));
    return list;
}

nb::list array_list(const MetadataArray& array) {
    switch (array.element_type) {
        case ValueType::U8: return number_list<uint8_t>(array);
        case ValueType::I8: return number_list<int8_t>(array);
        case ValueType::U16: return number_list<uint16_t>(array);
        case ValueType::I16: return number_list<int16_t>(array);
        case ValueType::U32: return number_list<uint32_t>(array);
        case ValueType::I32: return number_list<int32_t>(array);
        case ValueType::U64: return number_list<uint64_t>(array);
        case ValueType::I64: return number_list<int64_t>(array);
        case ValueType::F32: return number_list<float>(array);
        case ValueType::F64: return number_list<double>(array);
        case ValueType::Bool: {
            nb::list list;
            for (uint64_t i = 0; i < array.count; i++) list.append(array.numbers[i] != 0);
            return list;
        }
        default: break;
    }
    nb::list list;
    for (std::string_view s : array.strings) list.append(text(s));
    return list;
}

nb::object to_python(const MetadataValue& value) {
    if (const auto* array = std::get_if<MetadataArray>(&value.value)) return array_list(*array);
    if (const auto* s = std::get_if<std::string_view>(&value.value)) return text(*s);
    if (const auto* d = std::get_if<double>(&value.value)) return nb::cast(*d);
    if (const auto* i = std::get_if<int64_t>(&value.value)) return nb::cast(*i);
    const uint64_t u = std::get<uint64_t>(value.value);
    return value.type == ValueType::Bool ? nb::cast(u != 0) : nb::cast(u);
}

nb::dict metadata(const GgufFile& file) {
    nb::dict dict;
    for (const auto& [key, value] : file.metadata()) dict[text(key)] = to_python(value);
    return dict;
}

const char* kind_name(ValueType type) {
    constexpr const char* kNames[] = {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
    return kNames[static_cast<uint32_t>(type)];
}

// The type of each value, as GgufWriter.add_metadata has it.
nb::dict metadata_kinds(const GgufFile& file) {
    nb::dict dict;
    for (const auto& [key, value] : file.metadata()) {
        const auto* array = std::get_if<MetadataArray>(&value.value);
        dict[text(key)] = array ? nb::object(nb::make_tuple("array", kind_name(array->element_type))) : nb::cast(kind_name(value.type));
    }
    return dict;
}

// Where the data section begins in the file; its end for a file without tensors.
uint64_t data_offset(const GgufFile& file) {
    if (file.tensors().empty()) return file.file().size();
    const TensorInfo& first = file.tensors().front();
    return static_cast<uint64_t>(first.data - file.file().data()) - first.offset;
}

// A copy that outlives the file's mapping.
struct TensorSummary {
    std::string name, type_name;
    std::vector<uint64_t> shape;
    uint64_t offset, n_bytes;
};

std::vector<TensorSummary> tensors(const GgufFile& file) {
    std::vector<TensorSummary> summaries;
    for (const TensorInfo& t : file.tensors())
        summaries.push_back({std::string(t.name), t.type_name(), {t.dims.begin(), t.dims.begin() + t.n_dims}, t.offset, t.extent});
    return summaries;
}

}  // namespace

// ---- tensor codecs ------------------------------------------------------------------------------------------------------

TensorType type_of_kind(const std::string& name, bool ternary) {
    const std::optional<TensorType> type = tensor_type_named(name);
    if (!type || is_ternary(*type) != ternary)
        throw InvalidRequestError("'" + name + "' is no " + (ternary ? "ternary type: i2_s, tl1, tl2, tq1_0, tq2_0 or q2_0"
                                                                      : "type of dense rows: f32, f16, bf16, q8_0, q6_k or q4_0"));
    return *type;
}

LayoutChoice layout_choice(const std::string& layout, const TileRows& tl_tiles) {
    LayoutChoice choice = layout_named(layout);
    for (const auto& t : tl_tiles) choice.tl_tiles.push_back({t[0], t[1], t[2], t[3], t[4]});
    return choice;
}

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_blocks(TensorType type, size_t cols) {
    if (cols % block_elements(type) != 0)
        throw InvalidRequestError("rows of " + tensor_type_name(type) + " must have a multiple of " + std::to_string(block_elements(type)) +
                                  " elements, not " + std::to_string(cols));
}

void check_size(TensorType type, size_t n_bytes, size_t rows, size_t cols) {
    if (rows < 1 || cols < 1 || rows > (1u << 30) || cols > (1u << 30))
        throw InvalidRequestError("a tensor must have 1 to 2^30 rows and columns");
    check_blocks(type, cols);
    const std::optional<uint64_t> needed = tensor_bytes(type, cols, rows);
    if (!needed || n_bytes < *needed)
        throw InvalidRequestError(std::to_string(n_bytes) + " bytes are too few for " + std::to_string(rows) + " x " + std::to_string(cols) +
                                  " elements of " + tensor_type_name(type));
}

nb::tuple decode_ternary(Bytes data, const std::string& name, size_t rows, size_t cols, const std::string& layout, const TileRows& tl_tiles) {
    const TensorType type = type_of_kind(name, true);
    check_size(type, data.size(), rows, cols);
    const TernaryTensor tensor(type, data.data(), static_cast<int32_t>(rows), static_cast<int32_t>(cols), layout_choice(layout, tl_tiles));
    int8_t* codes;
    float* scales;
    auto code_array = own_array<int8_t, 2>({rows, cols}, &codes);
    auto scale_array = own_array<float, 1>({tensor.n_scales()}, &scales);
    bool valid = true, good_scales = true;
    {
        nb::gil_scoped_release release;
        for (size_t r = 0; r < rows; r++) valid = tensor.decode_row(static_cast<int32_t>(r), codes + r * cols) && valid;
        tensor.scales(scales);
        for (size_t i = 0; i < tensor.n_scales(); i++) good_scales = good_scales && std::isfinite(scales[i]) && scales[i] >= 0;
    }
    if (!valid) throw InvalidRequestError("a code of the tensor stands for no ternary weight: it is damaged, or has another layout");
    if (!good_scales) throw InvalidRequestError("a scale of the tensor is negative or not finite");
    return nb::make_tuple(code_array, scale_array);
}

nb::object encode_ternary_bytes(Codes codes, float scale, const std::string& name, const std::string& layout, const TileRows& tl_tiles) {
    const TensorType type = type_of_kind(name, true);
    if (codes.shape(0) > (1u << 30) || codes.shape(1) > (1u << 30)) throw InvalidRequestError("a tensor must have at most 2^30 rows and columns");
    const LayoutChoice choice = layout_choice(layout, tl_tiles);
    std::vector<uint8_t> bytes;
    {
        nb::gil_scoped_release release;
        bytes = encode_ternary(type, codes.data(), static_cast<int32_t>(codes.shape(0)), static_cast<int32_t>(codes.shape(1)), scale, choice);
    }
    return nb::bytes(bytes.data(), bytes.size());
}

nb::object decode_rows(Bytes data, const std::string& name, size_t rows, size_t cols) {
    const TensorType type = type_of_kind(name, false);
    check_size(type, data.size(), rows, cols);
    float* values;
    auto array = own_array<float, 2>({rows, cols}, &values);
    {
        nb::gil_scoped_release release;
        const size_t bytes = row_bytes(type, cols);
        for (size_t r = 0; r < rows; r++) decode_row(type, data.data() + r * bytes, cols, values + r * cols);
    }
    return nb::cast(array);
}

nb::object encode_rows(FloatRows values, const std::string& name) {
    const TensorType type = type_of_kind(name, false);
    const size_t rows = values.shape(0), cols = values.shape(1);
    check_blocks(type, cols);
    const size_t bytes = row_bytes(type, cols);
    uint8_t* data;
    auto array = own_array<uint8_t, 2>({rows, bytes}, &data);
    {
        nb::gil_scoped_release release;
        for (size_t r = 0; r < rows; r++) encode_row(type, values.data() + r * cols, cols, data + r * bytes);
    }
    return nb::cast(array);
}

}  // namespace

void bind_files(nb::module_& m) {
    nb::class_<TensorSummary>(m, "TensorInfo")
        .def_ro("name", &TensorSummary::name)
        .def_ro("type_name", &TensorSummary::type_name)
        .def_ro("shape", &TensorSummary::shape)
        .def_ro("offset", &TensorSummary::offset)
        .def_ro("n_bytes", &TensorSummary::n_bytes);

    nb::class_<GgufFile>(m, "ModelFile")
        .def(nb::new_([](const std::string& path) {
                 nb::gil_scoped_release release;
                 return GgufFile::open(path);
             }),
             "path"_a)
        .def_prop_ro("path", &GgufFile::path)
        .def_prop_ro("version", &GgufFile::version)
        .def_prop_ro("size", [](const GgufFile& f) { return f.file().size(); })
        .def_prop_ro("metadata", metadata)
        .def_prop_ro("metadata_kinds", metadata_kinds)
        .def_prop_ro("data_offset", data_offset)
        .def_prop_ro("tensors", tensors)
        .def("activation", [](const GgufFile& file, const std::string& wanted) {
                 std::string repair;
                 return std::string(activation_name(choose_activation(file, find_architecture(file), activation_choice(wanted), &repair)));
             }, "wanted"_a = "");

    m.def("decode_ternary", decode_ternary, "data"_a, "type_name"_a, "rows"_a, "cols"_a, "layout"_a = "", "tl_tiles"_a = TileRows{});
    m.def("encode_ternary", encode_ternary_bytes, "codes"_a, "scale"_a, "type_name"_a, "layout"_a = "", "tl_tiles"_a = TileRows{});
    m.def("decode_rows", decode_rows, "data"_a, "type_name"_a, "rows"_a, "cols"_a);
    m.def("encode_rows", encode_rows, "values"_a, "type_name"_a);
}

}  // namespace bitnet
