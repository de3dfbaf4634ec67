// The weights in the form the kernels run: N9 ternary panels and int8 head rows, in one block of memory that is either
// private or a mapped cache file shared by every process that uses the same model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gguf/gguf_file.h"
#include "platform/mapped_file.h"
#include "platform/memory.h"
#include "quant/ternary.h"
#include "quant/ternary_layout.h"

namespace bitnet {

// One ternary matrix to pack: where it stands in the file and how its rows are reordered.
struct TernarySource {
    const TensorInfo* tensor;
    TernaryTensor weights;  // a view of it
    // Source row of packed row m; empty = identity. (Undoes the converters' q/k permutation for interleaved RoPE.)
    std::vector<int32_t> row_order;
    float factor = 1;       // that the file has beside the tensor's own scale
};

// Embedding and output head, and the type their rows shall be kept in.
struct DenseSources {
    const TensorInfo* embedding;
    const TensorInfo* head;                // the same tensor if they are tied
    std::optional<TensorType> kept_as;     // nullopt: as in the file, which holds them then; else they are converted here
};

// The output head's rows as int8 with what the error bound needs: for every row w ~= scale * values,
//   |w.h - scale*values.h~| <= error_norm * |h| + row_norm * |h - h~|
struct HeadRows {
    const int8_t* values = nullptr;       // [vocab][stride]
    size_t stride = 0;                    // hidden_size rounded up to 64
    const float* scales = nullptr;        // [vocab]
    const float* error_norms = nullptr;   // [vocab]  |w - scale*values|, rounded up
    const float* row_norms = nullptr;     // [vocab]  |scale*values|, rounded up
};

class PackedWeights {
public:
    // Packs, or maps what an earlier load packed. `cache_path` empty: private memory. A cache that cannot be written falls
    // back to private memory with a warning. Throws ModelFileError on a code that no weight has, blocks of different scales, a
    // scale that is not finite and >= 0, or a value in head or embedding that is not finite, also once it is converted.
    static std::shared_ptr<PackedWeights> create(const GgufFile& file, const std::vector<TernarySource>& matrices,
                                                 const DenseSources& dense, int n_threads, const std::string& cache_path);

    const TernaryWeights& matrix(size_t index) const { return matrices_[index]; }
    const HeadRows& head() const { return head_; }
    // Converted rows, one after another; null: those of the file are used.
    const uint8_t* converted_embedding() const { return converted_embedding_; }
    const uint8_t* converted_head() const { return converted_head_; }
    bool is_all_zero(size_t index) const { return facts_[index].nonzeros == 0; }
    size_t ternary_bytes() const { return ternary_bytes_; }
    size_t head_bytes() const { return head_bytes_; }
    bool from_cache() const { return from_cache_; }
    const std::string& warning() const { return warning_; }  // empty, or why the cache could not be written
    bool lock(std::string* reason) const;                    // mlock

private:
    PackedWeights() = default;

    struct Layout;  // offsets of every section; see packed_weights.cpp
    void attach(const Layout& layout, const uint8_t* base, const GgufFile& file, const std::vector<TernarySource>& matrices);
    bool map_cache(const Layout& layout, const std::string& cache_path);

    std::vector<TernaryWeights> matrices_;
    struct MatrixFacts {
        uint64_t nonzeros;
        double scale;  // an f32; a double, so that there is no padding
    };
    std::vector<MatrixFacts> facts_;
    HeadRows head_;
    const uint8_t* converted_embedding_ = nullptr;
    const uint8_t* converted_head_ = nullptr;
    size_t ternary_bytes_ = 0;
    size_t head_bytes_ = 0;
    bool from_cache_ = false;
    std::string warning_;
    PageBuffer memory_;
    std::shared_ptr<MappedFile> cache_;
};

}  // namespace bitnet
