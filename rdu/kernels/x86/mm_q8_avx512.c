/* y = W x with int8 activations on AVX-512 VNNI: 16 rows (two groups) in the lanes of one register,
 * vpdpbusd of unsigned weights with four activation bytes broadcast from memory. A block's weights are
 * unpacked once for a tile of tokens whose accumulators stay in registers.
 *
 * vpdpbusd wants unsigned weights, so signed ones carry an offset (Q8_0 128, Q4_0 8, ...) and the sum
 * starts at -offset * sum(activations): the same exact integer. Those starts are computed once per
 * tile of tokens and call. */
#include "rdu/kernels/x86/x86.h"

#include "rdu/kernels/x86/unpack_avx512.h"

#define TOKENS_MAX 16
/* The activations of a tile, on the stack. */
#define RECORDS_BYTES (192 * 1024)

/* One token's run of 32 columns. A tile keeps them as [run][token]: one stream and one base register
 * whatever the strides, and no two tokens in the same cache set when rows are 4096 bytes long (that
 * alone cost 40 % of the speed at 4096 columns). */
struct record {
    int8_t q[RDU_RUN];
    float d, s;
    int32_t start[2]; /* of the whole run in [0], or of its halves */
};

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

struct call {
    const uint8_t *w;
    size_t group_bytes;
    unsigned runs;                /* per row */
    const struct record *records; /* [runs][tokens of the tile] */
    float *y;                     /* of the tile's first token */
    size_t y_stride;
    bool add;
};

/* acc of one token after one run. */
X86_INLINE __m512 token_run(enum rdu_type type, const struct weights *w, const struct record *x,
                            __m512 acc)
{
    __m512i sum;
    if (rdu_has_half_scales(type)) {
        const bool offset = rdu_offset(type) != 0;
        __m512i lo = offset ? _mm512_set1_epi32(x->start[0]) : _mm512_setzero_si512();
        __m512i hi = offset ? _mm512_set1_epi32(x->start[1]) : _mm512_setzero_si512();
        lo = _mm512_mullo_epi32(dot_units(lo, w->q, x->q, 4), w->sc[0]);
        hi = _mm512_mullo_epi32(dot_units(hi, w->q + 4, x->q + 16, 4), w->sc[1]);
        sum = _mm512_add_epi32(lo, hi);
    } else {
        sum = rdu_offset(type) ? _mm512_set1_epi32(x->start[0]) : _mm512_setzero_si512();
        sum = dot_units(sum, w->q, x->q, 8);
    }
    __m512 d = _mm512_mul_ps(w->d, _mm512_set1_ps(x->d));
    acc = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(sum), acc);
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

/* Hardware prefetch stops at every 4 KiB page, and with several tokens per block it is too far behind
 * to hide the next page's latency (measured at 4096 columns: Q8_0 219 -> 320 GOP/s). */
#define PREFETCH_BYTES 2048

X86_INLINE void prefetch(const uint8_t *p, size_t bytes)
{
    X86_UNROLL
    for (size_t i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)p + PREFETCH_BYTES + i, _MM_HINT_T0);
}

/* Groups g and g + 1 (or g alone) times T tokens. */
X86_INLINE void tile(enum rdu_type type, const unsigned T, const struct call *c, uint32_t g,
                     bool both)
{
    const unsigned runs_per_block = rdu_block_elems(type) / RDU_RUN;
    const size_t block_bytes = rdu_q8_packed_bytes(type);
    const uint8_t *a = c->w + g * c->group_bytes, *b = both ? a + c->group_bytes : a;
    const struct record *x = c->records;
    __m512 acc[TOKENS_MAX];
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        acc[t] = _mm512_setzero_ps();
    for (unsigned run = 0; run < c->runs; run++, x += T) {
        struct weights w;
        size_t at = run / runs_per_block * block_bytes;
        unpack(type, a + at, b + at, run % runs_per_block, &w);
        if (T >= 4) {
            size_t part = run % runs_per_block * (block_bytes / runs_per_block);
            prefetch(a + at + part, block_bytes / runs_per_block);
            prefetch(b + at + part, block_bytes / runs_per_block);
        }
        X86_UNROLL
        for (unsigned t = 0; t < T; t++)
            acc[t] = token_run(type, &w, x + t, acc[t]);
    }
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        store_rows(acc[t], c->y + t * c->y_stride + (size_t)g * RDU_GROUP, c->add, both);
}

/* -offset * sum of the activations of a run (of each half where scales are), or the plain sums where
 * the offset is 0. */
X86_INLINE void make_starts(enum rdu_type type, __m256i q, int32_t *start)
{
    const int factor = rdu_offset(type) ? -rdu_offset(type) : 1;
    __m256i v = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    v = _mm256_hadd_epi32(v, v);
    v = _mm256_hadd_epi32(v, v);
    int lo = _mm256_extract_epi32(v, 0), hi = _mm256_extract_epi32(v, 4);
    start[0] = (rdu_has_half_scales(type) ? lo : lo + hi) * factor;
    start[1] = hi * factor;
}

X86_INLINE void make_records(enum rdu_type type, const struct rdu_q8 *x, uint32_t token,
                             const unsigned T, unsigned runs, struct record *records)
{
    for (unsigned t = 0; t < T; t++) {
        const int8_t *q = x->q + (token + t) * x->q_stride;
        const float *d = x->d + (token + t) * x->b_stride, *s = x->s + (token + t) * x->b_stride;
        for (unsigned run = 0; run < runs; run++) {
            struct record *r = records + (size_t)run * T + t;
            __m256i v = _mm256_loadu_si256((const __m256i *)(q + (size_t)run * RDU_RUN));
            _mm256_storeu_si256((__m256i *)r->q, v);
            r->d = d[run];
            r->s = s[run];
            if (rdu_offset(type) || rdu_has_half_scales(type))
                make_starts(type, v, r->start);
        }
    }
}

X86_INLINE void tiles(enum rdu_type type, const unsigned T, struct call *c, const struct rdu_q8 *x,
                      uint32_t group_from, uint32_t group_to, uint32_t token,
                      struct record *records)
{
    make_records(type, x, token, T, c->runs, records);
    uint32_t g = group_from;
    for (; g + 2 <= group_to; g += 2)
        tile(type, T, c, g, true);
    if (g < group_to)
        tile(type, T, c, g, false);
}

X86_INLINE void mm_q8(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                      uint32_t group_to, const struct rdu_q8 *x, uint32_t n_tokens, float *y,
                      size_t y_stride, bool add)
{
    struct record records[RECORDS_BYTES / sizeof(struct record)];
    struct call c = {
        .w = w,
        .group_bytes = (size_t)(cols / rdu_block_elems(type)) * rdu_q8_packed_bytes(type),
        .runs = cols / RDU_RUN,
        .records = records,
        .y_stride = y_stride,
        .add = add,
    };
    uint32_t tile_max = TOKENS_MAX;
    while (tile_max > 1 && (size_t)tile_max * c.runs > BASE_COUNT(records))
        tile_max /= 2;
    for (uint32_t t = 0; t < n_tokens;) {
        uint32_t left = BASE_MIN(n_tokens - t, tile_max);
        c.y = y + t * y_stride;
        if (left >= 16) {
            tiles(type, 16, &c, x, group_from, group_to, t, records);
            t += 16;
        } else if (left >= 8) {
            tiles(type, 8, &c, x, group_from, group_to, t, records);
            t += 8;
        } else if (left >= 4) {
            tiles(type, 4, &c, x, group_from, group_to, t, records);
            t += 4;
        } else if (left >= 2) {
            tiles(type, 2, &c, x, group_from, group_to, t, records);
            t += 2;
        } else {
            tiles(type, 1, &c, x, group_from, group_to, t, records);
            t += 1;
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
