/* y = W x with f32 activations on AVX-512: two groups per vector, 2 x 8 chains in flight. */
#include "rdu/kernels/x86/unpack_avx512.h"

#define VEC_GROUPS 2
#define TOKENS_MAX 8

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

X86_INLINE vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}

X86_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

X86_INLINE void dequant_run(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                            float *out, size_t stride)
{
    struct block packed;
    struct weights w;
    open_block(type, a, b, &packed);
    unpack(type, &packed, run, &w);
    const __m512i offset = _mm512_set1_epi32(rdu_offset(type));
    __m512 scale[2] = {w.d, w.d};
    if (rdu_has_half_scales(type)) {
        scale[0] = _mm512_mul_ps(w.d, w.sc[0]);
        scale[1] = _mm512_mul_ps(w.d, w.sc[1]);
    }
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        X86_UNROLL
        for (unsigned k = 0; k < 4; k++) {
            __m512i i = _mm512_and_si512(_mm512_srli_epi32(w.q[j], 8 * k), _mm512_set1_epi32(255));
            __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(i, offset));
            v = _mm512_mul_ps(scale[j / 4], v);
            if (rdu_has_min(type))
                v = _mm512_add_ps(v, type == RDU_Q2_K ? w.m[j / 4] : w.m[0]);
            _mm512_storeu_ps(out + (4 * j + k) * stride, v);
        }
    }
}

#include "rdu/kernels/x86/mm_f32_tmpl.h"

void rdu_x86_mm_f32_avx512(struct rdu_kernels *k)
{
    fill_table(k);
}
