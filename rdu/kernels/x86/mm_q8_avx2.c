/* y = W x with int8 activations on AVX2: 8 rows (one group) in the lanes. vpmaddubsw multiplies
 * unsigned weights with four broadcast activation bytes and adds pairs into int16; several of these
 * fit int16 before they are widened (Q4: 8 pair sums, Q5: 4, Q6: 2). Q8_0 moves the weights' signs
 * to the activations instead. */
#include "rdu/kernels/x86/mm_q8_record.h"
#include "rdu/kernels/x86/unpack_avx2.h"

#define TILE_MAX 8

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
X86_INLINE __m256i dot_units(const struct weights *w, const int8_t *x, unsigned from,
                             unsigned count, unsigned fit)
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

/* Q8_0: |w| times x with w's sign: at most 2 * 128 * 127 per pair, which fits int16 alone. */
X86_INLINE __m256i dot_signed(const struct weights *w, const int8_t *x)
{
    __m256i sum = _mm256_setzero_si256();
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m256i q = _mm256_xor_si256(w->q[j], _mm256_set1_epi8(-128));
        __m256i v = _mm256_sign_epi8(broadcast(x + 4 * j), q);
        __m256i products = widen(_mm256_maddubs_epi16(_mm256_abs_epi8(q), v));
        sum = j == 0 ? products : _mm256_add_epi32(sum, products);
    }
    return sum;
}

/* I = sc0 * I0 + sc1 * I1 of rule 6 in f32: every term stays below 2^24, so it is exact, and
 * cheaper than integer multiplies. */
X86_INLINE __m256 scaled_halves(enum rdu_type type, const struct weights *w, const struct record *x)
{
    const unsigned fit = type == RDU_Q6_K ? 2 : 4;
    __m256i lo = dot_units(w, x->q, 0, 4, fit), hi = dot_units(w, x->q, 4, 4, fit);
    if (rdu_offset(type)) {
        lo = _mm256_add_epi32(lo, _mm256_set1_epi32(x->start[0]));
        hi = _mm256_add_epi32(hi, _mm256_set1_epi32(x->start[1]));
    }
    return _mm256_fmadd_ps(w->sc[1], _mm256_cvtepi32_ps(hi),
                           _mm256_mul_ps(w->sc[0], _mm256_cvtepi32_ps(lo)));
}

/* I of rule 6. */
X86_INLINE __m256 integer_sum(enum rdu_type type, const struct weights *w, const struct record *x)
{
    if (rdu_has_half_scales(type))
        return scaled_halves(type, w, x);
    if (type == RDU_Q8_0)
        return _mm256_cvtepi32_ps(dot_signed(w, x->q));
    const bool five = type == RDU_Q5_0 || type == RDU_Q5_1 || type == RDU_Q5_K;
    __m256i sum = dot_units(w, x->q, 0, 8, five ? 4 : 8);
    if (rdu_offset(type))
        sum = _mm256_add_epi32(sum, _mm256_set1_epi32(x->start[0]));
    return _mm256_cvtepi32_ps(sum);
}

#include "rdu/kernels/x86/mm_q8_ymm_tmpl.h"

void rdu_x86_mm_q8_avx2(struct rdu_kernels *k)
{
    memcpy(k->mm_q8, row_fns, sizeof row_fns);
}
