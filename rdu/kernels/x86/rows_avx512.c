/* Single-row operations on AVX-512: where exp or tanh dominates, and the norms and quantisation
 * that stand between linear kernels. The rest streams; AVX2 does that as fast. */
#include "rdu/kernels/x86/vmath_avx512.h"

#include "rdu/kernels/pack.h"

#include <math.h>

X86_INLINE __mmask16 first_lanes(uint32_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

X86_INLINE __m512 load(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}

X86_INLINE void store(float *p, __m512 v, uint32_t n)
{
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
}

/* Rule 1's tree. */
X86_INLINE float reduce(__m512 v)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static void rms_norm(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    __m512 acc = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 v = load(x + i, n - i);
        acc = _mm512_fmadd_ps(v, v, acc);
    }
    __m512 r = _mm512_set1_ps(1.0f / sqrtf(reduce(acc) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_mul_ps(load(x + i, n - i), r);
        store(y + i, _mm512_mul_ps(v, load(w + i, n - i)), n - i);
    }
}

X86_INLINE __m512i to_int(__m512 x, __m512 inverse)
{
    __m512 v = _mm512_mul_ps(x, inverse);
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
}

static void quantize(const float *x, uint32_t n, int8_t *q, float *d, float *s)
{
    for (uint32_t i = 0; i < n; i += RDU_RUN) {
        uint32_t left = n - i;
        __m512 a = load(x + i, left);
        __m512 b = left > 16 ? load(x + i + 16, left - 16) : _mm512_setzero_ps();
        /* NaN: the second operand */
        __m512 max =
            _mm512_max_ps(_mm512_abs_ps(b), _mm512_max_ps(_mm512_abs_ps(a), _mm512_setzero_ps()));
        float amax = _mm512_reduce_max_ps(max);
        float scale = amax < 0x1p-119f ? 0.0f : amax / 127.0f;
        /* A zero scale must give zeros, not infinity times zero. */
        __m512 inverse = _mm512_set1_ps(scale == 0.0f ? 0.0f : 1.0f / scale);
        __m512i qa = to_int(a, inverse), qb = to_int(b, inverse);
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(qa));
        _mm_storeu_si128((__m128i *)(q + i + 16), _mm512_cvtepi32_epi8(qb));
        d[i / RDU_RUN] = scale;
        s[i / RDU_RUN] = scale * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(qa, qb));
    }
}

static void silu_mul(const float *gate, const float *up, uint32_t n, float *y)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign_bit = _mm512_set1_ps(-0.0f);
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 g = load(gate + i, n - i);
        __m512 e = _mm512_add_ps(one, exp_ps(_mm512_xor_ps(g, sign_bit)));
        store(y + i, _mm512_mul_ps(_mm512_div_ps(g, e), load(up + i, n - i)), n - i);
    }
}

static void gelu_mul(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 g = load(gate + i, n - i);
        __m512 cube =
            _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.044715f), g), g), g);
        __m512 t = tanh_ps(_mm512_mul_ps(_mm512_set1_ps(0.7978845608f), _mm512_add_ps(g, cube)));
        __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), g),
                                 _mm512_add_ps(_mm512_set1_ps(1.0f), t));
        store(y + i, _mm512_mul_ps(v, load(up + i, n - i)), n - i);
    }
}

static void gelu(const float *x, uint32_t n, float *y)
{
    const __m512 one = _mm512_set1_ps(1.0f), sign_bit = _mm512_set1_ps(-0.0f);
    for (uint32_t i = 0; i < n; i += 16) {
        __m512 v = load(x + i, n - i);
        __m512 z = _mm512_mul_ps(_mm512_abs_ps(v), _mm512_set1_ps(RDU_ERF_HALF_ROOT));
        __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(RDU_ERF_P), z, one));
        __m512 p = _mm512_set1_ps(RDU_ERF_A5);
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(RDU_ERF_A4));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(RDU_ERF_A3));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(RDU_ERF_A2));
        p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(RDU_ERF_A1));
        p = _mm512_mul_ps(p, t);
        __m512 e = exp_ps(_mm512_xor_ps(_mm512_mul_ps(z, z), sign_bit));
        e = _mm512_sub_ps(one, _mm512_mul_ps(p, e));
        __mmask16 below = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_LT_OQ);
        e = _mm512_mask_xor_ps(e, below, e, sign_bit);
        v = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), v), _mm512_add_ps(one, e));
        store(y + i, v, n - i);
    }
}

static void softcap(const float *x, float cap, uint32_t n, float *y)
{
    const __m512 c = _mm512_set1_ps(cap);
    for (uint32_t i = 0; i < n; i += 16)
        store(y + i, _mm512_mul_ps(c, tanh_ps(_mm512_div_ps(load(x + i, n - i), c))), n - i);
}

void rdu_x86_rows_avx512(struct rdu_kernels *k)
{
    k->rms_norm = rms_norm;
    k->quantize = quantize;
    k->silu_mul = silu_mul;
    k->gelu_mul = gelu_mul;
    k->gelu = gelu;
    k->softcap = softcap;
}
