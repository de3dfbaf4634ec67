// What this machine has to compute with, and single products on a GPU, for tests and timings.
#include "bindings/bindings.h"

#include "cpu/kernels.h"
#include "model/offload.h"
#include "platform/cpu_features.h"
#include "platform/errors.h"

using namespace nb::literals;

namespace bitnet {
namespace {

// codes [rows, cols] (-1, 0, 1) times x [n_tokens, cols] on a GPU.
nb::tuple gpu_product(const std::string& library, int device, Codes codes, Codes x, bool timed) {
    const size_t rows = codes.shape(0), cols = codes.shape(1), tokens = x.shape(0);
    if (rows == 0 || cols == 0 || tokens == 0 || x.shape(1) != cols || cols > 131072 || rows > 1u << 24 || tokens > 65536)
        throw InvalidRequestError("codes must be [rows, cols] and x [n_tokens, cols], with cols up to 131072 and n_tokens up to 65536");
    float* data;
    auto y = own_array<float, 2>({tokens, rows}, &data);
    BitnetGpuTiming timing{};
    {
        nb::gil_scoped_release release;
        TernaryWeights w;
        w.rows = static_cast<int32_t>(rows);
        w.cols = static_cast<int32_t>(cols);
        std::vector<uint8_t> panels(n9_bytes(w.rows, w.cols));
        for (size_t row = 0; row < rows; row += kPanelRows)
            pack_n9_panel(codes.data() + row * cols, static_cast<int32_t>(std::min<size_t>(kPanelRows, rows - row)), w.cols,
                          panels.data() + row / kPanelRows * n9_bytes(kPanelRows, w.cols));
        w.panels = panels.data();
        GpuLibrary::open(library)->product(device, w, x.data(), static_cast<int>(tokens), data, timed ? &timing : nullptr);
    }
    return nb::make_tuple(nb::cast(y), timing.seconds, timing.weight_bytes, timing.copy_bytes_per_second);
}

}  // namespace

void bind_devices(nb::module_& m) {
    m.def("cpu_kernels", [] {
        std::vector<std::string> names;
        for (const Kernels* const* table = supported_kernels(); *table; ++table) names.emplace_back((*table)->name);
        return names;
    });
    m.def("physical_cores", physical_cores);

    nb::class_<GpuDevice>(m, "GpuDevice")
        .def_ro("name", &GpuDevice::name)
        .def_prop_ro("capability", [](const GpuDevice& d) { return std::to_string(d.major) + "." + std::to_string(d.minor); })
        .def_ro("n_processors", &GpuDevice::n_processors)
        .def_ro("total_bytes", &GpuDevice::total_bytes)
        .def_ro("free_bytes", &GpuDevice::free_bytes)
        .def_ro("emulated", &GpuDevice::emulated)
        .def_ro("problem", &GpuDevice::problem);
    m.def("gpu_devices", [](const std::string& library) {
        nb::gil_scoped_release release;
        std::string problem;
        std::vector<GpuDevice> devices = GpuLibrary::open(library)->devices(&problem);
        return std::pair(std::move(devices), std::move(problem));
    }, "library"_a);
    m.def("gpu_product", gpu_product, "library"_a, "device"_a, "codes"_a, "x"_a, "timed"_a = false);
}

}  // namespace bitnet
