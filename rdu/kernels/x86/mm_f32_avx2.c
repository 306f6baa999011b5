/* y = W x with f32 activations on AVX2: one group per vector, 2 x 4 chains in flight. */
#include "rdu/kernels/x86/unpack_avx2.h"

#define VEC_GROUPS 1
#define TOKENS_MAX 4

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

X86_INLINE vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}

X86_INLINE vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

X86_INLINE void dequant_run(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                            float *out, size_t stride)
{
    (void)b;
    struct block packed;
    struct weights w;
    open_block(type, a, &packed);
    unpack(type, &packed, run, &w);
    const __m256i offset = _mm256_set1_epi32(rdu_offset(type));
    __m256 scale[2] = {w.d, w.d};
    if (rdu_has_half_scales(type)) {
        scale[0] = _mm256_mul_ps(w.d, w.sc[0]);
        scale[1] = _mm256_mul_ps(w.d, w.sc[1]);
    }
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        X86_UNROLL
        for (unsigned k = 0; k < 4; k++) {
            __m256i i = _mm256_and_si256(_mm256_srli_epi32(w.q[j], (int)(8 * k)), _mm256_set1_epi32(255));
            __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(i, offset));
            v = _mm256_mul_ps(scale[j / 4], v);
            if (rdu_has_min(type))
                v = _mm256_add_ps(v, type == RDU_Q2_K ? w.m[j / 4] : w.m[0]);
            _mm256_storeu_ps(out + (4 * j + k) * stride, v);
        }
    }
}

#include "rdu/kernels/x86/mm_f32_tmpl.h"

void rdu_x86_mm_f32_avx2(struct rdu_kernels *k)
{
    fill_table(k);
}
