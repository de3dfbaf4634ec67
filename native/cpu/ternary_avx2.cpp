// Ternary matrix products with AVX2. `direct` multiplies few tokens with vpmaddubsw, rows in lanes, and streams the
// weights; `table` looks up sums of four activations for many tokens, tokens in lanes. Both keep exact integer sums.
#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#include <cstring>

#include "cpu/ternary.h"

namespace bitnet::avx2 {
namespace {

inline __m256i load(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(p), v); }

inline int smaller(int a, int b) { return a < b ? a : b; }

inline const uint8_t* panel_at(const TernaryWeights& w, int panel) {
    return w.panels + size_t(panel) * size_t(w.k_blocks) * kPanelBlockBytes;
}

// ---- direct ----------------------------------------------------------------------------------------------------
//
// code = w + 1 is unsigned, so that dot = sum code*x - sum x. A lane of vpmaddubsw gets at most 2*2*127 = 508 and at
// least 2*2*-128 = -512; a k-block adds 4 of them, and after 16 k-blocks, 64*-512 = -32768 just fits an int16.
constexpr int kChunkBlocks = 16;
constexpr size_t kChunkBytes = size_t(kChunkBlocks) * kPanelBlockBytes;

// Weights are prefetched this far ahead: a page, about 150 ns of work, more than the latency of memory.
constexpr size_t kPrefetchBytes = 4096;

// Tokens served by one sweep over a panel: their sums (2 KB) and the decoded chunk (8 KB) stay in L1.
constexpr int kSweepTokens = 16;

// The two code tables of a base-9 digit 3*a + b: digit -> a and digit -> b.
struct DigitTables {
    __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0));
    __m256i second = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0));
    __m256i mask = _mm256_set1_epi8(15);
};

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

inline __m256i broadcast4(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

// sum += codes * four, in this order: left alone, GCC turns the additions of an unrolled loop into a tree and spills
// the products, which halves the speed.
inline void multiply_add(__m256i& sum, __m256i codes, __m256i four) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, four));
#if defined(__GNUC__)
    __asm__("" : "+x"(sum));
#endif
}

// totals[t][8*(first_vector + i) + 0..7] += the int16 pairs of sums[i][t]
template <int V, int T>
inline void add_totals(const __m256i (&sums)[V][T], int first_vector, int32_t* totals) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) {
            int32_t* total = totals + t * kPanelRows + (first_vector + i) * 8;
            store(total, _mm256_add_epi32(load(total), _mm256_madd_epi16(sums[i][t], ones)));
        }
}

// One chunk for T = 1 or 2 tokens, decoded in registers: V vectors of 8 rows at a time.
template <int V, int T>
inline void multiply_chunk(const uint8_t* chunk, int n_blocks, const int8_t* x, size_t x_stride, int32_t* totals) {
    const DigitTables digit;
    for (int v = 0; v < 4; v += V) {
        __m256i sums[V][T];
        for (int i = 0; i < V; ++i)
            for (int t = 0; t < T; ++t) sums[i][t] = _mm256_setzero_si256();
        const uint8_t* block = chunk + v * 32;
        for (int kb = 0; kb < n_blocks; ++kb, block += kPanelBlockBytes) {
            prefetch(block + kPrefetchBytes);
            if (V == 4) prefetch(block + kPrefetchBytes + 64);
            const int8_t* xk = x + kb * kBlockCols;
            __m256i bytes[V], nibble[V];
#pragma GCC unroll 4
            for (int i = 0; i < V; ++i) bytes[i] = load(block + i * 32);
#pragma GCC unroll 4
            for (int f = 0; f < 4; ++f) {
                __m256i codes[V];
#pragma GCC unroll 4
                for (int i = 0; i < V; ++i) {
                    if (f == 0) nibble[i] = _mm256_and_si256(bytes[i], digit.mask);
                    if (f == 2) nibble[i] = _mm256_and_si256(_mm256_srli_epi16(bytes[i], 4), digit.mask);
                    codes[i] = _mm256_shuffle_epi8(f & 1 ? digit.second : digit.first, nibble[i]);
                }
#pragma GCC unroll 4
                for (int t = 0; t < T; ++t) {
                    const __m256i four = broadcast4(xk + size_t(t) * x_stride + f * 4);
#pragma GCC unroll 4
                    for (int i = 0; i < V; ++i) multiply_add(sums[i][t], codes[i], four);
                }
            }
        }
        add_totals<V, T>(sums, v, totals);
    }
}

// Decode a chunk for several tokens: codes u8 [n_blocks*4][32 rows][4], dword r of a step = row r at k = 4*step + 0..3.
inline void decode_chunk(const uint8_t* chunk, int n_blocks, uint8_t* codes) {
    const DigitTables digit;
    for (int kb = 0; kb < n_blocks; ++kb, chunk += kPanelBlockBytes, codes += 4 * kPanelBlockBytes) {
        prefetch(chunk + kPrefetchBytes);
        prefetch(chunk + kPrefetchBytes + 64);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const __m256i bytes = load(chunk + i * 32);
            const __m256i low = _mm256_and_si256(bytes, digit.mask);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), digit.mask);
            store(codes + i * 32, _mm256_shuffle_epi8(digit.first, low));
            store(codes + kPanelBlockBytes + i * 32, _mm256_shuffle_epi8(digit.second, low));
            store(codes + 2 * kPanelBlockBytes + i * 32, _mm256_shuffle_epi8(digit.first, high));
            store(codes + 3 * kPanelBlockBytes + i * 32, _mm256_shuffle_epi8(digit.second, high));
        }
    }
}

// A decoded chunk times T <= 6 tokens: 2 x T sums, two codes and one broadcast are at most 15 of the 16 registers.
template <int T>
[[gnu::noinline]] void multiply_codes(const uint8_t* codes, int n_blocks, const int8_t* x, size_t x_stride,
                                      int32_t* totals) {
    for (int v = 0; v < 4; v += 2) {
        __m256i sums[2][T];
        for (int t = 0; t < T; ++t) sums[0][t] = sums[1][t] = _mm256_setzero_si256();
        const uint8_t* step = codes + v * 32;
        const int8_t* xk = x;
        for (int kb = 0; kb < n_blocks; ++kb, step += 4 * kPanelBlockBytes, xk += kBlockCols) {
#pragma GCC unroll 4
            for (int f = 0; f < 4; ++f) {
                const __m256i codes0 = load(step + f * kPanelBlockBytes),
                              codes1 = load(step + f * kPanelBlockBytes + 32);
#pragma GCC unroll 6
                for (int t = 0; t < T; ++t) {
                    const __m256i four = broadcast4(xk + size_t(t) * x_stride + f * 4);
                    multiply_add(sums[0][t], codes0, four);
                    multiply_add(sums[1][t], codes1, four);
                }
            }
        }
        add_totals<2, T>(sums, v, totals);
    }
}

void multiply_codes_any(int n, const uint8_t* codes, int n_blocks, const int8_t* x, size_t x_stride, int32_t* totals) {
    switch (n) {
        case 3: return multiply_codes<3>(codes, n_blocks, x, x_stride, totals);
        case 4: return multiply_codes<4>(codes, n_blocks, x, x_stride, totals);
        case 5: return multiply_codes<5>(codes, n_blocks, x, x_stride, totals);
        default: return multiply_codes<6>(codes, n_blocks, x, x_stride, totals);
    }
}

// y[t][panel's rows] = float(totals[t][row] - sum x[t]) * scale of token t; totals int32 [n][32]
void write_totals(const TernaryWeights& w, int panel, const int32_t* totals, const QuantizedRows& x, int first, int n,
                  float* y, size_t y_stride) {
    const int n_rows = smaller(w.rows - panel * kPanelRows, kPanelRows);
    for (int t = 0; t < n; ++t, totals += kPanelRows) {
        const __m256i sum = _mm256_set1_epi32(x.sums[first + t]);
        const __m256 scale = _mm256_set1_ps(w.scale * x.scales[first + t]);
        float* out = y + size_t(first + t) * y_stride + size_t(panel) * kPanelRows;
        alignas(32) float last[kPanelRows];  // the last panel may have fewer rows
        float* target = n_rows == kPanelRows ? out : last;
        for (int r = 0; r < kPanelRows; r += 8) {
            const __m256i dot = _mm256_sub_epi32(load(totals + r), sum);
            _mm256_storeu_ps(target + r, _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scale));
        }
        if (target == last) std::memcpy(out, last, size_t(n_rows) * sizeof(float));
    }
}

// Tokens [first, first + T) of all panels, T = 1 or 2.
template <int V, int T>
[[gnu::noinline]] void direct_in_registers(const TernaryWeights& w, int panel_begin, int panel_end,
                                           const QuantizedRows& x, int first, float* y, size_t y_stride) {
    for (int panel = panel_begin; panel < panel_end; ++panel) {
        alignas(64) int32_t totals[T * kPanelRows] = {};
        const uint8_t* chunk = panel_at(w, panel);
        const int8_t* values = x.values + size_t(first) * x.stride;
        for (int kb = 0; kb < w.k_blocks; kb += kChunkBlocks, chunk += kChunkBytes)
            multiply_chunk<V, T>(chunk, smaller(w.k_blocks - kb, kChunkBlocks), values + kb * kBlockCols, x.stride,
                                 totals);
        write_totals(w, panel, totals, x, first, T, y, y_stride);
    }
}

// Tokens [first, first + n) of all panels, 3 <= n <= kSweepTokens: each chunk is decoded once, then multiplied with
// groups of 3 to 6 tokens of nearly equal size.
void direct_decoded(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int first, int n,
                    float* y, size_t y_stride) {
    const int n_groups = (n + 5) / 6;
    for (int panel = panel_begin; panel < panel_end; ++panel) {
        alignas(64) int32_t totals[kSweepTokens * kPanelRows];
        alignas(64) uint8_t codes[kChunkBytes * 4];
        std::memset(totals, 0, size_t(n) * kPanelRows * sizeof(int32_t));
        const uint8_t* chunk = panel_at(w, panel);
        for (int kb = 0; kb < w.k_blocks; kb += kChunkBlocks, chunk += kChunkBytes) {
            const int n_blocks = smaller(w.k_blocks - kb, kChunkBlocks);
            decode_chunk(chunk, n_blocks, codes);
            for (int group = 0; group < n_groups; ++group) {
                const int begin = n * group / n_groups, end = n * (group + 1) / n_groups;
                multiply_codes_any(end - begin, codes, n_blocks,
                                   x.values + size_t(first + begin) * x.stride + kb * kBlockCols, x.stride,
                                   totals + begin * kPanelRows);
            }
        }
        write_totals(w, panel, totals, x, first, n, y, y_stride);
    }
}

// ---- table: the method of four Russians ------------------------------------------------------------------------
//
// A weight byte holds four weights of one row. For four activations of every token all 81 signed sums are tabulated,
// one entry per byte value; a row then adds one entry per byte: 4 weights x 16 tokens in one instruction, nothing to
// decode. V = 1 or 2 vectors of 16 tokens make an entry. A pass adds 8/V tables (2/V k-blocks) to the int16 sums of a
// row block.

// The int16 sums of a row block (2 KB a panel) are swept by every pass: they stay in L2 beside the weights that stream
// through, and building the tables (324 entries a pass) is small against 10 loads a row.
constexpr int kRowBlockPanels = kMostTablePanels;

template <int V>
struct TableShape {
    static constexpr int kEntryBytes = 32 * V;
    // The largest byte is 0x88 = 136. A stride of 9 (5) lines modulo the 64 sets of an L1 spreads the 81 entries of all
    // tables so that no set holds more than 7 of 8 ways.
    static constexpr int kTableBytes = (V == 2 ? 128 + 9 : 64 + 5) * 64;
    static constexpr int kBlocksPerPass = 2 / V;
};
// The last table is followed by room for the bytes above 136, so that damaged weights cannot read outside the scratch.
constexpr size_t kAllTablesBytes = 3 * TableShape<2>::kTableBytes + 256 * TableShape<2>::kEntryBytes;
static_assert(7 * TableShape<1>::kTableBytes + 256 * TableShape<1>::kEntryBytes <= kAllTablesBytes);

struct Scratch {
    uint8_t* tables;
    int16_t* sums;    // [rows of the block][16*V]
    int32_t* totals;  // [rows of the block][16*V], per vector of 16: the even tokens, then the odd ones
};

// The four tables of one k-block. `tile` = int16 [16 k][32]; table b is over k = b, 4+b, 8+b, 12+b.
template <int V>
[[gnu::noinline]] void build_tables(const int16_t* tile, uint8_t* tables) {
    constexpr int kEntry = TableShape<V>::kEntryBytes;
    for (int b = 0; b < 4; ++b, tables += TableShape<V>::kTableBytes)
        for (int v = 0; v < V; ++v) {
            const int16_t* x = tile + b * kTableTokens + v * 16;
            const __m256i x0 = load(x), x1 = load(x + 4 * kTableTokens);
            const __m256i x2 = load(x + 8 * kTableTokens), x3 = load(x + 12 * kTableTokens);
            __m256i sum3 = _mm256_sub_epi16(_mm256_setzero_si256(), x3);
            for (int c3 = 0; c3 < 3; ++c3, sum3 = _mm256_add_epi16(sum3, x3)) {
                __m256i sum2 = _mm256_sub_epi16(sum3, x2);
                for (int c2 = 0; c2 < 3; ++c2, sum2 = _mm256_add_epi16(sum2, x2)) {
                    __m256i sum0 = _mm256_sub_epi16(sum2, x0);
                    uint8_t* entry = tables + ((3 * c2 + c3) * 16) * kEntry + v * 32;
#pragma GCC unroll 3
                    for (int c0 = 0; c0 < 3; ++c0, sum0 = _mm256_add_epi16(sum0, x0), entry += 3 * kEntry) {
                        store(entry, _mm256_sub_epi16(sum0, x1));
                        store(entry + kEntry, sum0);
                        store(entry + 2 * kEntry, _mm256_add_epi16(sum0, x1));
                    }
                }
            }
        }
}

// Add (Fresh: write) the entries that B k-blocks of the weights select to the sums of all rows of n_panels panels.
template <int V, int B, bool Fresh>
[[gnu::noinline]] void add_entries(const uint8_t* weights, size_t panel_bytes, int n_panels, const uint8_t* tables,
                                   int16_t* sums) {
    constexpr int kTable = TableShape<V>::kTableBytes;
    constexpr int kShift = V == 2 ? 6 : 5;  // log2 of the bytes of an entry
    constexpr uint64_t kMask = 0xffu << kShift;
    for (int panel = 0; panel < n_panels; ++panel, weights += panel_bytes) {
        // Panels are far apart and every pass takes only 128*B bytes of each: beyond the reach of a hardware
        // prefetcher.
        for (int line = 0; line < 2 * B; ++line) prefetch(weights + 3 * panel_bytes + line * 64);
#pragma GCC unroll 2
        for (int r = 0; r < kPanelRows; ++r, sums += 16 * V) {
            const uint8_t* entries[4 * B];
#pragma GCC unroll 2
            for (int b = 0; b < B; ++b) {
                uint32_t bytes;
                std::memcpy(&bytes, weights + b * kPanelBlockBytes + r * 4, 4);
                const uint64_t four = bytes;  // 64 bits wide, so that the table's offset folds into the load's address
                const uint8_t* t = tables + b * 4 * kTable;
                entries[4 * b] = t + (four << kShift & kMask);
                entries[4 * b + 1] = t + kTable + (four >> (8 - kShift) & kMask);
                entries[4 * b + 2] = t + 2 * kTable + (four >> (16 - kShift) & kMask);
                entries[4 * b + 3] = t + 3 * kTable + (four >> (24 - kShift) & kMask);
            }
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                __m256i sum = load(entries[0] + v * 32);
#pragma GCC unroll 8
                for (int e = 1; e < 4 * B; ++e) sum = _mm256_add_epi16(sum, load(entries[e] + v * 32));
                if (!Fresh) sum = _mm256_add_epi16(sum, load(sums + v * 16));
                store(sums + v * 16, sum);
            }
        }
    }
}

// Sign-extended even and odd int16 lanes.
inline __m256i even_lanes(__m256i v) { return _mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16); }
inline __m256i odd_lanes(__m256i v) { return _mm256_srai_epi32(v, 16); }

// totals += sums (Fresh: totals = sums) over n vectors of 16 sums.
template <bool Fresh>
void flush_sums(const int16_t* sums, int n, int32_t* totals) {
    for (int i = 0; i < n; ++i, sums += 16, totals += 16) {
        const __m256i v = load(sums);
        __m256i even = even_lanes(v), odd = odd_lanes(v);
        if (!Fresh) {
            even = _mm256_add_epi32(even, load(totals));
            odd = _mm256_add_epi32(odd, load(totals + 8));
        }
        store(totals, even);
        store(totals + 8, odd);
    }
}

inline void transpose8x8(__m256 (&m)[8]) {
    __m256 a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        m[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        m[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

// y[first + t][row] = float(total) * scale of token t, for the rows of one panel; total = sums, plus totals unless
// null. 8 rows x the 8 even or odd tokens of a vector at a time, turned from token lanes into row lanes.
template <int V>
[[gnu::noinline]] void write_panel(const int16_t* sums, const int32_t* totals, const float* scales, int n_rows,
                                   int n_tokens, float* y, size_t y_stride) {
    for (int eight = 0; eight < 2 * V; ++eight) {
        const bool odd = eight & 1;
        const int first_token = (eight >> 1) * 16 + odd;  // then every second one
        for (int row = 0; row < n_rows; row += 8) {
            __m256 m[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                const __m256i v = load(sums + ((row + i) * V + (eight >> 1)) * 16);
                __m256i total = odd ? odd_lanes(v) : even_lanes(v);
                if (totals) total = _mm256_add_epi32(total, load(totals + ((row + i) * 2 * V + eight) * 8));
                m[i] = _mm256_cvtepi32_ps(total);
            }
            transpose8x8(m);
            const int rows_left = n_rows - row;
            for (int j = 0; j < 8; ++j) {
                const int token = first_token + 2 * j;
                if (token >= n_tokens) break;
                const __m256 out = _mm256_mul_ps(m[j], _mm256_set1_ps(scales[token]));
                float* target = y + size_t(token) * y_stride + row;
                if (rows_left >= 8) {
                    _mm256_storeu_ps(target, out);
                } else {
                    alignas(32) float last[8];
                    _mm256_store_ps(last, out);
                    std::memcpy(target, last, size_t(rows_left) * sizeof(float));
                }
            }
        }
    }
}

// Sums of |x| over the k of a pass, per token, added to `bound`, saturating: what the int16 sums can have reached.
template <int V, int B>
inline void add_bounds(const int16_t* tile, __m256i* bound) {
    for (int v = 0; v < V; ++v)
        for (int k = 0; k < B * kBlockCols; ++k)
            bound[v] = _mm256_adds_epi16(bound[v], _mm256_abs_epi16(load(tile + k * kTableTokens + v * 16)));
}

template <int V, int B>
void table_pass(const uint8_t* weights, size_t panel_bytes, int n_panels, const int16_t* tile, bool fresh,
                const Scratch& scratch) {
    for (int b = 0; b < B; ++b)
        build_tables<V>(tile + b * kBlockCols * kTableTokens, scratch.tables + b * 4 * TableShape<V>::kTableBytes);
    if (fresh)
        add_entries<V, B, true>(weights, panel_bytes, n_panels, scratch.tables, scratch.sums);
    else
        add_entries<V, B, false>(weights, panel_bytes, n_panels, scratch.tables, scratch.sums);
}

// One row block: panels [panel, panel + n_panels), tokens [0, n) of the tile.
template <int V>
void table_row_block(const TernaryWeights& w, int panel, int n_panels, const int16_t* tile, const float* scales, int n,
                     float* y, size_t y_stride, const Scratch& scratch) {
    constexpr int kStep = TableShape<V>::kBlocksPerPass;
    const size_t panel_bytes = size_t(w.k_blocks) * kPanelBlockBytes;
    const uint8_t* weights = panel_at(w, panel);
    const int n_vectors = n_panels * kPanelRows * V;
    const __m256i full = _mm256_set1_epi16(INT16_MAX);

    // The int16 sums move to the int32 totals when one of them might overflow: |sum| <= sum |x|. With ordinary
    // activations that is every 50 k-blocks or so, with all of them at -128 every 15.
    __m256i bound[V] = {};
    bool fresh = true, flushed = false;
    for (int kb = 0; kb < w.k_blocks; kb += kStep) {
        const int16_t* x = tile + size_t(kb) * kBlockCols * kTableTokens;
        const bool whole = w.k_blocks - kb >= kStep;  // else one k-block is left of two
        __m256i next[V];
        int overflow = 0;
        for (int v = 0; v < V; ++v) next[v] = bound[v];
        whole ? add_bounds<V, kStep>(x, next) : add_bounds<V, 1>(x, next);
        for (int v = 0; v < V; ++v) overflow |= _mm256_movemask_epi8(_mm256_cmpeq_epi16(next[v], full));
        if (overflow) {
            flushed ? flush_sums<false>(scratch.sums, n_vectors, scratch.totals)
                    : flush_sums<true>(scratch.sums, n_vectors, scratch.totals);
            flushed = fresh = true;
            for (int v = 0; v < V; ++v) next[v] = _mm256_setzero_si256();
            whole ? add_bounds<V, kStep>(x, next) : add_bounds<V, 1>(x, next);
        }
        for (int v = 0; v < V; ++v) bound[v] = next[v];
        const uint8_t* block = weights + size_t(kb) * kPanelBlockBytes;
        whole ? table_pass<V, kStep>(block, panel_bytes, n_panels, x, fresh, scratch)
              : table_pass<V, 1>(block, panel_bytes, n_panels, x, fresh, scratch);
        fresh = false;
    }

    for (int p = 0; p < n_panels; ++p) {
        const int row = (panel + p) * kPanelRows, n_rows = smaller(w.rows - row, kPanelRows);
        const size_t offset = size_t(p) * kPanelRows * V * 16;
        write_panel<V>(scratch.sums + offset, flushed ? scratch.totals + offset : nullptr, scales, n_rows, n, y + row,
                       y_stride);
    }
}

}  // namespace

void ternary_direct(const TernaryWeights& w, int panel_begin, int panel_end, const QuantizedRows& x, int n_tokens,
                    float* y, size_t y_stride) {
    for (int first = 0; first < n_tokens;) {
        const int left = n_tokens - first;
        int n = smaller(left, kSweepTokens);
        if (left > kSweepTokens && left < kSweepTokens + 3) n = kSweepTokens - 2;  // leave no sweep of 1 or 2 tokens
        if (n == 1)
            direct_in_registers<4, 1>(w, panel_begin, panel_end, x, first, y, y_stride);
        else if (n == 2)
            direct_in_registers<2, 2>(w, panel_begin, panel_end, x, first, y, y_stride);
        else
            direct_decoded(w, panel_begin, panel_end, x, first, n, y, y_stride);
        first += n;
    }
}

// 16 tokens at a time in each half of a register: a 16x16 byte transposition, then widening.
void table_tile(const QuantizedRows& x, int first, int n, int k_blocks, int16_t* tile) {
    const __m128i zero = _mm_setzero_si128();
    for (int kb = 0; kb < k_blocks; ++kb, tile += kBlockCols * kTableTokens) {
        const int8_t* values = x.values + size_t(first) * x.stride + size_t(kb) * kBlockCols;
        __m256i a[16], b[16];
        for (int t = 0; t < 16; ++t) {  // a[t] = 16 k of token t | 16 k of token t + 16
            const int8_t* low = values + size_t(t) * x.stride;
            const int8_t* high = low + 16 * x.stride;
            a[t] = _mm256_set_m128i(t + 16 < n ? _mm_load_si128(reinterpret_cast<const __m128i*>(high)) : zero,
                                    t < n ? _mm_load_si128(reinterpret_cast<const __m128i*>(low)) : zero);
        }
        // Four rounds that interleave register i with i + 8; after them register k holds position k of all tokens.
        for (int round = 0; round < 4; ++round) {
            for (int i = 0; i < 8; ++i) {
                b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]);
                b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
            }
            for (int i = 0; i < 16; ++i) a[i] = b[i];
        }
        for (int k = 0; k < kBlockCols; ++k) {
            store(tile + k * kTableTokens, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(a[k])));
            store(tile + k * kTableTokens + 16, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(a[k], 1)));
        }
    }
}

size_t table_scratch_bytes(int n_panels) {
    const size_t sums = size_t(smaller(n_panels, kRowBlockPanels)) * kPanelRows * kTableTokens;
    return kAllTablesBytes + sums * (sizeof(int16_t) + sizeof(int32_t));
}

void ternary_table(const TernaryWeights& w, int panel_begin, int panel_end, const int16_t* tile, const QuantizedRows& x,
                   int first, int n, int min_tokens, float* y, size_t y_stride, void* scratch) {
    const int n_panels = panel_end - panel_begin;
    if (n_panels <= 0 || n <= 0) return;
    float* out = y + size_t(first) * y_stride;

    // Entries of 16 tokens cost half of those of 32. What they leave, if it is little, is cheaper to multiply.
    const int n_looked_up = n < min_tokens ? 0 : n < 16 ? n : n < 16 + min_tokens ? 16 : n;
    if (n_looked_up > 0) {
        float scales[kTableTokens];
        for (int t = 0; t < n_looked_up; ++t) scales[t] = w.scale * x.scales[first + t];
        const int n_blocks = (n_panels + kRowBlockPanels - 1) / kRowBlockPanels;
        Scratch parts;
        parts.tables = static_cast<uint8_t*>(scratch);
        parts.sums = reinterpret_cast<int16_t*>(parts.tables + kAllTablesBytes);
        parts.totals =
            reinterpret_cast<int32_t*>(parts.sums + smaller(n_panels, kRowBlockPanels) * kPanelRows * kTableTokens);
        for (int block = 0; block < n_blocks; ++block) {  // of nearly equal size
            const int begin = panel_begin + int(int64_t(n_panels) * block / n_blocks);
            const int end = panel_begin + int(int64_t(n_panels) * (block + 1) / n_blocks);
            if (n_looked_up <= 16)
                table_row_block<1>(w, begin, end - begin, tile, scales, n_looked_up, out, y_stride, parts);
            else
                table_row_block<2>(w, begin, end - begin, tile, scales, n_looked_up, out, y_stride, parts);
        }
    }
    const int done = first + n_looked_up;
    const QuantizedRows rest = {x.values + size_t(done) * x.stride, x.stride, x.scales + done, x.sums + done};
    ternary_direct(w, panel_begin, panel_end, rest, n - n_looked_up, out + size_t(n_looked_up) * y_stride, y_stride);
}

}  // namespace bitnet::avx2

#endif
