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

// Eight f16 as floats. K and V are converted as the tiles read them: the conversion runs beside the fma, and keeping a
// converted copy for many queries measured no faster.
__m256 load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// A tile of c += a * b: Q rows of a [Q][depth] f32, 8 N columns of b [depth][8 N] f16; Q * N sums stay in registers.
template <int Q, int N>
void tile(const float* a, size_t a_stride, const uint16_t* b, size_t b_stride, int depth, float* c, size_t c_stride) {
    __m256 sum[Q][N];
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sum[i][j] = _mm256_loadu_ps(c + c_stride * i + 8 * j);
    for (int k = 0; k < depth; ++k) {
        __m256 column[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) column[j] = load_f16(b + b_stride * k + 8 * j);
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
        for (int j = 0; j < N; ++j) _mm256_storeu_ps(c + c_stride * i + 8 * j, sum[i][j]);
}

// c += a * b for Q rows and any multiple of 8 columns, in tiles of 8 N columns and what remains in narrower ones.
template <int Q, int N>
void rows(const float* a, size_t a_stride, const uint16_t* b, size_t b_stride, int depth, float* c, size_t c_stride,
          int n_columns) {
    int j = 0;
    for (; j + 8 * N <= n_columns; j += 8 * N) tile<Q, N>(a, a_stride, b + j, b_stride, depth, c + j, c_stride);
    if constexpr (N > 1) rows<Q, N / 2>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, n_columns - j);
}

// c[i] += a[i][0 .. depth[i]) * b. Rows that share a tile run together to the smallest depth among them, then alone.
// Tiles hold 8 to 12 sums: two fma a cycle, each four cycles long, need 8 chains, and there are 16 registers.
void multiply(const float* a, size_t a_stride, int n_rows, const int* depth, const uint16_t* b, size_t b_stride,
              float* c, size_t c_stride, int n_columns) {
    for (int i = 0, taken = 0; i < n_rows; i += taken) {
        const int left = n_rows - i;
        taken = left >= 6 ? 6 : left >= 4 ? 4 : left;
        int common = depth[i];
        for (int r = i + 1; r < i + taken; ++r) common = depth[r] < common ? depth[r] : common;
        const float* a_rows = a + a_stride * i;
        float* c_rows = c + c_stride * i;
        if (taken == 6) rows<6, 2>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns);
        if (taken == 4) rows<4, 2>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns);
        if (taken == 3) rows<3, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns);
        if (taken == 2) rows<2, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns);
        if (taken == 1) rows<1, 8>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns);
        for (int r = i; r < i + taken; ++r)
            if (depth[r] > common)
                rows<1, 8>(a + a_stride * r + common, a_stride, b + b_stride * common, b_stride, depth[r] - common,
                           c + c_stride * r, c_stride, n_columns);
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

// At most kChunk queries.
void attend(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
            const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    int most = 0;
    for (int i = 0; i < n_queries; ++i) most = visible[i] > most ? visible[i] : most;
    if (most == 0) return;

    const int n_positions = (most + 15) / 16 * 16;  // columns of K worth computing, in whole tiles

    alignas(32) float score[kChunk * kKvBlock];  // [n_queries][32]
    int depth[kChunk];
    for (int i = 0; i < n_queries; ++i) {
        depth[i] = head_dim;
        for (int p = 0; p < kKvBlock; p += 8) _mm256_store_ps(score + kKvBlock * i + p, _mm256_setzero_ps());
    }
    multiply(q, q_stride, n_queries, depth, k_block, kKvBlock, score, kKvBlock, n_positions);
    for (int i = 0; i < n_queries; ++i)
        if (visible[i] > 0)
            soften(score + kKvBlock * i, visible[i], scale, max + i, sum + i, acc + static_cast<size_t>(head_dim) * i,
                   head_dim);
    multiply(score, kKvBlock, n_queries, visible, v_block, head_dim, acc, head_dim, head_dim);
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

void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    for (int i = 0; i < n_queries; i += kChunk) {
        const int n = n_queries - i < kChunk ? n_queries - i : kChunk;
        attend(q + q_stride * i, q_stride, n, visible + i, k_block, v_block, head_dim, scale, max + i, sum + i,
               acc + static_cast<size_t>(head_dim) * i);
    }
}

}  // namespace bitnet::avx2

#endif
