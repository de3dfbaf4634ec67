// The CUDA library's interface (abi.h): devices, and an Engine behind plain functions.
#include <array>
#include <cmath>

#include "cuda/engine.cuh"

namespace bitnet::cuda {
namespace {

void write_text(const std::string& text, char* out, int32_t size) {
    if (out && size > 0) std::snprintf(out, static_cast<size_t>(size), "%s", text.c_str());
}

// f() with its Failure as status and sentence.
template <class F>
int32_t guard(char* error, int32_t error_size, F&& f) {
    try {
        f();
        return BITNET_GPU_OK;
    } catch (const Failure& failure) {
        write_text(failure.message, error, error_size);
        return failure.status;
    } catch (const std::exception& exception) {  // out of the host's memory
        write_text(std::string("the GPU's work could not be prepared: ") + exception.what(), error, error_size);
        return BITNET_GPU_FAILED;
    }
}

std::string problem_of(const cudaDeviceProp& properties) {
    if (properties.major * 10 + properties.minor >= kMinCapability) return "";
    return "compute capability " + std::to_string(properties.major) + "." + std::to_string(properties.minor) +
           " is too old: 7.5 (Turing) or newer is needed";
}

int32_t devices(BitnetGpuDevice* out, int32_t capacity, char* problem, int32_t problem_size) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        write_text(error == cudaErrorInsufficientDriver ? "there is no NVIDIA driver, or it is too old for this build of the CUDA library"
                   : error == cudaErrorNoDevice         ? "the NVIDIA driver finds no device"
                                                        : std::string("CUDA does not start: ") + cudaGetErrorString(error),
                   problem, problem_size);
        return 0;
    }
    for (int i = 0; i < std::min(count, capacity); i++) {
        cudaDeviceProp properties;
        BitnetGpuDevice& device = out[i] = {};
        if (const cudaError_t failed = cudaGetDeviceProperties(&properties, i); failed != cudaSuccess) {
            write_text(std::string("it does not answer: ") + cudaGetErrorString(failed), device.problem, sizeof device.problem);
            continue;
        }
        write_text(properties.name, device.name, sizeof device.name);
        device.major = properties.major;
        device.minor = properties.minor;
        device.n_processors = properties.multiProcessorCount;
        device.total_bytes = properties.totalGlobalMem;
#ifdef BITNET_CUDA_EMULATE
        device.emulated = 1;
#endif
        write_text(problem_of(properties), device.problem, sizeof device.problem);
        size_t free = 0, total = 0;
        if (cudaSetDevice(i) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess)
            device.free_bytes = free;
        else if (!device.problem[0])
            write_text("it is not available to this process", device.problem, sizeof device.problem);
    }
    return count;
}

int32_t create(const BitnetGpuModel* model, const BitnetGpuOptions* options, void** engine, char* error, int32_t error_size) {
    return guard(error, error_size, [&] {
        std::array<BitnetGpuDevice, 64> found{};
        char problem[256] = "";
        const int32_t n = devices(found.data(), static_cast<int32_t>(found.size()), problem, sizeof problem);
        if (n == 0) throw Failure{BITNET_GPU_UNAVAILABLE, problem};
        if (options->device < 0 || options->device >= std::min<int32_t>(n, found.size()))
            throw Failure{BITNET_GPU_UNAVAILABLE, "main_gpu is " + std::to_string(options->device) + ", and there " +
                                                      (n == 1 ? "is 1 device (0)" : "are " + std::to_string(n) + " devices (0 to " + std::to_string(n - 1) + ")")};
        const BitnetGpuDevice& device = found[static_cast<size_t>(options->device)];
        if (device.problem[0])
            throw Failure{BITNET_GPU_UNAVAILABLE, "device " + std::to_string(options->device) + " (" + device.name + "): " + device.problem};
        *engine = new Engine(*model, *options);
    });
}

void destroy(void* engine) { delete static_cast<Engine*>(engine); }

BitnetGpuMemory memory(const void* engine) { return static_cast<const Engine*>(engine)->memory(); }

int32_t forward(void* engine, const BitnetGpuStep* step, char* error, int32_t error_size) {
    return guard(error, error_size, [&] { static_cast<Engine*>(engine)->forward(*step); });
}

int32_t copy_block(void* engine, int32_t source, int32_t target, char* error, int32_t error_size) {
    return guard(error, error_size, [&] { static_cast<Engine*>(engine)->copy_block(source, target); });
}

int32_t logits(void* engine, int32_t first_output, int32_t n, float* out, char* error, int32_t error_size) {
    return guard(error, error_size, [&] { static_cast<Engine*>(engine)->logits(first_output, n, out); });
}

int32_t approximate(void* engine, int32_t output, float* out, char* error, int32_t error_size) {
    return guard(error, error_size, [&] { static_cast<Engine*>(engine)->approximate(output, out); });
}

int32_t candidates(void* engine, const BitnetGpuSearch* searches, int32_t n, BitnetGpuCandidate* out, int32_t capacity, int32_t* n_found, char* error,
                   int32_t error_size) {
    return guard(error, error_size, [&] { static_cast<Engine*>(engine)->candidates(searches, n, out, capacity, n_found); });
}

int32_t product(int32_t device, const BitnetGpuMatrix* w, const int8_t* x, int32_t n_tokens, float* y, BitnetGpuTiming* timing, char* error,
                int32_t error_size) {
    return guard(error, error_size, [&] { measure_product(device, *w, x, n_tokens, y, timing); });
}

}  // namespace
}  // namespace bitnet::cuda

extern "C" __attribute__((visibility("default"))) const BitnetGpuApi* bitnet_gpu_api(void) {
    using namespace bitnet::cuda;
    static const BitnetGpuApi api{BITNET_GPU_ABI, devices, create, destroy, memory, forward, copy_block, logits, approximate, candidates, product};
    return &api;
}
