#include "model/offload.h"

#include <algorithm>
#include <atomic>

#include "model/runner.h"
#include "platform/dynamic_library.h"
#include "platform/errors.h"

namespace bitnet {

namespace {

BitnetGpuMatrix matrix(const TernaryWeights& w) { return {w.panels, w.rows, w.cols, w.scale}; }

const float* or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

BitnetGpuProjection projection(const Projection& p) { return {matrix(p.weights), or_null(p.input_norm)}; }

BitnetGpuActivation activation(Activation activation) {
    switch (activation) {
        case Activation::Relu2: return BITNET_GPU_RELU2;
        case Activation::Silu: return BITNET_GPU_SILU;
        case Activation::GeluTanh: break;
    }
    return BITNET_GPU_GELU_TANH;
}

BitnetGpuRows rows(const DenseRows& r) { return {static_cast<uint32_t>(r.type), r.data, r.row_bytes}; }

// CUDA does not survive a fork: the process that uses a GPU, or 0.
std::atomic<long> user_of_gpu{0};

void refuse_after_fork() {
    long user = 0;
    if (!user_of_gpu.compare_exchange_strong(user, process_id()) && user != process_id())
        throw DeviceError("a process that was forked from one that used the GPU cannot use it: start processes anew (the spawn or "
                          "forkserver method of multiprocessing), or load the model after the fork");
}

}  // namespace

std::shared_ptr<const GpuLibrary> GpuLibrary::open(const std::string& path) {
    std::string reason;
    void* symbol = library_symbol(path, "bitnet_gpu_api", &reason);
    if (!symbol) throw DeviceError("the CUDA library '" + path + "' cannot be loaded (" + reason + "); reinstall bitnet-cpp, or set n_gpu_layers to 0");
    const BitnetGpuApi* api = reinterpret_cast<const BitnetGpuApi* (*)()>(symbol)();
    if (api->abi != BITNET_GPU_ABI)
        throw DeviceError("the CUDA library '" + path + "' is of another version of bitnet-cpp; reinstall it, or set n_gpu_layers to 0");
    return std::shared_ptr<const GpuLibrary>(new GpuLibrary(api));
}

std::vector<GpuDevice> GpuLibrary::devices(std::string* problem) const {
    BitnetGpuDevice found[64];
    char reason[256] = "";
    const int n = std::clamp(api_->devices(found, 64, reason, sizeof reason), 0, 64);
    *problem = reason;
    std::vector<GpuDevice> devices;
    for (int i = 0; i < n; i++)
        devices.push_back({found[i].name, found[i].major, found[i].minor, found[i].n_processors, found[i].total_bytes, found[i].free_bytes,
                           found[i].emulated != 0, found[i].problem});
    return devices;
}

void GpuLibrary::product(int device, const TernaryWeights& w, const int8_t* x, int n_tokens, float* y, BitnetGpuTiming* timing) const {
    BitnetGpuMatrix one = matrix(w);
    one.scale = 1;
    char error[1024] = "";
    if (api_->product(device, &one, x, n_tokens, y, timing, error, sizeof error) != BITNET_GPU_OK) throw DeviceError(error);
}

Offload::Offload(const Model& model, const GpuOptions& options, int n_blocks, int max_batch_tokens, KvType kv_type)
    : library_(GpuLibrary::open(options.library)), api_(library_->api()), path_(model.path()), owner_(process_id()) {
    refuse_after_fork();
    const ModelSizes& s = model.sizes();
    n_layers_ = options.n_layers < 0 ? s.n_layers : std::min(options.n_layers, s.n_layers);
    is_whole_ = n_layers_ == s.n_layers;
    has_head_ = is_whole_ && !options.low_vram;

    std::vector<BitnetGpuLayer> layers;
    for (const LayerWeights& w : model.layers()) {
        if (layers.size() == static_cast<size_t>(n_layers_)) break;
        layers.push_back({w.attn_norm.data(), w.ffn_norm.data(), or_null(w.q_head_norm), or_null(w.k_head_norm), or_null(w.post_attn_norm),
                          or_null(w.post_ffn_norm), projection(w.q), projection(w.k), projection(w.v), projection(w.o), projection(w.gate),
                          projection(w.up), projection(w.down)});
    }
    BitnetGpuModel gpu{};
    gpu.n_layers = n_layers_;
    gpu.is_whole = is_whole_;
    gpu.hidden_size = s.hidden_size;
    gpu.ffn_size = s.ffn_size;
    gpu.n_heads = s.n_heads;
    gpu.n_kv_heads = s.n_kv_heads;
    gpu.head_dim = s.head_dim;
    gpu.n_rot = s.n_rot;
    gpu.vocab_size = s.vocab_size;
    gpu.activation = activation(model.activation());
    gpu.norm_eps = s.norm_eps;
    gpu.embedding_scale = model.embedding_scale();
    gpu.layers = layers.data();
    gpu.output_norm = model.output_norm().data();
    if (has_head_) {
        const HeadRows& head = model.packed().head();
        gpu.embedding = rows(model.embedding());
        gpu.head = rows(model.head());
        gpu.head_values = head.values;
        gpu.head_stride = head.stride;
        gpu.head_scales = head.scales;
        gpu.head_error_norms = head.error_norms;
        gpu.head_row_norms = head.row_norms;
    }
    const BitnetGpuOptions gpu_options{options.device, n_blocks, max_batch_tokens, kv_type == KvType::Q8_0, options.low_vram};
    check(api_.create(&gpu, &gpu_options, &engine_, error_, sizeof error_));
    memory_ = api_.memory(engine_);
}

Offload::~Offload() {
    if (engine_ && owner_ == process_id()) api_.destroy(engine_);
}

void Offload::check(int32_t status) const {
    if (status == BITNET_GPU_OK) return;
    if (status == BITNET_GPU_NOT_FINITE) throw ModelFileError(path_ + ": " + error_ + ": the file is damaged");
    const std::string remedy = status == BITNET_GPU_UNAVAILABLE ? "; set n_gpu_layers to 0 to compute on the CPU (bitnet doctor lists devices)" : "";
    throw DeviceError(error_ + remedy);
}

void Offload::forward(const std::vector<int32_t>& tokens, const float* x, const float* rope, const std::vector<SequenceSlice>& slices,
                      const std::vector<int32_t>& outputs, float* out) {
    std::vector<int32_t> starts, lengths;
    std::vector<const int32_t*> blocks;
    for (const SequenceSlice& slice : slices) {
        starts.push_back(slice.start);
        lengths.push_back(slice.length);
        blocks.push_back(slice.blocks.data());
    }
    BitnetGpuStep step{};
    step.n_tokens = static_cast<int32_t>(tokens.size());
    step.tokens = tokens.data();
    step.x = x;
    step.rope = rope;
    step.n_slices = static_cast<int32_t>(starts.size());
    step.starts = starts.data();
    step.lengths = lengths.data();
    step.blocks = blocks.data();
    step.n_outputs = static_cast<int32_t>(outputs.size());
    step.outputs = outputs.data();
    step.out = out;
    check(api_.forward(engine_, &step, error_, sizeof error_));
}

void Offload::copy_block(int source, int target) { check(api_.copy_block(engine_, source, target, error_, sizeof error_)); }

void Offload::logits(int first_output, int n, float* out) { check(api_.logits(engine_, first_output, n, out, error_, sizeof error_)); }

void Offload::approximate(int output, float* out) { check(api_.approximate(engine_, output, out, error_, sizeof error_)); }

std::vector<std::vector<BitnetGpuCandidate>> Offload::candidates(const std::vector<BitnetGpuSearch>& searches) {
    int capacity = 0;  // room for twice as many as asked for; more are hardly ever found
    for (const BitnetGpuSearch& search : searches) capacity = std::max(capacity, 2 * search.count + 128);
    const size_t n = searches.size(), size = static_cast<size_t>(capacity);
    std::vector<BitnetGpuCandidate> all(n * size);
    std::vector<int32_t> counts(n);
    check(api_.candidates(engine_, searches.data(), static_cast<int32_t>(n), all.data(), capacity, counts.data(), error_, sizeof error_));
    std::vector<std::vector<BitnetGpuCandidate>> found(n);
    for (size_t i = 0; i < n; i++)
        if (counts[i] <= capacity) {
            const auto first = all.begin() + static_cast<std::ptrdiff_t>(i * size);
            found[i].assign(first, first + counts[i]);
        }
    return found;
}

}  // namespace bitnet
