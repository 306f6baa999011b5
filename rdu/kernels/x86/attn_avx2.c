/* Attention on AVX2: 8 positions or dimensions per vector, up to 3 heads in one pass. */
#include "rdu/kernels/x86/vmath_avx2.h"

#include <math.h>

#define VEC 8
#define HEADS_MAX 3
#define DIMS 4

typedef __m256 vec;

X86_INLINE vec vec_zero(void)
{
    return _mm256_setzero_ps();
}

X86_INLINE vec vec_set1(float x)
{
    return _mm256_set1_ps(x);
}

X86_INLINE vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

X86_INLINE void vec_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

X86_INLINE vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}

X86_INLINE vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}

X86_INLINE vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}

X86_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

X86_INLINE vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

X86_INLINE vec vec_visible(vec v, vec fill, unsigned base, uint32_t from, uint32_t to)
{
    __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                    _mm256_set1_epi32((int)base));
    __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)from), lane);
    __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)to), lane);
    return _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(_mm256_andnot_si256(before, inside)));
}

X86_INLINE vec load_kv(enum rdu_kv_type type, const uint8_t *p)
{
    return type == RDU_KV_F32 ? _mm256_loadu_ps((const float *)p)
                              : _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

X86_INLINE float max_lane(vec v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* sum16 of 32 slots. */
X86_INLINE float sum_slots(const vec *p)
{
    vec lanes = _mm256_add_ps(_mm256_add_ps(p[0], p[2]), _mm256_add_ps(p[1], p[3]));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#include "rdu/kernels/x86/attn_tmpl.h"

static void kv_store_f16(void *block, uint32_t slot, uint32_t head_dim, const float *k,
                         const float *v)
{
    uint16_t *keys = block, *values_out = keys + (size_t)head_dim * RDU_KV_BLOCK;
    uint32_t d = 0;
    for (; d + 8 <= head_dim; d += 8) {
        uint16_t h[8];
        _mm_storeu_si128((__m128i *)h, _mm256_cvtps_ph(_mm256_loadu_ps(k + d), 0));
        for (unsigned i = 0; i < 8; i++)
            keys[(size_t)(d + i) * RDU_KV_BLOCK + slot] = h[i];
        _mm_storeu_si128((__m128i *)(values_out + (size_t)slot * head_dim + d),
                         _mm256_cvtps_ph(_mm256_loadu_ps(v + d), 0));
    }
    for (; d < head_dim; d++) {
        keys[(size_t)d * RDU_KV_BLOCK + slot] = (uint16_t)_cvtss_sh(k[d], 0);
        values_out[(size_t)slot * head_dim + d] = (uint16_t)_cvtss_sh(v[d], 0);
    }
}

void rdu_x86_attn_avx2(struct rdu_kernels *k)
{
    k->attn[RDU_KV_F16] = attn_f16;
    k->attn[RDU_KV_F32] = attn_f32;
    k->kv_store[RDU_KV_F16] = kv_store_f16;
}
