/* Single-row operations on AVX2. Tails go through a masked load and store of one vector. */
#include "rdu/kernels/x86/vmath_avx2.h"

#include "rdu/kernels/pack.h"

#include <math.h>

/* All bits set in the first n lanes. */
X86_INLINE __m256i first_lanes(uint32_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

/* Lanes at and past n read as zero and are not written. */
X86_INLINE __m256 load(const float *p, uint32_t n)
{
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes(n));
}

X86_INLINE void store(float *p, __m256 v, uint32_t n)
{
    if (n >= 8)
        _mm256_storeu_ps(p, v);
    else
        _mm256_maskstore_ps(p, first_lanes(n), v);
}

/* The tree of rule 1 from lane j + 4 on. */
X86_INLINE float reduce(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static float sum16_squares(const float *x, uint32_t n)
{
    __m256 lo = _mm256_setzero_ps(), hi = _mm256_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        __m256 a = load(x + i, n - i);
        lo = _mm256_fmadd_ps(a, a, lo);
        if (n - i > 8) {
            __m256 b = load(x + i + 8, n - i - 8);
            hi = _mm256_fmadd_ps(b, b, hi);
        }
    }
    return reduce(_mm256_add_ps(lo, hi));
}

static void rms_norm(const float *x, const float *w, float eps, uint32_t n, float *y)
{
    __m256 r = _mm256_set1_ps(1.0f / sqrtf(sum16_squares(x, n) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_mul_ps(load(x + i, n - i), r);
        store(y + i, _mm256_mul_ps(v, load(w + i, n - i)), n - i);
    }
}

X86_INLINE float max_lane(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* |x * inverse| stays below 127.5, so rounding needs no clamp; NaN (also 0 * infinity) becomes 0.
 */
X86_INLINE __m256i to_int(__m256 x, __m256 inverse)
{
    __m256 v = _mm256_mul_ps(x, inverse);
    __m256i is_number = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_ORD_Q));
    return _mm256_and_si256(_mm256_cvtps_epi32(v), is_number);
}

static void quantize_block(const __m256 *x, int8_t *q, float *ret_d, float *ret_s)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f);
    __m256 max = _mm256_setzero_ps();
    for (unsigned i = 0; i < 4; i++) /* NaN: the second operand */
        max = _mm256_max_ps(_mm256_andnot_ps(sign_bit, x[i]), max);
    float amax = max_lane(max);
    if (amax < 0x1p-119f) {
        _mm256_storeu_si256((__m256i *)q, _mm256_setzero_si256());
        *ret_d = *ret_s = 0.0f;
        return;
    }
    float d = amax / 127.0f;
    __m256 inverse = _mm256_set1_ps(1.0f / d);
    __m256i a = to_int(x[0], inverse), b = to_int(x[1], inverse), c = to_int(x[2], inverse),
            e = to_int(x[3], inverse);
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, e));
    /* The packs interleave 128-bit lanes; the permutation undoes both. */
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, e));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)q, bytes);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    *ret_d = d;
    *ret_s = d * (float)_mm_cvtsi128_si32(s);
}

static void quantize(const float *x, uint32_t n, int8_t *q, float *d, float *s)
{
    for (uint32_t i = 0; i < n; i += RDU_RUN) {
        __m256 v[4];
        for (uint32_t k = 0; k < 4; k++)
            v[k] = n - i > 8 * k ? load(x + i + 8 * k, n - i - 8 * k) : _mm256_setzero_ps();
        quantize_block(v, q + i, d + i / RDU_RUN, s + i / RDU_RUN);
    }
}

static void silu_mul(const float *gate, const float *up, uint32_t n, float *y)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign_bit = _mm256_set1_ps(-0.0f);
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 g = load(gate + i, n - i);
        __m256 e = _mm256_add_ps(one, exp_ps(_mm256_xor_ps(g, sign_bit)));
        store(y + i, _mm256_mul_ps(_mm256_div_ps(g, e), load(up + i, n - i)), n - i);
    }
}

static void gelu_mul(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 g = load(gate + i, n - i);
        __m256 cube =
            _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.044715f), g), g), g);
        __m256 t = tanh_ps(_mm256_mul_ps(_mm256_set1_ps(0.7978845608f), _mm256_add_ps(g, cube)));
        __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.5f), g),
                                 _mm256_add_ps(_mm256_set1_ps(1.0f), t));
        store(y + i, _mm256_mul_ps(v, load(up + i, n - i)), n - i);
    }
}

static void gelu(const float *x, uint32_t n, float *y)
{
    const __m256 one = _mm256_set1_ps(1.0f), sign_bit = _mm256_set1_ps(-0.0f);
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 v = load(x + i, n - i);
        __m256 z = _mm256_mul_ps(_mm256_andnot_ps(sign_bit, v), _mm256_set1_ps(RDU_ERF_HALF_ROOT));
        __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(_mm256_set1_ps(RDU_ERF_P), z, one));
        __m256 p = _mm256_set1_ps(RDU_ERF_A5);
        p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(RDU_ERF_A4));
        p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(RDU_ERF_A3));
        p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(RDU_ERF_A2));
        p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(RDU_ERF_A1));
        p = _mm256_mul_ps(p, t);
        __m256 e = exp_ps(_mm256_xor_ps(_mm256_mul_ps(z, z), sign_bit));
        e = _mm256_sub_ps(one, _mm256_mul_ps(p, e));
        __m256 below = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ);
        e = _mm256_xor_ps(e, _mm256_and_ps(below, sign_bit));
        v = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.5f), v), _mm256_add_ps(one, e));
        store(y + i, v, n - i);
    }
}

static void center(const float *x, uint32_t n, float *y)
{
    __m256 lo = _mm256_setzero_ps(), hi = _mm256_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        lo = _mm256_add_ps(lo, load(x + i, n - i));
        if (n - i > 8)
            hi = _mm256_add_ps(hi, load(x + i + 8, n - i - 8));
    }
    __m256 mean = _mm256_set1_ps(reduce(_mm256_add_ps(lo, hi)) / (float)n);
    for (uint32_t i = 0; i < n; i += 8)
        store(y + i, _mm256_sub_ps(load(x + i, n - i), mean), n - i);
}

static void add(const float *a, const float *b, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += 8)
        store(y + i, _mm256_add_ps(load(a + i, n - i), load(b + i, n - i)), n - i);
}

static void axpy(float a, const float *x, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += 8)
        store(y + i, _mm256_fmadd_ps(_mm256_set1_ps(a), load(x + i, n - i), load(y + i, n - i)),
              n - i);
}

static void scale(const float *x, float factor, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += 8)
        store(y + i, _mm256_mul_ps(load(x + i, n - i), _mm256_set1_ps(factor)), n - i);
}

static void softcap(const float *x, float cap, uint32_t n, float *y)
{
    const __m256 c = _mm256_set1_ps(cap);
    for (uint32_t i = 0; i < n; i += 8)
        store(y + i, _mm256_mul_ps(c, tanh_ps(_mm256_div_ps(load(x + i, n - i), c))), n - i);
}

static void rope_halves(float *x, const float *c, const float *s, uint32_t half)
{
    for (uint32_t i = 0; i < half; i += 8) {
        uint32_t n = half - i;
        __m256 a = load(x + i, n), b = load(x + half + i, n), cos = load(c + i, n),
               sin = load(s + i, n);
        __m256 bs = _mm256_xor_ps(_mm256_mul_ps(b, sin), _mm256_set1_ps(-0.0f));
        store(x + i, _mm256_fmadd_ps(a, cos, bs), n);
        store(x + half + i, _mm256_fmadd_ps(a, sin, _mm256_mul_ps(b, cos)), n);
    }
}

/* Four pairs a vector: even lanes a' = fma(a, c, b * -s), odd lanes b' = fma(a, s, b * c). */
static void rope_pairs(float *x, const float *c, const float *s, uint32_t half)
{
    const __m128i lane = _mm_setr_epi32(0, 1, 2, 3);
    for (uint32_t i = 0; i < half; i += 4) {
        uint32_t n = half - i;
        __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32((int)BASE_MIN(n, 4u)), lane);
        __m128 cos = _mm_maskload_ps(c + i, mask), sin = _mm_maskload_ps(s + i, mask);
        __m128 minus = _mm_xor_ps(sin, _mm_set1_ps(-0.0f));
        __m256 p = _mm256_set_m128(_mm_unpackhi_ps(cos, sin), _mm_unpacklo_ps(cos, sin));
        __m256 q = _mm256_set_m128(_mm_unpackhi_ps(minus, cos), _mm_unpacklo_ps(minus, cos));
        __m256 v = load(x + 2 * i, 2 * n);
        __m256 bq = _mm256_mul_ps(_mm256_movehdup_ps(v), q);
        store(x + 2 * i, _mm256_fmadd_ps(_mm256_moveldup_ps(v), p, bq), 2 * n);
    }
}

static void rope(float *x, const float *c, const float *s, uint32_t heads, uint32_t head_dim,
                 uint32_t rot, enum rdu_rope style)
{
    for (uint32_t h = 0; h < heads; h++, x += head_dim) {
        if (style == RDU_ROPE_PAIRS)
            rope_pairs(x, c, s, rot / 2);
        else
            rope_halves(x, c, s, rot / 2);
    }
}

/* Two passes: the maximum, then its first place. Both stream at load speed. */
static void argmax(const float *x, uint32_t n, uint32_t *ret_idx, float *ret_max)
{
    const __m256 low = _mm256_set1_ps(-INFINITY);
    __m256 m[4] = {low, low, low, low};
    uint32_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (unsigned k = 0; k < 4; k++) /* NaN: the second operand */
            m[k] = _mm256_max_ps(_mm256_loadu_ps(x + i + 8 * k), m[k]);
    for (; i < n; i++)
        m[0] = _mm256_max_ps(_mm256_set1_ps(x[i]), m[0]);
    __m256 max = _mm256_set1_ps(
        max_lane(_mm256_max_ps(_mm256_max_ps(m[0], m[1]), _mm256_max_ps(m[2], m[3]))));
    uint32_t best = 0;
    for (i = 0; i < n; i += 8) {
        __m256 equal = _mm256_cmp_ps(load(x + i, n - i), max, _CMP_EQ_OQ);
        unsigned found = (unsigned)_mm256_movemask_ps(equal);
        if (n - i < 8)
            found &= (1u << (n - i)) - 1;
        if (found != 0) {
            best = i + (uint32_t)__builtin_ctz(found);
            break;
        }
    }
    *ret_idx = best;
    *ret_max = x[best];
}

void rdu_x86_rows_avx2(struct rdu_kernels *k)
{
    k->rms_norm = rms_norm;
    k->quantize = quantize;
    k->silu_mul = silu_mul;
    k->gelu_mul = gelu_mul;
    k->gelu = gelu;
    k->center = center;
    k->add = add;
    k->axpy = axpy;
    k->scale = scale;
    k->softcap = softcap;
    k->rope = rope;
    k->argmax = argmax;
}
