/* y = W x with f32 activations on AVX2: one group per vector, 2 x 4 chains in flight. */
#include "rdu/kernels/x86/unpack_avx2.h"

#define VEC_GROUPS 1
#define PANEL_TOKENS 4

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

/* One run of 32 columns: signed bytes, scales over 2^24, minima; of the halves. */
struct columns {
    __m256i q[8];
    vec scale[2], m[2];
};

X86_INLINE void open_columns(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                             struct columns *c)
{
    struct block packed;
    struct weights w;
    (void)b;
    open_block(type, a, &packed);
    unpack(type, &packed, run, &w);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        c->q[j] = rdu_offset(type)
                      ? _mm256_sub_epi8(w.q[j], _mm256_set1_epi8((char)rdu_offset(type)))
                      : w.q[j];
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) {
        vec d = rdu_has_half_scales(type) ? _mm256_mul_ps(w.d, w.sc[i]) : w.d;
        c->scale[i] = _mm256_mul_ps(d, vec_set1(0x1p-24f));
        if (rdu_has_min(type))
            c->m[i] = type == RDU_Q2_K ? w.m[i] : w.m[0];
    }
}

/* A byte moved to the top of its row's word is 2^24 times its value: the scale takes that back,
 * exactly, so no sign extension is needed. */
X86_INLINE vec column(enum rdu_type type, const struct columns *c, unsigned j, unsigned k)
{
    const __m256i low = _mm256_set1_epi32((int)(0x00808080u | k << 24));
    const __m256i row =
        _mm256_setr_epi32(0, 4 << 24, 8 << 24, 12 << 24, 0, 4 << 24, 8 << 24, 12 << 24);
    __m256i top = _mm256_shuffle_epi8(c->q[j], _mm256_add_epi32(low, row));
    vec v = _mm256_mul_ps(c->scale[j / 4], _mm256_cvtepi32_ps(top));
    return rdu_has_min(type) ? _mm256_add_ps(v, c->m[j / 4]) : v;
}

#include "rdu/kernels/x86/mm_f32_tmpl.h"

rdu_mm_f32_fn *rdu_x86_one_group_mm_f32(enum rdu_type type)
{
    return row_fns[type];
}

void rdu_x86_mm_f32_avx2(struct rdu_kernels *k)
{
    memcpy(k->mm_f32, row_fns, sizeof row_fns);
}
