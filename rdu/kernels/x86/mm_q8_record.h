/* The activations of one tile of tokens as the int8 leaves read them, for both x86 instruction
 * sets. */
#ifndef SWITCHYARD_RDU_KERNELS_MM_Q8_RECORD_H
#define SWITCHYARD_RDU_KERNELS_MM_Q8_RECORD_H

#include "rdu/kernels/pack.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

/* One token's run of 32 columns. A tile keeps them as [run][token]: one stream and one base
 * register whatever the strides, and no two tokens in the same cache set when rows are 4096 bytes
 * long (that alone cost 40 % of the speed at 4096 columns).
 *
 * Weights are unsigned bytes above the true weight by rdu_offset(type), so a sum of products starts
 * at -offset * sum(q): the same exact integer. Types without offset keep the plain sums here. */
struct record {
    int8_t q[RDU_RUN];
    float d, s;
    int32_t start[2]; /* of the whole run in [0], or of its halves */
};

/* On the stack of the caller: 196 KiB. */
#define RECORDS_MAX (RDU_COLS_MAX / RDU_RUN)

/* Tokens of one pass over the weights: what records hold, whole tiles of 16 if more are left. A
 * pass walks the groups outside and the tiles inside, so the weights come from memory once per
 * pass. */
static inline uint32_t pass_tokens(uint32_t left, unsigned runs)
{
    uint32_t fit = BASE_MAX((uint32_t)RECORDS_MAX / BASE_MAX(runs, 1u), 1u);
    if (left <= fit)
        return left;
    return fit >= 16 ? fit / 16 * 16 : fit;
}

/* The next tile of a pass: the largest power of two up to `max`. */
static inline uint32_t tile_tokens(uint32_t left, uint32_t max)
{
    while (max > left)
        max /= 2;
    return max;
}

/* Records of `T` tokens as [run][T]. */
X86_INLINE void make_records(enum rdu_type type, const struct rdu_q8 *x, uint32_t token,
                             const unsigned T, unsigned runs, struct record *records)
{
    const int factor = rdu_offset(type) ? -rdu_offset(type) : 1;
    const __m256i ones = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (unsigned t = 0; t < T; t++) {
        const int8_t *q = x->q + (token + t) * x->q_stride;
        const float *d = x->d + (token + t) * x->b_stride, *s = x->s + (token + t) * x->b_stride;
        for (unsigned run = 0; run < runs; run++) {
            struct record *r = records + (size_t)run * T + t;
            __m256i v = _mm256_loadu_si256((const __m256i *)(q + (size_t)run * RDU_RUN));
            _mm256_storeu_si256((__m256i *)r->q, v);
            r->d = d[run];
            r->s = s[run];
            if (rdu_offset(type) == 0 && !rdu_has_half_scales(type))
                continue;
            v = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, v), ones16);
            v = _mm256_hadd_epi32(v, v);
            v = _mm256_hadd_epi32(v, v);
            int lo = _mm256_extract_epi32(v, 0), hi = _mm256_extract_epi32(v, 4);
            r->start[0] = (rdu_has_half_scales(type) ? lo : lo + hi) * factor;
            r->start[1] = hi * factor;
        }
    }
}

/* All tiles of a pass, one after the other: the tile of token t starts at t * runs. */
X86_INLINE void make_pass_records(enum rdu_type type, const struct rdu_q8 *x, uint32_t token,
                                  uint32_t tokens, uint32_t tile_max, unsigned runs,
                                  struct record *records)
{
    for (uint32_t t = 0, n; t < tokens; t += n) {
        n = tile_tokens(tokens - t, tile_max);
        make_records(type, x, token + t, n, runs, records + (size_t)t * runs);
    }
}

#endif
