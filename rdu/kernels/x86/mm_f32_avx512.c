/* y = W x with f32 activations on AVX-512: two groups per vector, 2 x 8 chains in flight. */
#include "rdu/kernels/x86/unpack_avx512.h"

#define VEC_GROUPS 2
#define PANEL_TOKENS 8

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

/* One run of 32 columns: signed bytes, scales over 2^24, minima; of the halves. */
struct columns {
    __m512i q[8];
    vec scale[2], m[2];
};

X86_INLINE void open_columns(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                             struct columns *c)
{
    struct block packed;
    struct weights w;
    open_block(type, a, b, &packed);
    unpack(type, &packed, run, &w);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        c->q[j] = rdu_offset(type)
                      ? _mm512_sub_epi8(w.q[j], _mm512_set1_epi8((char)rdu_offset(type)))
                      : w.q[j];
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) {
        vec d = rdu_has_half_scales(type) ? _mm512_mul_ps(w.d, w.sc[i]) : w.d;
        c->scale[i] = _mm512_mul_ps(d, vec_set1(0x1p-24f));
        if (rdu_has_min(type))
            c->m[i] = type == RDU_Q2_K ? w.m[i] : w.m[0];
    }
}

/* A byte moved to the top of its row's word is 2^24 times its value: the scale takes that back,
 * exactly, so no sign extension is needed. */
X86_INLINE vec column(enum rdu_type type, const struct columns *c, unsigned j, unsigned k)
{
    const __m512i low = _mm512_set1_epi32((int)(0x00808080u | k << 24));
    const __m512i row = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4 << 24, 8 << 24, 12 << 24));
    __m512i top = _mm512_shuffle_epi8(c->q[j], _mm512_add_epi32(low, row));
    vec v = _mm512_mul_ps(c->scale[j / 4], _mm512_cvtepi32_ps(top));
    return rdu_has_min(type) ? _mm512_add_ps(v, c->m[j / 4]) : v;
}

#define FLOAT_FEW_TOKENS 15 /* vectors of two groups go over 8 tokens without a panel */

X86_INLINE vec vec_pair(__m256 a, __m256 b)
{
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

#include "rdu/kernels/x86/mm_f32_tmpl.h"

void rdu_x86_mm_f32_avx512(struct rdu_kernels *k)
{
    memcpy(k->mm_f32, row_fns, sizeof row_fns);
}
