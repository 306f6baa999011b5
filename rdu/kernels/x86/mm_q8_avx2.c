/* y = W x with int8 activations on AVX2: 8 rows (one group) in the lanes. vpmaddubsw multiplies
 * unsigned weights with four broadcast activation bytes and adds pairs into int16; several of these
 * fit int16 before they are widened (Q4: 8 pair sums, Q5: 4, Q6: 2). Q8_0 moves the weights' signs to
 * the activations instead. Integers with an offset are corrected by offset * sum(activations). */
#include "rdu/kernels/x86/x86.h"

#include "rdu/kernels/x86/unpack_avx2.h"

#define TOKENS_MAX 8
#define STARTS_MAX 16384

X86_INLINE __m256i broadcast(const int8_t *x)
{
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm256_set1_epi32(v);
}

X86_INLINE __m256i widen(__m256i pairs)
{
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/* Integer products of units [from, from + count); `fit` of them add up in int16. */
X86_INLINE __m256i dot_units(const struct weights *w, const int8_t *x, unsigned from, unsigned count,
                             unsigned fit)
{
    __m256i sum = _mm256_setzero_si256();
    X86_UNROLL
    for (unsigned j = from; j < from + count; j += fit) {
        __m256i pairs = _mm256_maddubs_epi16(w->q[j], broadcast(x + 4 * j));
        X86_UNROLL
        for (unsigned i = 1; i < fit; i++)
            pairs = _mm256_add_epi16(pairs,
                                     _mm256_maddubs_epi16(w->q[j + i], broadcast(x + 4 * (j + i))));
        sum = j == from ? widen(pairs) : _mm256_add_epi32(sum, widen(pairs));
    }
    return sum;
}

/* |w| times x with w's sign: at most 2 * 128 * 127 per pair, which fits int16 alone. */
X86_INLINE __m256i dot_signed(const struct weights *w, const int8_t *x)
{
    __m256i sum = _mm256_setzero_si256();
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m256i v = _mm256_sign_epi8(broadcast(x + 4 * j), w->q[j]);
        sum = _mm256_add_epi32(sum, widen(_mm256_maddubs_epi16(w->mag[j], v)));
    }
    return sum;
}

struct call {
    const uint8_t *w;
    size_t group_bytes;
    unsigned runs;
    const struct rdu_q8 *x;
    const int32_t *starts; /* [tokens of the tile, runs or 2 runs]: -offset * sum(x), or sum(x) */
    float *y;
    size_t y_stride;
    bool add;
};

/* I of rule 6. */
X86_INLINE __m256i integer_sum(enum rdu_type type, const struct weights *w, const int8_t *x,
                               const int32_t *starts)
{
    if (type == RDU_Q8_0)
        return dot_signed(w, x);
    if (rdu_has_half_scales(type)) {
        const unsigned fit = type == RDU_Q6_K ? 2 : 4;
        __m256i lo = dot_units(w, x, 0, 4, fit), hi = dot_units(w, x, 4, 4, fit);
        if (rdu_offset(type)) {
            lo = _mm256_add_epi32(lo, _mm256_set1_epi32(starts[0]));
            hi = _mm256_add_epi32(hi, _mm256_set1_epi32(starts[1]));
        }
        return _mm256_add_epi32(_mm256_mullo_epi32(lo, w->sc[0]), _mm256_mullo_epi32(hi, w->sc[1]));
    }
    const bool five = type == RDU_Q5_0 || type == RDU_Q5_1 || type == RDU_Q5_K;
    __m256i sum = dot_units(w, x, 0, 8, five ? 4 : 8);
    if (rdu_offset(type))
        sum = _mm256_add_epi32(sum, _mm256_set1_epi32(starts[0]));
    return sum;
}

X86_INLINE __m256 token_run(enum rdu_type type, const struct weights *w, const struct call *c,
                            uint32_t token, unsigned t, unsigned run, __m256 acc)
{
    const int8_t *x = c->x->q + token * c->x->q_stride + (size_t)run * RDU_RUN;
    size_t at = token * c->x->b_stride + run;
    const int32_t *starts =
        c->starts + ((size_t)t * c->runs + run) * (rdu_has_half_scales(type) ? 2 : 1);
    float d = c->x->d[at];
    __m256i sum = integer_sum(type, w, x, starts);
    acc = _mm256_fmadd_ps(_mm256_mul_ps(w->d, _mm256_set1_ps(d)), _mm256_cvtepi32_ps(sum), acc);
    if (type == RDU_Q2_K) {
        X86_UNROLL
        for (unsigned i = 0; i < 2; i++)
            acc = _mm256_fmadd_ps(w->m[i], _mm256_set1_ps(d * (float)starts[i]), acc);
    } else if (rdu_has_min(type)) {
        acc = _mm256_fmadd_ps(w->m[0], _mm256_set1_ps(c->x->s[at]), acc);
    }
    return acc;
}

/* Group g times T tokens. */
X86_INLINE void tile(enum rdu_type type, const unsigned T, const struct call *c, uint32_t g,
                     uint32_t token)
{
    const unsigned runs_per_block = rdu_block_elems(type) / RDU_RUN;
    const size_t block_bytes = rdu_q8_packed_bytes(type);
    const uint8_t *p = c->w + g * c->group_bytes;
    __m256 acc[TOKENS_MAX];
    X86_UNROLL
    for (unsigned t = 0; t < T; t++)
        acc[t] = _mm256_setzero_ps();
    for (unsigned run = 0; run < c->runs; run++) {
        struct weights w;
        unpack(type, p + run / runs_per_block * block_bytes, run % runs_per_block, &w);
        X86_UNROLL
        for (unsigned t = 0; t < T; t++)
            acc[t] = token_run(type, &w, c, token + t, t, run, acc[t]);
    }
    X86_UNROLL
    for (unsigned t = 0; t < T; t++) {
        float *y = c->y + (token + t) * c->y_stride + (size_t)g * RDU_GROUP;
        _mm256_storeu_ps(y, c->add ? _mm256_add_ps(_mm256_loadu_ps(y), acc[t]) : acc[t]);
    }
}

X86_INLINE void make_starts(enum rdu_type type, const struct rdu_q8 *x, uint32_t token,
                            unsigned tokens, unsigned runs, int32_t *starts)
{
    const int factor = rdu_offset(type) ? -rdu_offset(type) : 1;
    for (unsigned t = 0; t < tokens; t++) {
        const int8_t *q = x->q + (token + t) * x->q_stride;
        for (unsigned run = 0; run < runs; run++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(q + (size_t)run * RDU_RUN));
            v = widen(_mm256_maddubs_epi16(_mm256_set1_epi8(1), v));
            v = _mm256_hadd_epi32(v, v);
            v = _mm256_hadd_epi32(v, v);
            int lo = _mm256_extract_epi32(v, 0), hi = _mm256_extract_epi32(v, 4);
            if (rdu_has_half_scales(type)) {
                *starts++ = lo * factor;
                *starts++ = hi * factor;
            } else {
                *starts++ = (lo + hi) * factor;
            }
        }
    }
}

X86_INLINE void tiles(enum rdu_type type, const unsigned T, const struct call *c,
                      uint32_t group_from, uint32_t group_to, uint32_t token)
{
    for (uint32_t g = group_from; g < group_to; g++)
        tile(type, T, c, g, token);
}

X86_INLINE void mm_q8(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                      uint32_t group_to, const struct rdu_q8 *x, uint32_t n_tokens, float *y,
                      size_t y_stride, bool add)
{
    int32_t starts[STARTS_MAX];
    struct call c = {
        .w = w,
        .group_bytes = (size_t)(cols / rdu_block_elems(type)) * rdu_q8_packed_bytes(type),
        .runs = cols / RDU_RUN,
        .x = x,
        .starts = starts,
        .y = y,
        .y_stride = y_stride,
        .add = add,
    };
    const bool needs_starts =
        (rdu_offset(type) && type != RDU_Q8_0) || rdu_has_half_scales(type);
    size_t starts_per_token = (size_t)c.runs * (rdu_has_half_scales(type) ? 2 : 1);
    uint32_t tile_max = TOKENS_MAX;
    while (needs_starts && tile_max > 1 && tile_max * starts_per_token > STARTS_MAX)
        tile_max /= 2;
    for (uint32_t t = 0; t < n_tokens;) {
        uint32_t left = BASE_MIN(n_tokens - t, tile_max);
        uint32_t n = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (needs_starts)
            make_starts(type, x, t, n, c.runs, starts);
        switch (n) {
        case 8:
            tiles(type, 8, &c, group_from, group_to, t);
            break;
        case 4:
            tiles(type, 4, &c, group_from, group_to, t);
            break;
        case 2:
            tiles(type, 2, &c, group_from, group_to, t);
            break;
        default:
            tiles(type, 1, &c, group_from, group_to, t);
            break;
        }
        t += n;
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

void rdu_x86_mm_q8_avx2(struct rdu_kernels *k)
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
