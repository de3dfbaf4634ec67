// AVX2 kernels on float rows and on the output head; attention has its own file. Bit-identical to vector_scalar.cpp.
// Compiled with -mavx2 -mfma -mf16c: nothing here may become a symbol that code for older processors could link to.
#include "cpu/vector.h"

#if defined(__x86_64__) || defined(_M_X64)

#include <cstring>

#include "cpu/vector_avx2.h"

namespace bitnet::avx2 {
namespace {

constexpr int kInfinityBits = 0x7f800000;

float nan() {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_set1_epi32(0x7fc00000)));
}

// How the weights of a dot product are stored: eight of them as floats, from any address.
struct F32 {
    using Element = float;
    static __m256 load8(const Element* p) { return _mm256_loadu_ps(p); }
};

struct F16 {
    using Element = uint16_t;
    static __m256 load8(const Element* p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
};

struct Bf16 {
    using Element = uint16_t;
    static __m256 load8(const Element* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
};

template <typename Format>
void dot_step(const typename Format::Element* w, const float* x, __m256 lanes[4]) {
    for (int i = 0; i < 4; ++i)
        lanes[i] = _mm256_fmadd_ps(Format::load8(w + 8 * i), _mm256_loadu_ps(x + 8 * i), lanes[i]);
}

template <typename Format>
float dot(const typename Format::Element* w, const float* x, int n) {
    using Element = typename Format::Element;
    __m256 lanes[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) dot_step<Format>(w + i, x + i, lanes);
    if (i < n) {
        Element w_tail[kLanes] = {};
        float x_tail[kLanes] = {};
        std::memcpy(w_tail, reinterpret_cast<const char*>(w + i), sizeof(Element) * (n - i));
        std::memcpy(x_tail, x + i, sizeof(float) * (n - i));
        dot_step<Format>(w_tail, x_tail, lanes);
    }
    return sum_lanes(lanes);
}

// y[i] = f(a[i], b[i]); y may be a or b.
template <typename Function>
void map(const float* a, const float* b, int n, float* y, Function f) {
    int i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, f(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
    if (i < n) {
        const __m256i mask = first_lanes(n - i);
        _mm256_maskstore_ps(y + i, mask, f(_mm256_maskload_ps(a + i, mask), _mm256_maskload_ps(b + i, mask)));
    }
}

// Eight floats of x from i on, zero beyond n.
__m256 load_within(const float* x, int i, int n) {
    if (i + 8 <= n) return _mm256_loadu_ps(x + i);
    if (i >= n) return _mm256_setzero_ps();
    return _mm256_maskload_ps(x + i, first_lanes(n - i));
}

int sum_lanes_i32(__m256i v8) {
    const __m128i v4 = _mm_add_epi32(_mm256_castsi256_si128(v8), _mm256_extracti128_si256(v8, 1));
    const __m128i v2 = _mm_add_epi32(v4, _mm_shuffle_epi32(v4, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v2, _mm_shuffle_epi32(v2, 0xb1)));
}

// Bits of max |x|: as integers they order like the floats, with infinity and NaN above all others.
int abs_max_bits(const float* x, int n) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i most[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int i = 0; i < n; i += kLanes)
        for (int j = 0; j < 4; ++j) {
            const __m256i bits = _mm256_castps_si256(load_within(x, i + 8 * j, n));
            most[j] = _mm256_max_epi32(most[j], _mm256_and_si256(bits, magnitude));
        }
    const __m256i v8 = _mm256_max_epi32(_mm256_max_epi32(most[0], most[1]), _mm256_max_epi32(most[2], most[3]));
    const __m128i v4 = _mm_max_epi32(_mm256_castsi256_si128(v8), _mm256_extracti128_si256(v8, 1));
    const __m128i v2 = _mm_max_epi32(v4, _mm_shuffle_epi32(v4, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(v2, _mm_shuffle_epi32(v2, 0xb1)));
}

}  // namespace

void quantize_row(const float* x, int n, size_t stride, int8_t* values, float* scale, int32_t* sum) {
    const int max_bits = abs_max_bits(x, n);
    if (max_bits >= kInfinityBits) {
        std::memset(values, 0, stride);
        *scale = nan();
        *sum = 0;
        return;
    }
    const float largest = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(max_bits)));
    const float abs_max = largest > kMinAbsMax ? largest : kMinAbsMax;
    const __m256 s = _mm256_set1_ps(127.0f / abs_max);
    *scale = abs_max / 127.0f;

    // The packs below work within 128-bit halves; this puts the groups of four values back in order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i total = _mm256_setzero_si256();
    int i = 0;
    for (; i < n; i += kLanes) {  // whole groups of 32: stride >= n rounded up to 64, and 0 * s is 0
        __m256i q[4];
        for (int j = 0; j < 4; ++j) {
            q[j] = _mm256_cvtps_epi32(_mm256_mul_ps(load_within(x, i + 8 * j, n), s));
            total = _mm256_add_epi32(total, q[j]);
        }
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i), _mm256_permutevar8x32_epi32(bytes, order));
    }
    std::memset(values + i, 0, stride - i);
    *sum = sum_lanes_i32(total);
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    const float sum = dot<F32>(x, x, n);
    const float mean = sum / static_cast<float>(n) + eps;
    const bool finite = sum <= 3.402823466e38f;
    const float inverse = finite ? 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean))) : nan();
    const __m256 factor = _mm256_set1_ps(inverse);
    map(x, weight, n, y, [factor](__m256 a, __m256 b) { return _mm256_mul_ps(_mm256_mul_ps(a, factor), b); });
}

void add(const float* x, int n, float* y) {
    map(y, x, n, y, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); });
}

void relu2_mul(const float* gate, const float* up, int n, float* y) {
    map(gate, up, n, y, [](__m256 g, __m256 u) {
        const __m256 positive = _mm256_max_ps(_mm256_setzero_ps(), g);  // in this order a NaN stays a NaN
        return _mm256_mul_ps(_mm256_mul_ps(positive, positive), u);
    });
}

void silu_mul(const float* gate, const float* up, int n, float* y) {
    map(gate, up, n, y, [](__m256 g, __m256 u) {
        const __m256 e = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
        return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), u);
    });
}

void gelu_mul(const float* gate, const float* up, int n, float* y) {
    map(gate, up, n, y, [](__m256 g, __m256 u) {
        const __m256 one = _mm256_set1_ps(1.0f);
        const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(g, g), _mm256_set1_ps(kGeluCubic), one);
        const __m256 e = exp8(_mm256_mul_ps(_mm256_mul_ps(g, _mm256_set1_ps(kGeluScale)), cubic));
        return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), u);
    });
}

void rope_neox(float* x, int n_heads, int head_dim, int n_rot, const float* cos, const float* sin) {
    const int half = n_rot / 2;
    for (int h = 0; h < n_heads; ++h) {
        float* a = x + static_cast<size_t>(h) * head_dim;
        float* b = a + half;
        for (int i = 0; i < half; i += 8) {
            const __m256i mask = first_lanes(half - i);
            const __m256 a_old = _mm256_maskload_ps(a + i, mask), b_old = _mm256_maskload_ps(b + i, mask);
            const __m256 c = _mm256_maskload_ps(cos + i, mask), s = _mm256_maskload_ps(sin + i, mask);
            _mm256_maskstore_ps(a + i, mask, _mm256_fmsub_ps(a_old, c, _mm256_mul_ps(b_old, s)));
            _mm256_maskstore_ps(b + i, mask, _mm256_fmadd_ps(a_old, s, _mm256_mul_ps(b_old, c)));
        }
    }
}

float dot_f32(const float* w, const float* x, int n) {
    return dot<F32>(w, x, n);
}

float dot_f16(const uint16_t* w, const float* x, int n) {
    return dot<F16>(w, x, n);
}

float dot_bf16(const uint16_t* w, const float* x, int n) {
    return dot<Bf16>(w, x, n);
}

// ---- output head ----------------------------------------------------------------------------------------------------

namespace {

// How far ahead of the row bytes in use to prefetch: the head is one linear stream from DRAM.
constexpr int kPrefetchBytes = 4096;
// Rows that one group of eight tokens visits before the next group does: 8 rows and 8 tokens of 2560 fit in L1.
constexpr int kRowGroup = 8;

// Scores of T tokens, from first_token on, against rows [begin, end). Exact: with |w| and x * sign(w) a pair of maddubs
// stays within 2 * 127 * 127 = 32258.
template <int T>
void score_rows(const int8_t* rows, size_t row_stride, const float* row_scales, int begin, int end,
                const QuantizedRows& x, int first_token, float* scores, size_t scores_stride) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t* tokens = x.values + x.stride * first_token;
    for (int r = begin; r < end; ++r) {
        const int8_t* row = rows + row_stride * r;
        __m256i sum[T];
        for (int t = 0; t < T; ++t) sum[t] = _mm256_setzero_si256();
        for (size_t i = 0; i < row_stride; i += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(row + i + kPrefetchBytes), _MM_HINT_T0);
            for (size_t j = i; j < i + 64; j += 32) {
                const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + j));
                const __m256i magnitude = _mm256_abs_epi8(w);
                for (int t = 0; t < T; ++t) {
                    const int8_t* values = tokens + x.stride * t + j;
                    const __m256i token = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
                    const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(token, w));
                    sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (int t = 0; t < T; ++t)
            scores[scores_stride * (first_token + t) + r] =
                static_cast<float>(sum_lanes_i32(sum[t])) * (row_scales[r] * x.scales[first_token + t]);
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

}  // namespace bitnet::avx2

#endif
