// What the AVX2 files share: 32-lane reductions and the exponential, in registers of 8 floats.
// Internal linkage throughout: code compiled for AVX2 must not reach the rest of the program through the linker.
#pragma once

#include <immintrin.h>

#include "cpu/vector.h"

namespace bitnet::avx2 {

// The first `count` (1..8) lanes, as a mask for masked loads and stores.
static inline __m256i first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The 32 lanes of a reduction: register i holds lanes 8i .. 8i+7.
static inline float sum_lanes(const __m256 v[4]) {
    const __m256 v8 = _mm256_add_ps(_mm256_add_ps(v[0], v[1]), _mm256_add_ps(v[2], v[3]));
    const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_cvtss_f32(_mm_add_ss(v2, _mm_movehdup_ps(v2)));
}

static inline __m128 max_lanes(const __m256 v[4]) {
    const __m256 v8 = _mm256_max_ps(_mm256_max_ps(v[0], v[1]), _mm256_max_ps(v[2], v[3]));
    const __m128 v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    const __m128 v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
    return _mm_max_ss(v2, _mm_movehdup_ps(v2));
}

// scalar::exp, eight at a time.
static inline __m256 exp8(__m256 x) {
    const __m256 magic = _mm256_set1_ps(kRoundMagic);
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 y = _mm256_min_ps(_mm256_set1_ps(kExpHigh), x);  // in this order a NaN passes through
    const __m256 shifted = _mm256_fmadd_ps(y, _mm256_set1_ps(kLog2E), magic);
    const __m256 k = _mm256_sub_ps(shifted, magic);
    __m256 r = _mm256_fnmadd_ps(k, _mm256_set1_ps(kLn2High), y);
    r = _mm256_fnmadd_ps(k, _mm256_set1_ps(kLn2Low), r);
    __m256 p = _mm256_set1_ps(kExpPoly[4]);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPoly[3]));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPoly[2]));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPoly[1]));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpPoly[0]));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    const __m256 power = _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_castps_si256(one)));
    // Not less than kExpLow, or NaN: keep.
    const __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(kExpLow), _CMP_NLT_UQ);
    return _mm256_and_ps(keep, _mm256_mul_ps(p, power));
}

}  // namespace bitnet::avx2
