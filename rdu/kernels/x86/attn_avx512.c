/* Attention of several tokens on AVX-512: 16 positions or dimensions per vector. One token stays
 * with AVX2, whose shorter vectors keep more chains in flight (3 heads of 64: 76 against 70
 * GFLOP/s). */
#include "rdu/kernels/x86/vmath_avx512.h"

#include <math.h>
#include <string.h>

#define VEC 16
#define ROWS_MAX 8
#define BLOCKS_MAX 4
#define VALUE_VECS_MAX 4

X86_INLINE unsigned score_vecs(const unsigned rows)
{
    (void)rows;
    return 2;
}

/* At least 6 chains in flight. */
X86_INLINE unsigned score_blocks(const unsigned rows)
{
    return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

X86_INLINE unsigned value_vecs(const unsigned rows)
{
    return rows <= 6 ? 4 : 2;
}

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
    uint64_t below_to = (1ull << to) - 1, below_from = (1ull << BASE_MIN(from, 32u)) - 1;
    uint64_t visible = below_to & ~below_from;
    return _mm512_mask_blend_ps((__mmask16)(visible >> base), fill, v);
}

/* Q8_0: without its scale. */
X86_INLINE vec load_kv(enum rdu_kv_type type, const uint8_t *p)
{
    if (type == RDU_KV_Q8_0)
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
    return type == RDU_KV_F32 ? _mm512_loadu_ps(p)
                              : _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

X86_INLINE float load_one(enum rdu_kv_type type, const uint8_t *p)
{
    float f;
    if (type == RDU_KV_Q8_0)
        return *(const int8_t *)p;
    if (type == RDU_KV_F16)
        return _cvtsh_ss(*(const uint16_t *)(const void *)p);
    memcpy(&f, p, sizeof f);
    return f;
}

X86_INLINE void exp_pairs(float *x)
{
    _mm512_storeu_ps(x, exp_ps(_mm512_loadu_ps(x)));
}

X86_INLINE vec vec_fold(const vec *p)
{
    return _mm512_add_ps(p[0], p[1]);
}

X86_INLINE vec combine(bool max, vec a, vec b)
{
    return max ? _mm512_max_ps(a, b) : _mm512_add_ps(a, b);
}

/* Lane j with j + 8, then j + 4, j + 2, j + 1, of 8 rows at once. */
X86_INLINE void reduce_rows(bool max, const vec *v, float *ret)
{
    vec u[4], w[2];
    X86_UNROLL
    for (unsigned i = 0; i < 4; i++) /* halves: row 2 i, row 2 i + 1 */
        u[i] = combine(max, _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
                       _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) /* quarters: rows 4 i .. 4 i + 3 */
        w[i] = combine(max, _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x88),
                       _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xdd));
    vec x = combine(max, _mm512_shuffle_ps(w[0], w[1], 0x44), _mm512_shuffle_ps(w[0], w[1], 0xee));
    x = combine(max, x, _mm512_permute_ps(x, 0xb1));
    /* Quarter k: row k in its first lane, row k + 4 in its third. */
    x = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0),
                              x);
    _mm256_storeu_ps(ret, _mm512_castps512_ps256(x));
}

X86_INLINE void max_lanes(const vec *v, float *ret)
{
    reduce_rows(true, v, ret);
}

X86_INLINE void sum_lanes(const vec *v, float *ret)
{
    reduce_rows(false, v, ret);
}

#include "rdu/kernels/x86/attn_tmpl.h"

void rdu_x86_attn_avx512(struct rdu_kernels *k)
{
    k->attn_tile[RDU_KV_F16] = attn_tile_f16;
    k->attn_tile[RDU_KV_F32] = attn_tile_f32;
    k->attn_tile[RDU_KV_Q8_0] = attn_tile_q8_0;
}
