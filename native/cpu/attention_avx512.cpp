// AVX-512 attention over one block of the KV store: attention_avx2.cpp in registers of 16 floats. Every score and every
// element of the result is still one chain of fma in ascending order, and the 32 lanes are combined by the same code.
// Compiled with AVX-512 enabled: nothing here may become a symbol that code for older processors could link to.
#include "cpu/vector.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "cpu/vector_avx2.h"

namespace bitnet::avx512 {
namespace {

// Queries whose scores are held at once: 8 KB of stack.
constexpr int kChunk = 64;

// 16 elements of K or V as floats.
__m512 load(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
__m512 load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// scalar::exp, sixteen at a time.
__m512 exp16(__m512 x) {
    const __m512 magic = _mm512_set1_ps(kRoundMagic);
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 y = _mm512_min_ps(_mm512_set1_ps(kExpHigh), x);  // in this order a NaN passes through
    const __m512 shifted = _mm512_fmadd_ps(y, _mm512_set1_ps(kLog2E), magic);
    const __m512 k = _mm512_sub_ps(shifted, magic);
    __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(kLn2High), y);
    r = _mm512_fnmadd_ps(k, _mm512_set1_ps(kLn2Low), r);
    __m512 p = _mm512_set1_ps(kExpPoly[4]);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpPoly[3]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpPoly[2]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpPoly[1]));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpPoly[0]));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    const __m512 power = _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_castps_si512(one)));
    // Not less than kExpLow, or NaN: keep.
    const __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(kExpLow), _CMP_NLT_UQ);
    return _mm512_maskz_mul_ps(keep, p, power);
}

// What becomes of a tile's sums: they begin with c and replace it,
struct Plain {
    static __m512 begin(const float* c) { return _mm512_loadu_ps(c); }
    static void end(__m512 sum, float* c, int) { _mm512_storeu_ps(c, sum); }
    Plain from(int) const { return {}; }
};
// or they begin with 0 and enter c with the scale of their column, f16 (for rows of one depth: none is cut in two).
struct Scaled {
    const uint16_t* scales;

    static __m512 begin(const float*) { return _mm512_setzero_ps(); }
    void end(__m512 sum, float* c, int column) const {
        _mm512_storeu_ps(c, _mm512_fmadd_ps(load(scales + column), sum, _mm512_loadu_ps(c)));
    }
    Scaled from(int column) const { return {scales + column}; }
};

// A tile of c += a * b: Q rows of a [Q][depth] f32, 16 N columns of b [depth][16 N] f16 or int8; Q * N sums stay in registers.
template <int Q, int N, typename Element, typename Sums>
void tile(const float* a, size_t a_stride, const Element* b, size_t b_stride, int depth, float* c, size_t c_stride,
          Sums sums) {
    __m512 sum[Q][N];
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sum[i][j] = sums.begin(c + c_stride * i + 16 * j);
    for (int k = 0; k < depth; ++k) {
        __m512 column[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) column[j] = load(b + b_stride * k + 16 * j);
#pragma GCC unroll 8
        for (int i = 0; i < Q; ++i) {
            const __m512 element = _mm512_set1_ps(a[a_stride * i + k]);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) sum[i][j] = _mm512_fmadd_ps(element, column[j], sum[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < Q; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) sums.end(sum[i][j], c + c_stride * i + 16 * j, 16 * j);
}

// c += a * b for Q rows and any multiple of 16 columns, in tiles of 16 N columns and what remains in narrower ones.
template <int Q, int N, typename Element, typename Sums>
void rows(const float* a, size_t a_stride, const Element* b, size_t b_stride, int depth, float* c, size_t c_stride,
          int n_columns, Sums sums) {
    int j = 0;
    for (; j + 16 * N <= n_columns; j += 16 * N) tile<Q, N>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, sums.from(j));
    if constexpr (N > 1) rows<Q, N / 2>(a, a_stride, b + j, b_stride, depth, c + j, c_stride, n_columns - j, sums.from(j));
}

// c[i] += a[i][0 .. depth[i]) * b. Rows that share a tile run together to the smallest depth among them, then alone.
// Two fma a cycle, each four cycles long, need 8 chains; more rows to a tile convert each column less often.
template <typename Element, typename Sums = Plain>
void multiply(const float* a, size_t a_stride, int n_rows, const int* depth, const Element* b, size_t b_stride,
              float* c, size_t c_stride, int n_columns, Sums sums = {}) {
    for (int i = 0, taken = 0; i < n_rows; i += taken) {
        const int left = n_rows - i;
        taken = left >= 8 ? 8 : left >= 4 ? 4 : left;
        int common = depth[i];
        for (int r = i + 1; r < i + taken; ++r) common = depth[r] < common ? depth[r] : common;
        const float* a_rows = a + a_stride * i;
        float* c_rows = c + c_stride * i;
        if (taken == 8) rows<8, 2>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 4) rows<4, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 3) rows<3, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 2) rows<2, 4>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        if (taken == 1) rows<1, 8>(a_rows, a_stride, b, b_stride, common, c_rows, c_stride, n_columns, sums);
        for (int r = i; r < i + taken; ++r)
            if (depth[r] > common)
                rows<1, 8>(a + a_stride * r + common, a_stride, b + b_stride * common, b_stride, depth[r] - common,
                           c + c_stride * r, c_stride, n_columns, sums);
    }
}

// The 32 lanes of a reduction in the registers of the AVX2 code that combines them.
struct Lanes {
    __m256 v[4];
    Lanes(__m512 low, __m512 high)
        : v{_mm512_castps512_ps256(low), _mm512_extractf32x8_ps(low, 1), _mm512_castps512_ps256(high),
            _mm512_extractf32x8_ps(high, 1)} {}
};

// One query's step of the online softmax: its scores become weights, exactly 0 where not visible.
void soften(float* score, int visible, float scale, float* max, float* sum, float* acc, int head_dim) {
    const __m512 minus_infinity = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xff800000)));
    const __m512 factor = _mm512_set1_ps(scale);
    const uint32_t seen = visible >= kKvBlock ? ~0u : (1u << visible) - 1;
    const __m512 low = _mm512_mask_mul_ps(minus_infinity, static_cast<__mmask16>(seen), _mm512_loadu_ps(score), factor);
    const __m512 high =
        _mm512_mask_mul_ps(minus_infinity, static_cast<__mmask16>(seen >> 16), _mm512_loadu_ps(score + 16), factor);
    const __m128 old_max = _mm_load_ss(max);
    const __m128 new_max = _mm_max_ss(old_max, avx2::max_lanes(Lanes(low, high).v));
    const __m512 shift = _mm512_broadcastss_ps(new_max);
    const __m512 low_weights = exp16(_mm512_sub_ps(low, shift)), high_weights = exp16(_mm512_sub_ps(high, shift));
    _mm512_storeu_ps(score, low_weights);
    _mm512_storeu_ps(score + 16, high_weights);
    const float total = avx2::sum_lanes(Lanes(low_weights, high_weights).v);
    _mm_store_ss(max, new_max);
    if (_mm_comieq_ss(old_max, new_max)) {  // the correction is exp(0) = 1 exactly: nothing to rescale
        *sum += total;
        return;
    }
    const __m512 correction = exp16(_mm512_broadcastss_ps(_mm_sub_ss(old_max, new_max)));
    _mm_store_ss(sum, _mm_fmadd_ss(_mm_load_ss(sum), _mm512_castps512_ps128(correction), _mm_set_ss(total)));
    for (int d = 0; d < head_dim; d += 16)
        _mm512_storeu_ps(acc + d, _mm512_mul_ps(_mm512_loadu_ps(acc + d), correction));
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
        alignas(64) float scaled[kChunk * kKvBlock];  // [n_queries][32], for one group
        for (int g = 0, first = 0; first < head_dim; ++g, first += kKvGroup) {
            for (int p = 0; p < kKvBlock; p += 16) {
                const __m512 scale = load(scales(v, head_dim, g) + p);
                for (int i = p; i < n_queries * kKvBlock; i += kKvBlock)
                    _mm512_storeu_ps(scaled + i, _mm512_mul_ps(_mm512_loadu_ps(score + i), scale));
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

    alignas(64) float score[kChunk * kKvBlock];  // [n_queries][32]
    for (int i = 0; i < n_queries * kKvBlock; i += 16) _mm512_store_ps(score + i, _mm512_setzero_ps());
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

}  // namespace

void attention_block(const float* q, size_t q_stride, int n_queries, const int* visible, const uint16_t* k_block,
                     const uint16_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    if (head_dim % 16 != 0) {  // no model known to us
        avx2::attention_block(q, q_stride, n_queries, visible, k_block, v_block, head_dim, scale, max, sum, acc);
        return;
    }
    attend_all(q, q_stride, n_queries, visible, F16Block{k_block, v_block}, head_dim, scale, max, sum, acc);
}

void attention_block_q8_0(const float* q, size_t q_stride, int n_queries, const int* visible, const int8_t* k_block,
                          const int8_t* v_block, int head_dim, float scale, float* max, float* sum, float* acc) {
    if (head_dim % 16 != 0) {  // no model known to us
        avx2::attention_block_q8_0(q, q_stride, n_queries, visible, k_block, v_block, head_dim, scale, max, sum, acc);
        return;
    }
    attend_all(q, q_stride, n_queries, visible, Q8Block{k_block, v_block}, head_dim, scale, max, sum, acc);
}

}  // namespace bitnet::avx512

#endif
