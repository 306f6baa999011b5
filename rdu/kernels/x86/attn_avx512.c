/* Attention on AVX-512: 16 positions or dimensions per vector, up to 4 heads in one pass. */
#include "rdu/kernels/x86/vmath_avx512.h"

#include <math.h>

#define VEC 16
#define HEADS_MAX 4
#define DIMS 4

typedef __m512 vec;

X86_INLINE vec vec_zero(void)
{
    return _mm512_setzero_ps();
}

X86_INLINE vec vec_set1(float x)
{
    return _mm512_set1_ps(x);
}

X86_INLINE vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

X86_INLINE void vec_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

X86_INLINE vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}

X86_INLINE vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}

X86_INLINE vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}

X86_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

X86_INLINE vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

X86_INLINE vec vec_visible(vec v, vec fill, unsigned base, uint32_t from, uint32_t to)
{
    uint32_t below_to = to >= 32 ? 0xffffffffu : (1u << to) - 1;
    uint32_t visible = below_to & ~((1u << from) - 1); /* from < 32 */
    return _mm512_mask_blend_ps((__mmask16)(visible >> base), fill, v);
}

X86_INLINE vec load_kv(enum rdu_kv_type type, const uint8_t *p)
{
    return type == RDU_KV_F32 ? _mm512_loadu_ps(p)
                              : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

X86_INLINE float max_lane(vec v)
{
    return _mm512_reduce_max_ps(v);
}

/* sum16 of 32 slots. */
X86_INLINE float sum_slots(const vec *p)
{
    vec v = _mm512_add_ps(p[0], p[1]);
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#include "rdu/kernels/x86/attn_tmpl.h"

void rdu_x86_attn_avx512(struct rdu_kernels *k)
{
    k->attn[RDU_KV_F16] = attn_f16;
    k->attn[RDU_KV_F32] = attn_f32;
}
