// Layers on a GPU: the CUDA library, loaded on demand, behind the interface the runner needs. It computes the first layers of
// every step, or all of them with the output head; the numbers are the CPU's, bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/abi.h"
#include "kv/kv_store.h"
#include "model/model.h"

namespace bitnet {

struct SequenceSlice;

struct GpuDevice {
    std::string name;
    int major = 0, minor = 0, n_processors = 0;
    uint64_t total_bytes = 0, free_bytes = 0;
    bool emulated = false;
    std::string problem;  // empty: it can be used
};

struct GpuOptions {
    std::string library;   // path of the CUDA library
    int n_layers = 0;      // of the model's, from the first one on; -1 or more than it has = all, with embedding and head
    int device = 0;
    bool low_vram = false; // keys, values, embedding and head stay in the host's memory
};

class GpuLibrary {
public:
    // Throws DeviceError if there is no such library or it is of another version.
    static std::shared_ptr<const GpuLibrary> open(const std::string& path);

    const BitnetGpuApi& api() const { return *api_; }
    // `problem` tells why there are none.
    std::vector<GpuDevice> devices(std::string* problem) const;
    // x [n_tokens][w.cols] times w, whose scale is taken to be 1: the exact sums y [n_tokens][w.rows]; timing may be null.
    void product(int device, const TernaryWeights& w, const int8_t* x, int n_tokens, float* y, BitnetGpuTiming* timing) const;

private:
    explicit GpuLibrary(const BitnetGpuApi* api) : api_(api) {}
    const BitnetGpuApi* api_;  // never unloaded: the driver keeps threads of its own
};

class Offload {
public:
    // Throws DeviceError: no driver, no such device, too little memory.
    Offload(const Model& model, const GpuOptions& options, int n_blocks, int max_batch_tokens, KvType kv_type);
    ~Offload();
    Offload(const Offload&) = delete;
    Offload& operator=(const Offload&) = delete;

    int n_layers() const { return n_layers_; }
    bool is_whole() const { return is_whole_; }  // all layers and the final norm
    bool has_head() const { return has_head_; }  // and embedding and head
    const BitnetGpuMemory& memory() const { return memory_; }

    // `x`: embedded tokens [n_tokens][hidden], scaled; null if has_head. rope: [n_tokens][2][n_rot/2]. out: is_whole: the outputs'
    // states after the final norm; else the residual stream of all tokens. Throws DeviceError and ModelFileError.
    void forward(const std::vector<int32_t>& tokens, const float* x, const float* rope, const std::vector<SequenceSlice>& slices,
                 const std::vector<int32_t>& outputs, float* out);
    void copy_block(int source, int target);

    // Of the outputs of the last step, if has_head: exact logits [n][vocab]; approximate ones of one output [vocab].
    void logits(int first_output, int n, float* out);
    void approximate(int output, float* out);
    // Results of each search as BitnetGpuApi::candidates has them; empty: more than are worth fetching.
    std::vector<std::vector<BitnetGpuCandidate>> candidates(const std::vector<BitnetGpuSearch>& searches);

private:
    void check(int32_t status) const;

    std::shared_ptr<const GpuLibrary> library_;
    const BitnetGpuApi& api_;
    std::string path_;  // of the model
    void* engine_ = nullptr;
    int n_layers_ = 0;
    bool is_whole_ = false, has_head_ = false;
    BitnetGpuMemory memory_{};
    long owner_ = 0;    // the process that made it: a forked one cannot use it
    mutable char error_[1024] = "";
};

}  // namespace bitnet
