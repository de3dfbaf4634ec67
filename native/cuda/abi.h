// The C interface of the CUDA library: what model/offload.cpp hands over, and the one table of functions it gets back. The
// library is loaded at run time, only where layers are wanted on a GPU, and shares no C++ type with its caller.
#pragma once

#include <stdint.h>

// Raise with every change of what follows: a library of another version is refused.
#define BITNET_GPU_ABI 2

#ifdef __cplusplus
extern "C" {
#endif

enum BitnetGpuStatus {
    BITNET_GPU_OK = 0,
    BITNET_GPU_UNAVAILABLE = 1,    // no driver, no such device, too old a device
    BITNET_GPU_OUT_OF_MEMORY = 2,  // before anything was computed
    BITNET_GPU_FAILED = 3,         // the device was lost, or a kernel failed: nothing can be computed any more
    BITNET_GPU_NOT_FINITE = 4,     // the weights produce NaN or infinity
};

struct BitnetGpuDevice {
    char name[128];
    int32_t major, minor;      // compute capability
    int32_t n_processors;
    uint64_t total_bytes, free_bytes;
    int32_t emulated;          // computed by this machine's processor, for tests
    char problem[256];         // why it cannot be used; empty = it can
};

// W[rows][cols] in N9 panels (quant/ternary.h).
struct BitnetGpuMatrix {
    const uint8_t* panels;
    int32_t rows, cols;
    float scale;
};

// A linear map, and the RMSNorm [cols] of its input that only it has, or null.
struct BitnetGpuProjection {
    BitnetGpuMatrix w;
    const float* input_norm;
};

// As LayerWeights in model/model.h.
struct BitnetGpuLayer {
    const float *attn_norm, *ffn_norm;            // [hidden]
    const float *q_head_norm, *k_head_norm;       // [head_dim], or null
    const float *post_attn_norm, *post_ffn_norm;  // [hidden], or null
    BitnetGpuProjection q, k, v, o, gate, up, down;
};

enum BitnetGpuActivation {
    BITNET_GPU_RELU2 = 1,      // max(gate, 0)^2 * up
    BITNET_GPU_SILU = 2,       // gate / (1 + exp(-gate)) * up
    BITNET_GPU_GELU_TANH = 3,  // gate / (1 + exp(-2 sqrt(2 / pi) (gate + 0.044715 gate^3))) * up
};

struct BitnetGpuRows {
    uint32_t type;             // GGUF's number: F32 0, F16 1, Q4_0 2, Q8_0 8, Q6_K 14, BF16 30
    const uint8_t* data;
    uint64_t row_bytes;
};

struct BitnetGpuModel {
    int32_t n_layers;          // those to be computed here, from the first one on
    int32_t is_whole;          // these are all layers: the final norm is computed here, too
    int32_t hidden_size, ffn_size, n_heads, n_kv_heads, head_dim, n_rot, vocab_size;
    int32_t activation;        // a BitnetGpuActivation
    float norm_eps;
    float embedding_scale;     // embedded tokens are multiplied with it
    const BitnetGpuLayer* layers;
    const float* output_norm;
    // Embedding and head, the same data if they are tied; null data: both are the caller's business.
    BitnetGpuRows embedding, head;
    // The int8 head (model/packed_weights.h, HeadRows).
    const int8_t* head_values;
    uint64_t head_stride;
    const float *head_scales, *head_error_norms, *head_row_norms;
};

struct BitnetGpuOptions {
    int32_t device;
    int32_t n_blocks;          // of the KV store
    int32_t max_batch_tokens;
    int32_t kv_q8_0;           // keys and values in 8 bits; 0 = f16
    int32_t kv_on_host;        // keys and values in the host's memory, which kernels reach over the bus
};

struct BitnetGpuMemory {       // bytes on the device, unless said otherwise
    uint64_t weights, dense, kv, activations;
    uint64_t host_kv;
};

// The new tokens of a step. Slices are as in model/runner.h.
struct BitnetGpuStep {
    int32_t n_tokens;
    const int32_t* tokens;
    const float* x;            // [n_tokens][hidden] embedded tokens, scaled; null: they are embedded here
    const float* rope;         // [n_tokens][2][n_rot/2] cos, sin of each token's position
    int32_t n_slices;
    const int32_t *starts, *lengths;
    const int32_t* const* blocks;
    int32_t n_outputs;
    const int32_t* outputs;    // ascending indices of tokens
    float* out;                // is_whole: [n_outputs][hidden] after the final norm; else [n_tokens][hidden], the residual stream
};

// How the next token of an output is looked for.
struct BitnetGpuSearch {
    int32_t output;            // row of the last step
    int32_t count;             // candidates: the likeliest by the int8 head, at least 1
    const uint32_t* mask;      // bit t % 32 of word t / 32 allows token t; null = all are allowed
    int32_t n_mask_words;
    float error_factor, norm_factor;  // |approximate - exact| <= error_norms[t] * error_factor + row_norms[t] * norm_factor
};

struct BitnetGpuCandidate {
    int32_t token;
    float logit;               // exact
    float approximate;
    int32_t may_be_best;       // the error bound does not exclude it from being the likeliest
};

struct BitnetGpuTiming {
    double seconds;                // of one product
    uint64_t weight_bytes;         // read by it
    double copy_bytes_per_second;  // read and written, by a copy within the device's memory
};

struct BitnetGpuApi {
    int32_t abi;
    // The number of devices, written to `devices` as far as there is room. `problem` (may be null) tells why there is none.
    int32_t (*devices)(BitnetGpuDevice* devices, int32_t capacity, char* problem, int32_t problem_size);
    // All functions below return a BitnetGpuStatus and, unless it is OK, a sentence in `error`.
    int32_t (*create)(const BitnetGpuModel* model, const BitnetGpuOptions* options, void** engine, char* error, int32_t error_size);
    void (*destroy)(void* engine);
    BitnetGpuMemory (*memory)(const void* engine);
    int32_t (*forward)(void* engine, const BitnetGpuStep* step, char* error, int32_t error_size);
    int32_t (*copy_block)(void* engine, int32_t source, int32_t target, char* error, int32_t error_size);
    // Of the outputs of the last step, with the head here: exact logits [n][vocab] of n outputs, approximate ones of one.
    int32_t (*logits)(void* engine, int32_t first_output, int32_t n, float* out, char* error, int32_t error_size);
    int32_t (*approximate)(void* engine, int32_t output, float* out, char* error, int32_t error_size);
    // For each search all tokens whose approximate logit is at least the count-th largest, and all others that may be the
    // likeliest, in no order: `n_found` [n] counts them, out [n][capacity] holds them as far as there is room.
    int32_t (*candidates)(void* engine, const BitnetGpuSearch* searches, int32_t n, BitnetGpuCandidate* out, int32_t capacity, int32_t* n_found,
                          char* error, int32_t error_size);
    // One matrix (scale 1) times int8 rows x [n_tokens][cols]: the exact sums, as floats [n_tokens][rows]. timing may be null.
    int32_t (*product)(int32_t device, const BitnetGpuMatrix* w, const int8_t* x, int32_t n_tokens, float* y, BitnetGpuTiming* timing, char* error,
                       int32_t error_size);
};

// The library's one exported symbol.
const BitnetGpuApi* bitnet_gpu_api(void);

#ifdef __cplusplus
}
#endif
