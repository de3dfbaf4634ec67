// AVX-512 VNNI kernel of the output head. Bit-identical to vector_scalar.cpp.
// Compiled with AVX-512 enabled: nothing here may become a symbol that code for older processors could link to.
#include "cpu/vector.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

namespace bitnet::avx512 {
namespace {

// How far ahead of the row bytes in use to prefetch: the head is one linear stream from DRAM.
constexpr int kPrefetchBytes = 4096;
// Rows that one group of tokens visits before the next group does: 64 rows of 2560 stay in L2.
constexpr int kRowGroup = 64;

__m512i load(const int8_t* p) {
    return _mm512_loadu_si512(p);
}

// Scores of T tokens, from first_token on, against rows [begin, end). vpdpbusd wants one operand unsigned: w + 128,
// whose excess of 128 * sum x is taken off in the end. Sums may wrap around on the way; the result fits an int32.
template <int T>
void score_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int begin, int end,
                const QuantizedRows& x, int first_token, float* scores, size_t scores_stride) {
    const __m512i bias = _mm512_set1_epi8(-128);
    const int8_t* tokens = x.values + x.stride * first_token;
    __m512i excess[T];
    for (int t = 0; t < T; ++t) {
        excess[t] = _mm512_setzero_si512();
        for (size_t i = 0; i < row_stride; i += 64)
            excess[t] = _mm512_dpbusd_epi32(excess[t], bias, load(tokens + x.stride * t + i));
    }
    for (int r = begin; r < end; ++r) {
        const int8_t* row = rows + row_stride * r;
        __m512i sum[T];
        for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_si512();
        for (size_t i = 0; i < row_stride; i += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(row + i + kPrefetchBytes), _MM_HINT_T0);
            const __m512i w = _mm512_xor_si512(load(row + i), bias);
            for (int t = 0; t < T; ++t) sum[t] = _mm512_dpbusd_epi32(sum[t], w, load(tokens + x.stride * t + i));
        }
        for (int t = 0; t < T; ++t)
            scores[scores_stride * (first_token + t) + r] =
                static_cast<float>(_mm512_reduce_add_epi32(_mm512_sub_epi32(sum[t], excess[t]))) *
                (row_scales[r] * x.scales[first_token + t]);
    }
}

}  // namespace

void head_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int row_begin, int row_end,
               const QuantizedRows& x, int n_tokens, float* scores, size_t scores_stride) {
    for (int begin = row_begin; begin < row_end; begin += kRowGroup) {
        const int end = begin + kRowGroup < row_end ? begin + kRowGroup : row_end;
        for (int t = 0, n = 0; t < n_tokens; t += n) {
            n = n_tokens - t >= 8 ? 8 : n_tokens - t >= 4 ? 4 : n_tokens - t >= 2 ? 2 : 1;
            if (n == 8) score_rows<8>(rows, row_stride, row_scales, begin, end, x, t, scores, scores_stride);
            if (n == 4) score_rows<4>(rows, row_stride, row_scales, begin, end, x, t, scores, scores_stride);
            if (n == 2) score_rows<2>(rows, row_stride, row_scales, begin, end, x, t, scores, scores_stride);
            if (n == 1) score_rows<1>(rows, row_stride, row_scales, begin, end, x, t, scores, scores_stride);
        }
    }
}

}  // namespace bitnet::avx512

#endif
