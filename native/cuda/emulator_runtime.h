// The part of the CUDA runtime API that engine.cu uses, on the host: one device, streams that do everything at once, graphs
// that are lists of what was captured. Tests choose by environment variables what the device is like:
//   BITNET_EMULATED_DEVICES     how many there are (1); 0 = no driver is installed
//   BITNET_EMULATED_CAPABILITY  its compute capability ("9.0")
//   BITNET_EMULATED_MEMORY      its bytes (2 GiB)
//   BITNET_EMULATED_FAILURE     the device is lost once this many kernels ran in the process
#pragma once

#include <memory>

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100, cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3, cudaMemcpyDefault = 4 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
constexpr unsigned cudaStreamNonBlocking = 1, cudaHostAllocDefault = 0, cudaHostAllocMapped = 2;

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};

namespace bitnet::cuda::emulator {

using Work = std::vector<std::function<void()>>;

struct Graph {
    Work work;
};

struct Stream {
    std::unique_ptr<Graph> capturing;
};

struct Runtime {
    std::mutex mutex;
    std::map<void*, size_t> sizes;  // of what is allocated on the device
    size_t used = 0;
    uint64_t n_kernels = 0;
    cudaError_t sticky = cudaSuccess;
};

inline Runtime runtime;

inline long long setting(const char* name, long long otherwise) {
    const char* value = std::getenv(name);
    return value ? std::atoll(value) : otherwise;
}

inline size_t total_bytes() { return static_cast<size_t>(setting("BITNET_EMULATED_MEMORY", 2ll << 30)); }

inline cudaError_t enqueue(Stream* stream, std::function<void()> work) {
    if (stream->capturing)
        stream->capturing->work.push_back(std::move(work));
    else if (runtime.sticky == cudaSuccess)
        work();
    return runtime.sticky;
}

}  // namespace bitnet::cuda::emulator

using cudaStream_t = bitnet::cuda::emulator::Stream*;
using cudaGraph_t = bitnet::cuda::emulator::Graph*;
using cudaGraphExec_t = bitnet::cuda::emulator::Graph*;

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
    }
    return "unknown error";
}

inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = static_cast<int>(bitnet::cuda::emulator::setting("BITNET_EMULATED_DEVICES", 1));
    return *count ? cudaSuccess : cudaErrorInsufficientDriver;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    std::snprintf(p->name, sizeof p->name, "emulated device");
    const char* capability = std::getenv("BITNET_EMULATED_CAPABILITY");
    if (!capability || std::sscanf(capability, "%d.%d", &p->major, &p->minor) != 2) p->major = 9, p->minor = 0;
    p->multiProcessorCount = 4;
    p->totalGlobalMem = bitnet::cuda::emulator::total_bytes();
    // Turing has 64 KiB: kernels must do with that.
    p->sharedMemPerBlockOptin = p->major >= 8 ? bitnet::cuda::emulator::kMaxSharedBytes : 64 << 10;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return bitnet::cuda::emulator::runtime.sticky; }
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = bitnet::cuda::emulator::total_bytes();
    *free = *total - std::min(*total, bitnet::cuda::emulator::runtime.used);
    return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** p, size_t bytes) {
    using namespace bitnet::cuda::emulator;
    const std::lock_guard lock(runtime.mutex);
    bytes = (bytes + 255) / 256 * 256;
    if (runtime.used + bytes > total_bytes() || !(*p = guarded(bytes))) return cudaErrorMemoryAllocation;
    runtime.sizes[*p] = bytes;
    runtime.used += bytes;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
    using namespace bitnet::cuda::emulator;
    if (!p) return cudaSuccess;
    const std::lock_guard lock(runtime.mutex);
    const size_t bytes = runtime.sizes.at(p), page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (bytes + page - 1) / page * page;
    munmap(static_cast<unsigned char*>(p) + bytes - whole, whole + page);
    runtime.used -= bytes;
    runtime.sizes.erase(p);
    return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
    *p = std::calloc(1, std::max<size_t>(bytes, 1));
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeHost(void* p) {
    std::free(p);
    return cudaSuccess;
}
inline cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
    *device = host;
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = new bitnet::cuda::emulator::Stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return bitnet::cuda::emulator::runtime.sticky; }
inline cudaError_t cudaGetLastError() { return bitnet::cuda::emulator::runtime.sticky; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return bitnet::cuda::emulator::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
    return bitnet::cuda::emulator::enqueue(stream, [=] { std::memset(p, value, bytes); });
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
    return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    stream->capturing = std::make_unique<bitnet::cuda::emulator::Graph>();
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = stream->capturing.release();
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    *executable = new bitnet::cuda::emulator::Graph(*graph);
    return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    for (const auto& work : executable->work)
        if (const cudaError_t error = bitnet::cuda::emulator::enqueue(stream, work)) return error;
    return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    delete executable;
    return cudaSuccess;
}

namespace bitnet::cuda {

template <class Kernel, class... Arguments>
void launch(cudaStream_t stream, Kernel* kernel, dim3 grid, int threads, size_t shared_bytes, Arguments... arguments) {
    emulator::enqueue(stream, [=] {
        const long long failure = emulator::setting("BITNET_EMULATED_FAILURE", -1);
        if (failure >= 0 && emulator::runtime.n_kernels >= static_cast<uint64_t>(failure)) emulator::runtime.sticky = cudaErrorLaunchFailure;
        if (emulator::runtime.sticky != cudaSuccess) return;
        emulator::runtime.n_kernels++;
        emulator::run_grid(grid, threads, shared_bytes, [=] { kernel(arguments...); });
    });
}

}  // namespace bitnet::cuda
