// What the files of bitnet._native share: each translates one part of the engine between Python and C++, and nothing else.
// The GIL is released wherever the engine reads files, packs weights or computes.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/architecture.h"
#include "quant/tensor_type.h"
#include "quant/ternary_layout.h"

namespace nb = nanobind;

namespace bitnet {

void bind_files(nb::module_& m);     // model files, and tensors as they store them
void bind_models(nb::module_& m);    // models, runners and heads
void bind_sampling(nb::module_& m);  // samplers, and what is measured of logits
void bind_devices(nb::module_& m);   // processors and GPUs

// Python text, of bytes that need not be UTF-8.
inline nb::object text(std::string_view s) {
    return nb::steal(PyUnicode_DecodeUTF8(s.data(), static_cast<Py_ssize_t>(s.size()), "surrogateescape"));
}

// An array that owns its memory, [shape], and where it is.
template <class T, size_t N>
nb::ndarray<nb::numpy, T, nb::ndim<N>> own_array(const std::array<size_t, N>& shape, T** data) {
    size_t n = 1;
    for (const size_t dim : shape) n *= dim;
    *data = new T[std::max<size_t>(1, n)];
    nb::capsule owner(*data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<nb::numpy, T, nb::ndim<N>>(*data, N, shape.data(), owner);
}

using TokenArray = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using TileRows = std::vector<std::array<int32_t, 5>>;  // rows, cols, row_block, col_block, simd_rows

// By their names in Python. Throw InvalidRequestError.
TensorType type_of_kind(const std::string& name, bool ternary);
LayoutChoice layout_choice(const std::string& layout, const TileRows& tl_tiles);
std::optional<Activation> activation_choice(const std::string& name);  // "" = none

}  // namespace bitnet
