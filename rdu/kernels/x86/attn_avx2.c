/* Attention on AVX2: 8 positions or dimensions per vector. */
#include "rdu/kernels/x86/vmath_avx2.h"

#include <math.h>
#include <string.h>

#define VEC 8
#define ROWS_MAX 6
#define BLOCKS_MAX 2
#define VALUE_VECS_MAX 8

/* Between 8 and 12 chains in flight, which 16 registers hold. */
X86_INLINE unsigned score_vecs(const unsigned rows)
{
    return rows <= 3 ? 4 : 2;
}

X86_INLINE unsigned score_blocks(const unsigned rows)
{
    return rows == 1 ? 2 : 1;
}

X86_INLINE unsigned value_vecs(const unsigned rows)
{
    return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
}

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
    __m256i lane =
        _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)base));
    __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)from), lane);
    __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)to), lane);
    return _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(_mm256_andnot_si256(before, inside)));
}

/* Q8_0: without its scale. */
X86_INLINE vec load_kv(enum rdu_kv_type type, const uint8_t *p)
{
    if (type == RDU_KV_Q8_0)
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
    return type == RDU_KV_F32 ? _mm256_loadu_ps((const float *)p)
                              : _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
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
    _mm256_storeu_ps(x, exp_ps(_mm256_loadu_ps(x)));
    _mm_storeu_ps(x + 8,
                  _mm256_castps256_ps128(exp_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 8)))));
}

/* Lanes j and j + 8 of sum16 come together here. */
X86_INLINE vec vec_fold(const vec *p)
{
    return _mm256_add_ps(_mm256_add_ps(p[0], p[2]), _mm256_add_ps(p[1], p[3]));
}

X86_INLINE vec combine(bool max, vec a, vec b)
{
    return max ? _mm256_max_ps(a, b) : _mm256_add_ps(a, b);
}

/* Lane j with j + 4, then j + 2, then j + 1, of 6 rows at once; what is added to 8 rows is
 * repeated. */
X86_INLINE void reduce_rows(bool max, const vec *v, float *ret)
{
    vec u[4], w[2];
    X86_UNROLL
    for (unsigned i = 0; i < 3; i++) /* halves: row 2 i, row 2 i + 1 */
        u[i] = combine(max, _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x20),
                       _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x31));
    u[3] = u[2];
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++)
        w[i] = combine(max, _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44),
                       _mm256_shuffle_ps(u[2 * i], u[2 * i + 1], 0xee));
    /* Per half: rows 0 2 4 6, and 1 3 5 7. */
    vec x = combine(max, _mm256_shuffle_ps(w[0], w[1], 0x88), _mm256_shuffle_ps(w[0], w[1], 0xdd));
    x = _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    float all[8];
    _mm256_storeu_ps(all, x);
    memcpy(ret, all, ROWS_MAX * sizeof *ret);
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

static void attn_f16(const struct rdu_attn_args *a)
{
    attn(RDU_KV_F16, a, 1);
}

static void attn_f32(const struct rdu_attn_args *a)
{
    attn(RDU_KV_F32, a, 1);
}

static void attn_q8_0(const struct rdu_attn_args *a)
{
    attn(RDU_KV_Q8_0, a, 1);
}

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
    k->attn[RDU_KV_Q8_0] = attn_q8_0;
    k->attn_tile[RDU_KV_F16] = attn_tile_f16;
    k->attn_tile[RDU_KV_F32] = attn_tile_f32;
    k->attn_tile[RDU_KV_Q8_0] = attn_tile_q8_0;
    k->kv_store[RDU_KV_F16] = kv_store_f16;
}
