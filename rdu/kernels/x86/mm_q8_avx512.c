/* y = W x with int8 activations on AVX-512 VNNI for 4 and more tokens: 16 rows (two groups) in the
 * lanes of one register, vpdpbusd of unsigned weights with four activation bytes broadcast. A run's
 * weights are unpacked once for a tile of tokens whose accumulators stay in registers. Fewer tokens
 * go to mv_q8_avx512.c. */
#include "rdu/kernels/x86/mm_q8_record.h"
#include "rdu/kernels/x86/unpack_avx512.h"

#define TOKENS_MAX 16
#define TOKENS_MIN 4 /* fewer are faster group by group */

X86_INLINE int32_t load_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

X86_INLINE __m512i dot_units(__m512i sum, const __m512i *w, const int8_t *x, unsigned units)
{
    X86_UNROLL
    for (unsigned j = 0; j < units; j++)
        sum = _mm512_dpbusd_epi32(sum, w[j], _mm512_set1_epi32(load_i32(x + 4 * j)));
    return sum;
}

/* I of rule 6; I = sc0 * I0 + sc1 * I1 in f32, where every term stays below 2^24: exact. */
X86_INLINE __m512 integer_sum(enum rdu_type type, const struct weights *w, const struct record *x)
{
    const bool offset = rdu_offset(type) != 0;
    __m512i lo = offset ? _mm512_set1_epi32(x->start[0]) : _mm512_setzero_si512();
    if (!rdu_has_half_scales(type))
        return _mm512_cvtepi32_ps(dot_units(lo, w->q, x->q, 8));
    __m512i hi = offset ? _mm512_set1_epi32(x->start[1]) : _mm512_setzero_si512();
    lo = dot_units(lo, w->q, x->q, 4);
    hi = dot_units(hi, w->q + 4, x->q + 16, 4);
    return _mm512_fmadd_ps(w->sc[1], _mm512_cvtepi32_ps(hi),
                           _mm512_mul_ps(w->sc[0], _mm512_cvtepi32_ps(lo)));
}

/* acc of one token after one run. */
X86_INLINE __m512 token_run(enum rdu_type type, const struct weights *w, const struct record *x,
                            __m512 acc)
{
    __m512 d = _mm512_mul_ps(w->d, _mm512_set1_ps(x->d));
    acc = _mm512_fmadd_ps(d, integer_sum(type, w, x), acc);
    if (type == RDU_Q2_K) {
        X86_UNROLL
        for (unsigned i = 0; i < 2; i++)
            acc = _mm512_fmadd_ps(w->m[i], _mm512_set1_ps(x->d * (float)x->start[i]), acc);
    } else if (rdu_has_min(type)) {
        acc = _mm512_fmadd_ps(w->m[0], _mm512_set1_ps(x->s), acc);
    }
    return acc;
}

X86_INLINE void store_rows(__m512 acc, float *y, bool add, bool both)
{
    __mmask16 rows = both ? 0xffff : 0x00ff;
    if (add)
        acc = _mm512_add_ps(_mm512_maskz_loadu_ps(rows, y), acc);
    _mm512_mask_storeu_ps(y, rows, acc);
}

/* Two groups and their records: what a tile reads. */
struct pair {
    const uint8_t *a, *b; /* b == a if there is only one group left */
    size_t group_bytes;
    unsigned runs;
    bool prefetch; /* the pair that follows a's and b's memory */
};

/* Two streams that change every few pages are more than hardware prefetch follows. So while a pair
 * is at work, the next one is fetched into L2, in the order of memory. From memory, 1536 columns,
 * Q4_1: 4 tokens 13 -> 23 GB/s, 8 tokens 8.9 -> 11.9 (the speed from L2), 16 tokens 5.4 -> 6.0. */
X86_INLINE void prefetch_next(const struct pair *p, unsigned run, size_t run_bytes)
{
    const uint8_t *next = p->a + 2 * p->group_bytes + 2 * run_bytes * run;
    X86_UNROLL
    for (size_t i = 0; i < 2 * run_bytes; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T1);
}

/* A pair of groups times T tokens; y is the pair's place in the first token's row. */
X86_INLINE void tile(enum rdu_type type, const unsigned T, const struct pair *p, bool prefetch,
                     const struct record *x, float *y, size_t y_stride, bool add)
{
    const unsigned runs_per_block = rdu_block_elems(type) / RDU_RUN;
    const size_t block_bytes = rdu_packed_block_bytes(type);
    const bool both = p->a != p->b;
    __m512 acc[TOKENS_MAX];
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        acc[t] = _mm512_setzero_ps();
    for (unsigned i = 0; i < p->runs / runs_per_block; i++) {
        struct block b;
        open_block(type, p->a + i * block_bytes, p->b + i * block_bytes, &b);
        for (unsigned run = 0; run < runs_per_block; run++, x += T) {
            struct weights w;
            unpack(type, &b, run, &w);
            if (prefetch)
                prefetch_next(p, i * runs_per_block + run, block_bytes / runs_per_block);
            X86_UNROLL
            for (unsigned t = 0; t < T; t++)
                acc[t] = token_run(type, &w, x + t, acc[t]);
        }
    }
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        store_rows(acc[t], y + t * y_stride, add, both);
}

X86_INLINE void pair_times_tokens(enum rdu_type type, const struct pair *p,
                                  const struct record *records, uint32_t tokens, float *y,
                                  size_t y_stride, bool add)
{
    for (uint32_t t = 0, n; t < tokens; t += n) {
        const struct record *x = records + (size_t)t * p->runs;
        float *at = y + t * y_stride;
        bool prefetch = t == 0 && p->prefetch;
        n = tile_tokens(tokens - t, TOKENS_MAX);
        switch (n) {
        case 16:
            tile(type, 16, p, prefetch, x, at, y_stride, add);
            break;
        case 8:
            tile(type, 8, p, prefetch, x, at, y_stride, add);
            break;
        case 4:
            tile(type, 4, p, prefetch, x, at, y_stride, add);
            break;
        case 2:
            tile(type, 2, p, prefetch, x, at, y_stride, add);
            break;
        default:
            tile(type, 1, p, prefetch, x, at, y_stride, add);
            break;
        }
    }
}

X86_INLINE void mm_q8(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                      uint32_t group_to, const struct rdu_q8 *x, uint32_t n_tokens, float *y,
                      size_t y_stride, bool add)
{
    if (n_tokens < TOKENS_MIN) {
        rdu_x86_mv_q8_avx512(type)(w, cols, group_from, group_to, x, n_tokens, y, y_stride, add);
        return;
    }
    struct record records[RECORDS_MAX];
    struct pair p = {
        .group_bytes = (size_t)(cols / rdu_block_elems(type)) * rdu_packed_block_bytes(type),
        .runs = cols / RDU_RUN,
    };
    for (uint32_t t = 0, n; t < n_tokens; t += n) {
        n = pass_tokens(n_tokens - t, p.runs);
        make_pass_records(type, x, t, n, TOKENS_MAX, p.runs, records);
        for (uint32_t g = group_from; g < group_to; g += 2) {
            p.a = (const uint8_t *)w + g * p.group_bytes;
            p.b = g + 1 < group_to ? p.a + p.group_bytes : p.a;
            p.prefetch = g + 2 < group_to;
            pair_times_tokens(type, &p, records, n, y + t * y_stride + (size_t)g * RDU_GROUP,
                              y_stride, add);
        }
    }
}

#define DEFINE_MM(name, type)                                                                      \
    static void name(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,         \
                     const struct rdu_q8 *x, uint32_t n_tokens, float *y, size_t y_stride,         \
                     bool add)                                                                     \
    {                                                                                              \
        mm_q8(type, w, cols, group_from, group_to, x, n_tokens, y, y_stride, add);                 \
    }
DEFINE_MM(mm_q4_0, RDU_Q4_0)
DEFINE_MM(mm_q4_1, RDU_Q4_1)
DEFINE_MM(mm_q5_0, RDU_Q5_0)
DEFINE_MM(mm_q5_1, RDU_Q5_1)
DEFINE_MM(mm_q8_0, RDU_Q8_0)
DEFINE_MM(mm_q2_k, RDU_Q2_K)
DEFINE_MM(mm_q3_k, RDU_Q3_K)
DEFINE_MM(mm_q4_k, RDU_Q4_K)
DEFINE_MM(mm_q5_k, RDU_Q5_K)
DEFINE_MM(mm_q6_k, RDU_Q6_K)

void rdu_x86_mm_q8_avx512(struct rdu_kernels *k)
{
    k->mm_q8[RDU_Q4_0] = mm_q4_0;
    k->mm_q8[RDU_Q4_1] = mm_q4_1;
    k->mm_q8[RDU_Q5_0] = mm_q5_0;
    k->mm_q8[RDU_Q5_1] = mm_q5_1;
    k->mm_q8[RDU_Q8_0] = mm_q8_0;
    k->mm_q8[RDU_Q2_K] = mm_q2_k;
    k->mm_q8[RDU_Q3_K] = mm_q3_k;
    k->mm_q8[RDU_Q4_K] = mm_q4_k;
    k->mm_q8[RDU_Q5_K] = mm_q5_k;
    k->mm_q8[RDU_Q6_K] = mm_q6_k;
}
