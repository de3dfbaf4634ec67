// Errors of the runtime as sentences, and memory of device and host that frees itself.
#pragma once

#include <string>
#include <utility>

#include "cuda/abi.h"
#include "cuda/device.cuh"

namespace bitnet::cuda {

// What crosses the C interface as a status and a sentence.
struct Failure {
    BitnetGpuStatus status;
    std::string message;
};

inline std::string size_text(uint64_t bytes) {
    char text[32];
    if (bytes >= 1ull << 30)
        std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1ull << 30));
    else
        std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1ull << 20));
    return text;
}

inline void check(cudaError_t error, const char* doing) {
    if (error == cudaSuccess) return;
    if (error == cudaErrorMemoryAllocation)
        throw Failure{BITNET_GPU_OUT_OF_MEMORY, std::string("the GPU has no memory left for ") + doing +
                                                    ": another program may have taken it meanwhile; lower n_gpu_layers, n_batch or n_ctx"};
    throw Failure{BITNET_GPU_FAILED, std::string("the GPU failed (") + cudaGetErrorString(error) + ") during " + doing +
                                         ": nothing more can be computed on it by this process; start it anew, or set n_gpu_layers to 0"};
}

// Uninitialised memory on the device, or in the host's memory where kernels reach it over the bus.
class Buffer {
public:
    Buffer() = default;
    Buffer(size_t bytes, const char* what, bool on_host = false) : bytes_(bytes), on_host_(on_host) {
        if (bytes == 0) return;
        if (on_host) {
            check(cudaHostAlloc(&host_, bytes, cudaHostAllocMapped), what);
            check(cudaHostGetDevicePointer(&data_, host_, 0), what);
        } else {
            check(cudaMalloc(&data_, bytes), what);
        }
    }
    ~Buffer() {
        if (on_host_ && host_)
            cudaFreeHost(host_);
        else if (data_)
            cudaFree(data_);
    }
    Buffer(Buffer&& other) noexcept { *this = std::move(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(host_, other.host_);
        std::swap(bytes_, other.bytes_);
        std::swap(on_host_, other.on_host_);
        return *this;
    }

    size_t size() const { return bytes_; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void* data_ = nullptr;
    void* host_ = nullptr;
    size_t bytes_ = 0;
    bool on_host_ = false;
};

// Pinned memory of the host, for copies.
class Staging {
public:
    Staging() = default;
    Staging(size_t bytes, const char* what) : bytes_(bytes) {
        if (bytes) check(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault), what);
    }
    ~Staging() {
        if (data_) cudaFreeHost(data_);
    }
    Staging(Staging&& other) noexcept { *this = std::move(other); }
    Staging& operator=(Staging&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    size_t size() const { return bytes_; }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace bitnet::cuda
