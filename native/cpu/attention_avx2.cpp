// AVX2 attention over one block of the KV store: scores, online softmax, weighted values. Both products are the same
// small matrix product, in which a query's chain of fma runs in ascending order whatever it is tiled with.
// Compiled with -mavx2 -mfma -mf16c: nothing here may become a symbol that code for older processors could link to.
#include "cpu/vector.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "cpu/vector_avx2.h"

namespace bitnet::avx2 {
namespace {

// Queries whose scores are held at once: 8 KB of stack.
constexpr int kChunk = 64;

// Eight elements of K or V as floats. They are converted as the tiles read them: the conversion runs beside the fma, and keeping a
// converted copy for many queries measured no faster.
__m256 load(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
__m256 load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// What becomes of a tile's sums: they begin with c and replace it,
struct Plain {
    static __m256 begin(const float* c) { return _mm256_loadu_ps(c); }
    static void end(__m256 sum, float* c, int) { _mm256_storeu_ps(c, sum); }
    Plain from(int) const { return {}; }
};
// or they begin with 0 and enter c with the scale of their column, f16 (for rows of one depth: none is cut in two).
struct Scaled {
    const uint16_t* scales;

    static __m256 begin(const float*) { return _mm256_setzero_ps(); }
    void end(__m256 sum, float* c, int column) const {
        _mm256_storeu_ps(c, _mm256_fmadd_ps(load(scales + column), sum, _mm256_loadu_ps(c)));
    }
    Scaled from(int column) const { return {scales + column}; }
};

// A tile of c += a * b: Q rows of a [Q][depth] f32, 8 N columns of b [depth][8 N] f16 or int8; Q * N sums stay in registers.
template <int Q, int N, typename Element, typename Sums>
void tile(const float* a, size_t a_stride, const Element* b, size_t b_stride, int depth, float* c, size_t c_stride,
          Sums sums) {
    __m256 sum[Q][N];
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sum[i][j] = sums.begin(c + c_stride * i + 8 * j);
    for (int k = 0; k < depth; ++k) {
        __m256 column[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) column[j] = load(b + b_stride * k + 8 * j);
#pragma GCC unroll 8
        for (int i = 0; i < Q; ++i) {
            const __m256 element = _mm256_broadcast_ss(a + a_stride * i + k);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) sum[i][j] = _mm256_fmadd_ps(element, column[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sums.end(sum[i][j], c + c_stride * i + 8 * j, 8 * j);
}

// c += a * b for Q rows and any multiple of 8 columns, in tiles of 8 N columns and what remains in narrower ones.
template <int Q, int N, typename Element, typename Sums>
void rows(const float* a, size_t a_stride, const Element* b, size_t b_stride, int depth, float* c, size_t c_stride,
          int n_columns, Sums sums) {
    int j = 0;
    for (; j + 8 * N <= n_columns; j += 8 * N) tile<Q, N>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, sums.from(j));
    if constexpr (N > 1) rows<Q, N / 2>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, n_columns - j, sums.from(j));
}

// c[i] += a[i][0 .. depth[i]) * b. Rows that share a tile run together to the smallest depth among them, then alone.
// Tiles hold 8 to 12 sums: two fma a cycle, each four cycles long, need 8 chains, and there are 16 registers.
template <typename Element, typename Sums = Plain>
void multiply(const float* a, size_t a_stride, int n_rows, const int* depth, const Element* b, size_t b_stride,
              float* c, size_t c_stride, int n_columns, Sums sums = {}) {
    for (int i = 0, taken = 0; i < n_rows; i += taken) {
        const int left = n_rows - i;
        taken = left >= 6 ? 6 : left >= 4 ? 4 : left;
        int common = depth[i];
        for (int r = i + 1; r < i + taken; ++r) common = depth[r] < common ? depth[r] : common;
        const float* a_rows = a + a_stride * i;
        float* c_rows = c + c_stride * i;
        if (taken == 6) rows<6, 2>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 4) rows<4, 2>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 3) rows<3, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 2) rows<2, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 1) rows<1, 8>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        for (int r = i; r < i + taken; ++r)
            if (depth[r] > common)
                rows<1, 8>(a + a_stride * r + common, a_stride, b + b_stride * common, b_stride, depth[r] - common,
                           c + c_stride * r, c_stride, n_columns, sums);
    }
}

// One query's step of the online softmax: its scores become weights, exactly 0 where not visible.
void soften(float* score, int visible, float scale, float* max, float* sum, float* acc, int head_dim) {
    const __m256 minus_infinity = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xff800000)));
    __m256 s[4];
    for (int i = 0; i < 4; ++i) {
        const __m256i position = _mm256_add_epi32(_mm256_set1_epi32(8 * i), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        const __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32(visible), position);
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(score + 8 * i), _mm256_set1_ps(scale));
        s[i] = _mm256_blendv_ps(minus_infinity, scaled, _mm256_castsi256_ps(seen));
    }
    const __m128 old_max = _mm_load_ss(max);
    const __m128 new_max = _mm_max_ss(old_max, max_lanes(s));
    const __m256 shift = _mm256_broadcastss_ps(new_max);
    for (int i = 0; i < 4; ++i) {
        s[i] = exp8(_mm256_sub_ps(s[i], shift));
        _mm256_storeu_ps(score + 8 * i, s[i]);
    }
    const float total = sum_lanes(s);
    _mm_store_ss(max, new_max);
    if (_mm_comieq_ss(old_max, new_max)) {  // the correction is exp(0) = 1 exactly: nothing to rescale
        *sum += total;
        return;
    }
    const __m256 correction = exp8(_mm256_broadcastss_ps(_mm_sub_ss(old_max, new_max)));
    _mm_store_ss(sum, _mm_fmadd_ss(_mm_load_ss(sum), _mm256_castps256_ps128(correction), _mm_set_ss(total)));
    for (int d = 0; d < head_dim; d += 8)
        _mm256_storeu_ps(acc + d, _mm256_mul_ps(_mm256_loadu_ps(acc + d), correction));
}

// The two products of attention with the K and V of a block, once for each way to store them: q.k into scores
// [n_queries][32], zero before, of the first n_positions; and scores times V, as many positions as each query sees, onto
// acc [n_queries][head_dim].
struct F16Block {
    const uint16_t *k, *v;

    void scores(const float* q, size_t q_stride, int n_queries, int head_dim, int n_positions, float* score) const {
        int depth[kChunk];
        for (int i = 0; i < n_queries; ++i) depth[i] = head_dim;
        multiply(q, q_stride, n_queries, depth, k, kKvBlock, score, kKvBlock, n_positions);
    }
    void values(const float* score, int n_queries, const int* visible, int head_dim, float* acc) const {
        multiply(score, kKvBlock, n_queries, visible, v, head_dim, acc, head_dim, head_dim);
    }
};

// Group by group, so that a scale enters once for 32 products: behind the sum of q times values, and before the sum of
// scores times values.
struct Q8Block {
    const int8_t *k, *v;

    void scores(const float* q, size_t q_stride, int n_queries, int head_dim, int n_positions, float* score) const {
        int depth[kChunk];
        for (int g = 0, first = 0; first < head_dim; ++g, first += kKvGroup) {
            for (int i = 0; i < n_queries; ++i) depth[i] = group_size(head_dim, g);
            multiply(q + first, q_stride, n_queries, depth, k + first * kKvBlock, kKvBlock, score, kKvBlock, n_positions,
                     Scaled{scales(k, head_dim, g)});
        }
    }
    void values(const float* score, int n_queries, const int* visible, int head_dim, float* acc) const {
        alignas(32) float scaled[kChunk * kKvBlock];  // [n_queries][32], for one group
        for (int g = 0, first = 0; first < head_dim; ++g, first += kKvGroup) {
            for (int p = 0; p < kKvBlock; p += 8) {
                const __m256 scale = load(scales(v, head_dim, g) + p);
                for (int i = p; i < n_queries * kKvBlock; i += kKvBlock)
                    _mm256_storeu_ps(scaled + i, _mm256_mul_ps(_mm256_loadu_ps(score + i), scale));
            }
            multiply(scaled, kKvBlock, n_queries, visible, v + first, head_dim, acc + first, head_dim, group_size(head_dim, g));
        }
    }

    static int group_size(int head_dim, int group) {
        const int left = head_dim - group * kKvGroup;
        return left < kKvGroup ? left : kKvGroup;
    }
    // f16 [kKvBlock]
    static const uint16_t* scales(const int8_t* block, int head_dim, int group) {
        return reinterpret_cast<const uint16_t*>(block + kKvBlock * head_dim) + kKvBlock * group;
    }
};

// At most kChunk queries.
template <typename Block>
void attend(const float* q, size_t q_stride, int n_queries, const int* visible, const Block& block, int head_dim,
            float scale, float* max, float* sum, float* acc) {
    int most = 0;
    for (int i = 0; i < n_queries; ++i) most = visible[i] > most ? visible[i] : most;
    if (most == 0) return;

    const int n_positions = (most + 15) / 16 * 16;  // columns of K worth computing, in whole tiles

    alignas(32) float score[kChunk * kKvBlock];  // [n_queries][32]
    for (int i = 0; i < n_queries * kKvBlock; i += 8) _mm256_store_ps(score + i, _mm256_setzero_ps());
    block.scores(q, q_stride, n_queries, head_dim, n_positions, score);
    for (int i = 0; i < n_queries; ++i)
        if (visible[i] > 0)
            soften(score + kKvBlock * i, visible[i], scale, max + i, sum + i, acc + static_cast<size_t>(head_dim) * i,
                   head_dim);
    block.values(score, n_queries, visible, head_dim, acc);
}

template <typename Block>
void attend_all(const float* q, size_t q_stride, int n_queries, const int* visible, const Block& block, int head_dim,
                float scale, float* max, float* sum, float* acc) {
    for (int i = 0; i < n_queries; i += kChunk) {
        const int n = n_queries - i < kChunk ? n_queries - i : kChunk;
        attend(q + q_stride * i, q_stride, n, visible + i, block, head_dim, scale, max + i, sum + i,
               acc + static_cast<size_t>(head_dim) * i);
    }
}

// scalar::quantize_group; n is a multiple of 8.
uint16_t quantize_group(const float* x, int n, int8_t* values) {
    __m256i most = _mm256_setzero_si256();  // as integers, |x| orders like the floats, infinity and NaN above all others
    for (int i = 0; i < n; i += 8) {
        const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
        most = _mm256_max_epi32(most, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    const bool finite = _mm_cvtsi128_si32(m) < 0x7f800000;
    const __m128 exact = _mm_div_ss(_mm_castsi128_ps(m), _mm_set_ss(127.0f));
    const __m128i scale = _mm_cvtps_ph(exact, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    const uint16_t scale_bits = finite ? static_cast<uint16_t>(_mm_extract_epi16(scale, 0)) : kF16Nan;
    const bool zeros = !finite || scale_bits == 0;
    const __m256 inverse = _mm256_broadcastss_ps(_mm_div_ss(_mm_set_ss(1.0f), _mm_cvtph_ps(scale)));
    for (int i = 0; i < n; i += 8) {
        const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse));
        const __m128i q16 = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
        const __m128i q8 = zeros ? _mm_setzero_si128() : _mm_packs_epi16(q16, q16);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(values + i), q8);
    }
    return scale_bits;
}

}  // namespace

void kv_write(const float* k, const float* v, int head_dim, int slot, uint16_t* k_block, uint16_t* v_block) {
    uint16_t* v_row = v_block + static_cast<size_t>(slot) * head_dim;
    for (int d = 0; d < head_dim; d += 8) {
        const __m128i v_half = _mm256_cvtps_ph(_mm256_loadu_ps(v + d), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(v_row + d), v_half);
        alignas(16) uint16_t k_half[8];
        _mm_store_si128(reinterpret_cast<__m128i*>(k_half),
                        _mm256_cvtps_ph(_mm256_loadu_ps(k + d), _MM_FROUND_TO_NEAREST_INT));
        for (int i = 0; i < 8; ++i) k_block[static_cast<size_t>(d + i) * kKvBlock + slot] = k_half[i];
    }
}

void kv_write_q8_0(const float* k, const float* v, int head_dim, int slot, int8_t* k_block, int8_t* v_block) {
    uint16_t* k_scales = reinterpret_cast<uint16_t*>(k_block + kKvBlock * head_dim) + slot;
    uint16_t* v_scales = reinterpret_cast<uint16_t*>(v_block + kKvBlock * head_dim) + slot;
    for (int g = 0, first = 0; first < head_dim; ++g, first += kKvGroup) {
        const int n = Q8Block::group_size(head_dim, g);
        alignas(8) int8_t values[kKvGroup];
        k_scales[g * kKvBlock] = quantize_group(k + first, n, values);
        for (int d = 0; d < n; ++d) k_block[static_cast<size_t>(first + d) * kKvBlock + slot] = values[d];
        int8_t* v_row = v_block + static_cast<size_t>(slot) * head_dim + first;
        v_scales[g * kKvBlock] = quantize_group(v + first, n, v_row);
    }
}

void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    attend_all(q, q_stride, n_queries, visible, F16Block{k_block, v_block}, head_dim, scale, max, sum, acc);
}

void attention_block_q8_0(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                          const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    attend_all(q, q_stride, n_queries, visible, Q8Block{k_block, v_block}, head_dim, scale, max, sum, acc);
}

}  // namespace bitnet::avx2

#endif
