#include "model/packed_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "platform/atomic_file.h"
#include "platform/errors.h"
#include "platform/thread_pool.h"
#include "quant/dense.h"

namespace bitnet {

namespace {

// Raise when N9, the head rows or the section order change: older cache files are then packed anew.
constexpr uint32_t kLayoutVersion = 2;
constexpr char kMagic[8] = {'B', 'I', 'T', 'N', 'E', 'T', 'P', 'K'};
constexpr int32_t kHeadRowsPerStage = 4096;

struct CacheHeader {
    char magic[8];
    uint32_t layout_version;
    uint32_t reserved;
    uint64_t total_bytes;
    uint64_t source_size;
    int64_t source_time;         // last write, in the file system's ticks
    uint64_t source_fingerprint; // of sampled pages: notices a replaced file that kept size and time
    uint64_t layout_hash;        // which tensors were packed, from where, in which order
};

size_t align64(size_t n) { return (n + 63) / 64 * 64; }

class Fnv1a {
public:
    void add(const void* data, size_t bytes) {
        for (size_t i = 0; i < bytes; i++) hash_ = (hash_ ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211ull;
    }
    template <class T>
    void add(const T& value) {
        add(&value, sizeof value);
    }
    uint64_t value() const { return hash_; }

private:
    uint64_t hash_ = 14695981039346656037ull;
};

}  // namespace

struct PackedWeights::Layout {
    CacheHeader header{};
    std::vector<size_t> matrices;  // offset of each
    size_t embedding_rows = 0, head_rows_as = 0;  // converted rows; 0 = none
    size_t head_values = 0, head_scales = 0, head_error_norms = 0, head_row_norms = 0, facts = 0;
    size_t stride = 0;
    int32_t head_rows = 0;

    Layout(const GgufFile& file, const std::vector<TernarySource>& sources, const DenseSources& dense)
        : stride(align64(dense.head->dims[0])), head_rows(static_cast<int32_t>(dense.head->dims[1])) {
        const TensorInfo& head = *dense.head;
        size_t end = align64(sizeof(CacheHeader));
        const auto place = [&end](size_t bytes) {
            const size_t offset = end;
            end = align64(end + bytes);
            return offset;
        };
        Fnv1a hash;
        for (const TernarySource& source : sources) {
            const TernaryTensor& weights = source.weights;
            matrices.push_back(place(n9_bytes(weights.rows(), weights.cols())));
            hash.add(source.tensor->offset);
            hash.add(weights.type());
            hash.add(weights.rows());
            hash.add(weights.cols());
            hash.add(weights.order());
            hash.add(weights.tile());
            hash.add(source.row_order.size());
        }
        const size_t rows = static_cast<size_t>(head_rows);
        if (dense.kept_as) {
            const size_t bytes = rows * row_bytes(*dense.kept_as, head.dims[0]);
            head_rows_as = place(bytes);
            embedding_rows = dense.embedding == dense.head ? head_rows_as : place(bytes);
            hash.add(*dense.kept_as);
        }
        head_values = place(rows * stride);
        head_scales = place(rows * sizeof(float));
        head_error_norms = place(rows * sizeof(float));
        head_row_norms = place(rows * sizeof(float));
        facts = place(sources.size() * sizeof(MatrixFacts));
        hash.add(head.offset);
        hash.add(*head.type);
        hash.add(head.dims);

        std::memcpy(header.magic, kMagic, sizeof kMagic);
        header.layout_version = kLayoutVersion;
        header.total_bytes = end;
        header.source_size = file.file().size();
        std::error_code error;
        header.source_time = std::filesystem::last_write_time(file.path(), error).time_since_epoch().count();
        header.layout_hash = hash.value();
        // 64 pages spread over the file: cheap, and different weights cannot agree on all of them.
        Fnv1a fingerprint;
        const size_t size = file.file().size(), page = std::min<size_t>(size, 4096);
        for (size_t i = 0; i < 64; i++) fingerprint.add(file.file().data() + (size - page) / 63 * i, page);
        header.source_fingerprint = fingerprint.value();
    }
};

namespace {

// Receives the sections in file order, either straight into private memory or through a staging buffer into a file.
class SectionWriter {
public:
    SectionWriter(uint8_t* memory, AtomicFile* file) : memory_(memory), file_(file) {}

    uint8_t* stage(size_t offset, size_t bytes) {
        if (memory_) return memory_ + offset;
        if (staging_.size() < bytes) staging_.resize(bytes);
        return staging_.data();
    }
    void commit(size_t offset, const uint8_t* staged, size_t bytes) {
        if (memory_) return;
        static constexpr uint8_t kZeros[64] = {};
        file_->write(kZeros, offset - written_);  // sections are 64-byte aligned
        file_->write(staged, bytes);
        written_ = offset + bytes;
    }

private:
    uint8_t* memory_;
    AtomicFile* file_;
    std::vector<uint8_t> staging_;
    size_t written_ = 0;
};

// Packs one matrix into `panels`; returns the number of nonzero weights.
uint64_t pack_matrix(ThreadPool& pool, const GgufFile& file, const TernarySource& source, uint8_t* panels) {
    const TernaryTensor& weights = source.weights;
    const int64_t n_panels = (weights.rows() + kPanelRows - 1) / kPanelRows;
    const size_t panel_bytes = n9_bytes(kPanelRows, weights.cols());
    const size_t cols = static_cast<size_t>(weights.cols());
    std::atomic<bool> bad_code{false};
    std::atomic<uint64_t> nonzeros{0};
    pool.run([&](ThreadPool::Worker& worker) {
        std::vector<int8_t> codes(kPanelRows * cols);
        uint64_t count = 0;
        worker.parallel_for(n_panels, 4, [&](int64_t begin, int64_t end) {
            for (int64_t panel = begin; panel < end; panel++) {
                const int32_t first = static_cast<int32_t>(panel) * kPanelRows;
                const int32_t n_rows = std::min(kPanelRows, weights.rows() - first);
                for (int32_t r = 0; r < n_rows; r++) {
                    const int32_t row = source.row_order.empty() ? first + r : source.row_order[static_cast<size_t>(first + r)];
                    int8_t* out = codes.data() + static_cast<size_t>(r) * cols;
                    if (!weights.decode_row(row, out)) {
                        bad_code = true;
                        std::fill_n(out, cols, int8_t{0});  // nothing but codes goes on
                    }
                }
                for (size_t i = 0; i < static_cast<size_t>(n_rows) * cols; i++) count += codes[i] != 0;
                pack_n9_panel(codes.data(), n_rows, weights.cols(), panels + static_cast<size_t>(panel) * panel_bytes);
            }
        });
        nonzeros += count;
    });
    if (bad_code)
        file.fail("tensor '" + std::string(source.tensor->name) + "' (" + source.tensor->type_name() +
                  ") holds a code that stands for no ternary weight: the file is damaged, or has another layout");
    return nonzeros;
}

float scale_of(const GgufFile& file, const TernarySource& source) {
    const std::string name = "tensor '" + std::string(source.tensor->name) + "'";
    const std::optional<float> scale = source.weights.scale();
    if (!scale)
        file.fail("the blocks of " + name + " (" + source.tensor->type_name() +
                  ") have different scales, and BitNet models have one for a matrix: it was quantised from weights that are not "
                  "ternary; convert the model from its original");
    if (!(*scale >= 0) || !std::isfinite(*scale))
        file.fail("the scale of " + name + " must be finite and not negative, found " + std::to_string(*scale));
    return *scale;
}

// One row of the head to int8, with the norms the error bound needs (rounded up, so that the bound stays rigorous).
void pack_head_row(const float* row, size_t n, int8_t* values, size_t stride, float* scale, float* error_norm, float* row_norm) {
    float absmax = 0;
    for (size_t i = 0; i < n; i++) absmax = std::max(absmax, std::fabs(row[i]));
    // A row too small for 127 / absmax to be a float counts as zero; the error norm covers it.
    const bool is_zero = absmax < 1e-30f;
    const float inverse = is_zero ? 0.0f : 127.0f / absmax;
    *scale = is_zero ? 0.0f : absmax / 127.0f;
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
        const float q = std::clamp(row[i] * inverse + kRound - kRound, -127.0f, 127.0f);
        values[i] = static_cast<int8_t>(q);
        const double approximate = static_cast<double>(*scale) * static_cast<double>(q);
        error += (row[i] - approximate) * (row[i] - approximate);
        norm += approximate * approximate;
    }
    std::memset(values + n, 0, stride - n);
    *error_norm = static_cast<float>(std::sqrt(error) * (1 + 1e-6));
    *row_norm = static_cast<float>(std::sqrt(norm) * (1 + 1e-6));
}

// Reads rows of embedding or head as they will be used: decoded, and converted if they are kept in another type.
class RowReader {
public:
    RowReader(const TensorInfo& tensor, std::optional<TensorType> kept_as)
        : tensor_(tensor),
          type_(*tensor.type),
          kept_as_(kept_as.value_or(type_)),
          n_(tensor.dims[0]),
          file_row_(row_bytes(type_, n_)) {}

    size_t n() const { return n_; }
    size_t kept_row_bytes() const { return row_bytes(kept_as_, n_); }

    // Row r to values [n] and to kept [kept_row_bytes()]. From any thread.
    void read(size_t r, float* values, uint8_t* kept) {
        const uint8_t* row = tensor_.data + r * file_row_;
        decode_row(type_, row, n_, values);
        if (!all_finite(values)) {
            finite_ = false;
            std::fill_n(values, n_, 0.0f);
        }
        if (kept_as_ == type_) {
            std::memcpy(kept, row, file_row_);
            return;
        }
        encode_row(kept_as_, values, n_, kept);
        decode_row(kept_as_, kept, n_, values);
        if (!all_finite(values)) fits_ = false;
    }

    // Throws if a row that was read had a value that is not finite, in the file or after the conversion.
    void check(const GgufFile& file) const {
        const std::string name = "tensor '" + std::string(tensor_.name) + "'";
        if (!finite_) file.fail(name + " has a value that is not finite");
        if (!fits_)
            file.fail(name + " has a value too large for " + tensor_type_name(kept_as_) +
                      "; keep it in another type (embd_type)");
    }

    void forget(const GgufFile& file, size_t first, size_t count) const {
        file.file().forget(static_cast<size_t>(tensor_.data - file.file().data()) + first * file_row_, count * file_row_);
    }

private:
    bool all_finite(const float* values) const {
        return std::all_of(values, values + n_, [](float value) { return std::isfinite(value); });
    }

    const TensorInfo& tensor_;
    TensorType type_, kept_as_;
    size_t n_, file_row_;
    std::atomic<bool> finite_{true}, fits_{true};
};

// f(r, values, kept) for rows [first, first + count) of a reader, on all threads.
template <class F>
void for_rows(ThreadPool& pool, RowReader& reader, int32_t first, int32_t count, F&& f) {
    pool.run([&](ThreadPool::Worker& worker) {
        std::vector<float> values(reader.n());
        std::vector<uint8_t> kept(reader.kept_row_bytes());
        worker.parallel_for(count, 64, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                const size_t r = static_cast<size_t>(first + i);
                reader.read(r, values.data(), kept.data());
                f(r, values.data(), kept.data());
            }
        });
    });
}

}  // namespace

std::shared_ptr<PackedWeights> PackedWeights::create(const GgufFile& file, const std::vector<TernarySource>& matrices,
                                                     const DenseSources& dense, int n_threads, const std::string& cache_path) {
    auto packed = std::shared_ptr<PackedWeights>(new PackedWeights());
    Layout layout(file, matrices, dense);
    if (!cache_path.empty() && packed->map_cache(layout, cache_path)) {
        packed->from_cache_ = true;
        packed->attach(layout, packed->cache_->data(), file, matrices);
        return packed;
    }

    const auto pack = [&](uint8_t* memory, AtomicFile* cache) {
        ThreadPool pool(n_threads);
        RowReader head(*dense.head, dense.kept_as), embedding(*dense.embedding, dense.kept_as);
        SectionWriter writer(memory, cache);
        CacheHeader* header = reinterpret_cast<CacheHeader*>(writer.stage(0, sizeof(CacheHeader)));
        *header = layout.header;
        writer.commit(0, reinterpret_cast<uint8_t*>(header), sizeof(CacheHeader));

        std::vector<MatrixFacts> facts;
        for (size_t i = 0; i < matrices.size(); i++) {
            const size_t bytes = n9_bytes(matrices[i].weights.rows(), matrices[i].weights.cols());
            uint8_t* staged = writer.stage(layout.matrices[i], bytes);
            const double scale = scale_of(file, matrices[i]);
            facts.push_back({pack_matrix(pool, file, matrices[i], staged), scale});
            writer.commit(layout.matrices[i], staged, bytes);
            file.file().forget(static_cast<size_t>(matrices[i].tensor->data - file.file().data()), matrices[i].tensor->extent);
        }

        // Rows of a reader, one section of them: make(r, values, kept, out) writes `bytes` bytes.
        const auto write_rows = [&](RowReader& reader, size_t section, size_t bytes, auto&& make) {
            for (int32_t first = 0; first < layout.head_rows; first += kHeadRowsPerStage) {
                const int32_t count = std::min(kHeadRowsPerStage, layout.head_rows - first);
                const size_t start = static_cast<size_t>(first), size = static_cast<size_t>(count) * bytes;
                uint8_t* staged = writer.stage(section + start * bytes, size);
                for_rows(pool, reader, first, count,
                         [&](size_t r, const float* values, const uint8_t* kept) { make(r, values, kept, staged + (r - start) * bytes); });
                writer.commit(section + start * bytes, staged, size);
                reader.forget(file, start, static_cast<size_t>(count));
            }
            reader.check(file);
        };
        const auto write_converted = [&](RowReader& reader, size_t section) {
            const size_t bytes = reader.kept_row_bytes();
            write_rows(reader, section, bytes, [&](size_t, const float*, const uint8_t* kept, uint8_t* out) { std::memcpy(out, kept, bytes); });
        };
        if (dense.kept_as) write_converted(head, layout.head_rows_as);
        if (dense.kept_as && dense.embedding != dense.head) write_converted(embedding, layout.embedding_rows);
        if (!dense.kept_as && dense.embedding != dense.head) {  // used from the file: only checked
            for_rows(pool, embedding, 0, layout.head_rows, [](size_t, const float*, const uint8_t*) {});
            embedding.check(file);
            embedding.forget(file, 0, static_cast<size_t>(layout.head_rows));
        }

        std::vector<float> scales(static_cast<size_t>(layout.head_rows)), error_norms(scales.size()), row_norms(scales.size());
        write_rows(head, layout.head_values, layout.stride, [&](size_t r, const float* values, const uint8_t*, uint8_t* out) {
            pack_head_row(values, head.n(), reinterpret_cast<int8_t*>(out), layout.stride, &scales[r], &error_norms[r], &row_norms[r]);
        });
        const auto put = [&](size_t offset, const void* data, size_t bytes) {
            uint8_t* staged = writer.stage(offset, bytes);
            std::memcpy(staged, data, bytes);
            writer.commit(offset, staged, bytes);
        };
        put(layout.head_scales, scales.data(), scales.size() * sizeof(float));
        put(layout.head_error_norms, error_norms.data(), error_norms.size() * sizeof(float));
        put(layout.head_row_norms, row_norms.data(), row_norms.size() * sizeof(float));
        std::vector<uint8_t> tail(layout.header.total_bytes - layout.facts);
        std::memcpy(tail.data(), facts.data(), facts.size() * sizeof(MatrixFacts));
        put(layout.facts, tail.data(), tail.size());
    };

    if (!cache_path.empty()) {
        AtomicFile cache(cache_path);
        if (cache.ok()) pack(nullptr, &cache);
        if (cache.commit() && packed->map_cache(layout, cache_path)) {
            packed->attach(layout, packed->cache_->data(), file, matrices);
            return packed;
        }
        packed->warning_ = "the packed weights could not be kept in '" + cache_path + "' (" +
                           (cache.ok() ? "it does not read back" : cache.error()) + "); they stay in private memory";
    }
    packed->memory_ = PageBuffer(layout.header.total_bytes);
    pack(packed->memory_.data(), nullptr);
    packed->attach(layout, packed->memory_.data(), file, matrices);
    return packed;
}

bool PackedWeights::map_cache(const Layout& layout, const std::string& cache_path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(cache_path, error)) return false;
    try {
        cache_ = MappedFile::open(cache_path);
    } catch (const ModelFileError&) {
        return false;
    }
    // The header pins every size and the source, so an equal header means equal content.
    if (cache_->size() == layout.header.total_bytes && std::memcmp(cache_->data(), &layout.header, sizeof(CacheHeader)) == 0)
        return true;
    cache_.reset();
    return false;
}

void PackedWeights::attach(const Layout& layout, const uint8_t* base, const GgufFile& file,
                           const std::vector<TernarySource>& matrices) {
    facts_.resize(matrices.size());
    std::memcpy(facts_.data(), base + layout.facts, facts_.size() * sizeof(MatrixFacts));
    for (size_t i = 0; i < matrices.size(); i++) {
        const TernarySource& source = matrices[i];
        TernaryWeights w;
        w.panels = base + layout.matrices[i];
        w.rows = source.weights.rows();
        w.cols = source.weights.cols();
        w.n_panels = (w.rows + kPanelRows - 1) / kPanelRows;
        w.k_blocks = (w.cols + kBlockCols - 1) / kBlockCols;
        w.scale = static_cast<float>(facts_[i].scale) * source.factor;
        if (!std::isfinite(w.scale))
            file.fail("the scale of tensor '" + std::string(source.tensor->name) + "' and the factor beside it are too large together");
        matrices_.push_back(w);
        ternary_bytes_ += n9_bytes(w.rows, w.cols);
    }
    if (layout.head_rows_as != 0) {
        converted_head_ = base + layout.head_rows_as;
        converted_embedding_ = base + layout.embedding_rows;
    }
    head_.values = reinterpret_cast<const int8_t*>(base + layout.head_values);
    head_.stride = layout.stride;
    head_.scales = reinterpret_cast<const float*>(base + layout.head_scales);
    head_.error_norms = reinterpret_cast<const float*>(base + layout.head_error_norms);
    head_.row_norms = reinterpret_cast<const float*>(base + layout.head_row_norms);
    head_bytes_ = layout.facts - layout.head_values;
}

bool PackedWeights::lock(std::string* reason) const {
    if (cache_) return cache_->lock(reason);
    if (memory_.lock()) return true;
    *reason = "the system refused (see ulimit -l)";
    return false;
}

}  // namespace bitnet
