/* Packed weights to registers, 256 bits: one run of 32 columns of 8 rows (one group) as unsigned
 * bytes in the operand shape of vpdpbusd and vpmaddubsw, with the scales of rdu/README.md rule 6.
 */
#ifndef SWITCHYARD_RDU_KERNELS_UNPACK_AVX2_H
#define SWITCHYARD_RDU_KERNELS_UNPACK_AVX2_H

#include "rdu/kernels/pack.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

/* What the runs of one packed block share. */
struct block {
    const uint8_t *p;
    __m256 d, minus_dmin;                     /* super-blocks */
    _Alignas(32) uint8_t scale[128], min[64]; /* [run or half run][8 rows] */
};

/* One run of 32 columns for 8 rows; unit j holds columns 4 j .. 4 j + 3, above the weight by
 * rdu_offset(type). */
struct weights {
    __m256i q[8];
    __m256 d, m[2];
    __m256 sc[2]; /* scales of the halves: whole numbers */
};

X86_INLINE __m256i load_unit(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

X86_INLINE __m256 load_halves(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

X86_INLINE __m256 load_unsigned_bytes(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

X86_INLINE __m256 load_signed_bytes(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

X86_INLINE __m256i and_bytes(__m256i v, int mask)
{
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}

/* Bits of every byte moved down by `shift` (up if negative), then masked; shift is a constant. */
X86_INLINE __m256i take_bits(__m256i v, int shift, int mask)
{
    if (shift > 0)
        v = _mm256_srli_epi16(v, shift);
    else if (shift < 0)
        v = _mm256_slli_epi16(v, -shift);
    return and_bytes(v, mask);
}

/* `value` in the bytes of v that have `bit` set, added to q. */
X86_INLINE __m256i add_where_bit(__m256i q, __m256i v, __m256i bit, int value)
{
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return _mm256_mask_add_epi8(q, _mm256_test_epi8_mask(v, bit), q, _mm256_set1_epi8((char)value));
#else
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
    return _mm256_or_si256(q, and_bytes(set, value));
#endif
}

/* ---- what a block's runs share ----------------------------------------------------------------
 */

/* Scales and minima of Q4_K and Q5_K, all runs at once (see rdu_k_scale_min). */
X86_INLINE void open_k_scales(const uint8_t *p, struct block *b)
{
    const uint8_t *s = p + PACK_K_SCALES;
    __m256i sc = load_unit(s), mn = load_unit(s + 32), low = load_unit(s + 64);
    __m256i sc_top = take_bits(sc, 2, 0x30), mn_top = take_bits(mn, 2, 0x30);
    _mm256_store_si256((__m256i *)b->scale, and_bytes(sc, 63));
    _mm256_store_si256((__m256i *)(b->scale + 32), _mm256_or_si256(and_bytes(low, 15), sc_top));
    _mm256_store_si256((__m256i *)b->min, and_bytes(mn, 63));
    _mm256_store_si256((__m256i *)(b->min + 32), _mm256_or_si256(take_bits(low, 4, 15), mn_top));
}

/* The 16 scales of Q3_K (see rdu_q3_k_scale), still above by 32. */
X86_INLINE void open_q3_k_scales(const uint8_t *p, struct block *b)
{
    const uint8_t *s = p + PACK_Q3_K_SCALES;
    __m256i a = load_unit(s), c = load_unit(s + 32), top = load_unit(s + 64);
    _mm256_store_si256((__m256i *)b->scale,
                       _mm256_or_si256(and_bytes(a, 15), take_bits(top, -4, 0x30)));
    _mm256_store_si256((__m256i *)(b->scale + 32),
                       _mm256_or_si256(and_bytes(c, 15), take_bits(top, -2, 0x30)));
    _mm256_store_si256((__m256i *)(b->scale + 64),
                       _mm256_or_si256(take_bits(a, 4, 15), and_bytes(top, 0x30)));
    _mm256_store_si256((__m256i *)(b->scale + 96),
                       _mm256_or_si256(take_bits(c, 4, 15), take_bits(top, 2, 0x30)));
}

X86_INLINE void open_block(enum rdu_type type, const uint8_t *p, struct block *b)
{
    b->p = p;
    if (rdu_block_elems(type) == RDU_RUN)
        return;
    b->d = load_halves(p);
    if (rdu_has_min(type))
        b->minus_dmin = _mm256_xor_ps(load_halves(p + PACK_K_DMIN), _mm256_set1_ps(-0.0f));
    if (type == RDU_Q4_K || type == RDU_Q5_K)
        open_k_scales(p, b);
    if (type == RDU_Q3_K)
        open_q3_k_scales(p, b);
}

/* ---- runs --------------------------------------------------------------------------------------
 */

X86_INLINE void unpack_nibbles(const uint8_t *p, struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 4; j++) {
        __m256i v = load_unit(p + 32 * j);
        w->q[j] = and_bytes(v, 15);
        w->q[j + 4] = take_bits(v, 4, 15);
    }
}

/* Bit j of each byte is the fifth bit of unit j. */
X86_INLINE void unpack_fifth_bits(const uint8_t *p, struct weights *w)
{
    __m256i h = load_unit(p);
    X86_UNROLL
    for (int j = 0; j < 8; j++)
        w->q[j] = _mm256_or_si256(w->q[j], take_bits(h, j - 4, 16));
}

X86_INLINE void unpack_q45_k(enum rdu_type type, const struct block *b, unsigned run,
                             struct weights *w)
{
    const uint8_t *q = b->p + (type == RDU_Q4_K ? PACK_Q4_K_Q : PACK_Q5_K_Q) + run / 2 * 256;
    if (run % 2 == 0) {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = and_bytes(load_unit(q + 32 * j), 15);
    } else {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = take_bits(load_unit(q + 32 * j), 4, 15);
    }
    if (type == RDU_Q5_K) {
        __m256i bit = _mm256_set1_epi8((char)(1 << run));
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = add_where_bit(w->q[j], load_unit(b->p + PACK_Q5_K_H + 32 * j), bit, 16);
    }
    w->d = _mm256_mul_ps(b->d, load_unsigned_bytes(b->scale + 8 * run));
    w->m[0] = _mm256_mul_ps(b->minus_dmin, load_unsigned_bytes(b->min + 8 * run));
}

X86_INLINE void q6_k_units(const uint8_t *low, const uint8_t *top, const int quarter,
                           struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m256i l = take_bits(load_unit(low + 32 * j), quarter / 2 * 4, 15);
        __m256i t = take_bits(load_unit(top + 32 * j), 2 * quarter - 4, 0x30);
        w->q[j] = _mm256_or_si256(l, t);
    }
}

X86_INLINE void unpack_q6_k(const struct block *b, unsigned run, struct weights *w)
{
    const uint8_t *low = b->p + PACK_Q6_K_LOW + run / 4 * 512 + run % 2 * 256;
    const uint8_t *top = b->p + PACK_Q6_K_TOP + run / 4 * 256;
    const uint8_t *sc = b->p + PACK_Q6_K_SCALES + run * 16;
    if (run % 4 == 0)
        q6_k_units(low, top, 0, w);
    else if (run % 4 == 1)
        q6_k_units(low, top, 1, w);
    else if (run % 4 == 2)
        q6_k_units(low, top, 2, w);
    else
        q6_k_units(low, top, 3, w);
    w->sc[0] = load_signed_bytes(sc);
    w->sc[1] = load_signed_bytes(sc + 8);
    w->d = b->d;
}

/* Bit pairs of Q2_K and Q3_K. */
X86_INLINE void pair_units(const uint8_t *q, const int quarter, struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = take_bits(load_unit(q + 32 * j), 2 * quarter, 3);
}

X86_INLINE void unpack_pairs(const uint8_t *field, unsigned run, struct weights *w)
{
    const uint8_t *q = field + run / 4 * 256;
    if (run % 4 == 0)
        pair_units(q, 0, w);
    else if (run % 4 == 1)
        pair_units(q, 1, w);
    else if (run % 4 == 2)
        pair_units(q, 2, w);
    else
        pair_units(q, 3, w);
}

X86_INLINE void unpack_q3_k(const struct block *b, unsigned run, struct weights *w)
{
    __m256i bit = _mm256_set1_epi8((char)(1 << run));
    unpack_pairs(b->p + PACK_Q3_K_Q, run, w);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = add_where_bit(w->q[j], load_unit(b->p + PACK_Q3_K_H + 32 * j), bit, 4);
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++)
        w->sc[i] =
            _mm256_sub_ps(load_unsigned_bytes(b->scale + run * 16 + i * 8), _mm256_set1_ps(32.0f));
    w->d = b->d;
}

X86_INLINE void unpack_q2_k(const struct block *b, unsigned run, struct weights *w)
{
    const uint8_t *s = b->p + PACK_K_SCALES + run * 16;
    unpack_pairs(b->p + PACK_Q2_K_Q, run, w);
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) {
        __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(s + 8 * i)));
        w->sc[i] = _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(15)));
        __m256 mn = _mm256_cvtepi32_ps(_mm256_srli_epi32(v, 4));
        w->m[i] = _mm256_mul_ps(b->minus_dmin, mn);
    }
    w->d = b->d;
}

X86_INLINE void unpack_basic(enum rdu_type type, const uint8_t *p, struct weights *w)
{
    w->d = load_halves(p);
    if (type == RDU_Q8_0) {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = _mm256_xor_si256(load_unit(p + PACK_Q8_0_Q + 32 * j), _mm256_set1_epi8(-128));
        return;
    }
    unpack_nibbles(p + (type == RDU_Q4_0   ? PACK_Q4_0_Q
                        : type == RDU_Q4_1 ? PACK_Q4_1_Q
                        : type == RDU_Q5_0 ? PACK_Q5_0_Q
                                           : PACK_Q5_1_Q),
                   w);
    if (type == RDU_Q5_0)
        unpack_fifth_bits(p + PACK_Q5_0_H, w);
    if (type == RDU_Q5_1)
        unpack_fifth_bits(p + PACK_Q5_1_H, w);
    if (rdu_has_min(type)) /* the minimum follows the scale in both */
        w->m[0] = load_halves(p + PACK_Q4_1_M);
}

/* IQ4: signed values of a table; mm_f32 only. */
X86_INLINE void unpack_iq4(enum rdu_type type, const struct block *b, unsigned run,
                           struct weights *w)
{
    const __m256i values =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)rdu_iq4_values));
    unpack_nibbles(b->p + (type == RDU_IQ4_NL ? PACK_IQ4_NL_Q : PACK_IQ4_XS_Q + run * 128), w);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = _mm256_shuffle_epi8(values, w->q[j]);
    if (type == RDU_IQ4_NL) {
        w->d = load_halves(b->p);
        return;
    }
    /* Six bits of scale, above by 32: nibble run % 2 of byte run / 2, bit pair `run` of the tops.
     */
    __m256i low = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64((const __m128i *)(b->p + PACK_IQ4_XS_SCALES + run / 2 * 8)));
    __m256i top =
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(b->p + PACK_IQ4_XS_TOPS)));
    low = _mm256_srl_epi32(low, _mm_cvtsi32_si128((int)(run % 2 * 4)));
    top = _mm256_srl_epi32(top, _mm_cvtsi32_si128((int)(run * 2)));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    top = _mm256_slli_epi32(_mm256_and_si256(top, _mm256_set1_epi32(3)), 4);
    __m256i scale = _mm256_sub_epi32(_mm256_or_si256(low, top), _mm256_set1_epi32(32));
    w->d = _mm256_mul_ps(b->d, _mm256_cvtepi32_ps(scale));
}

X86_INLINE void unpack(enum rdu_type type, const struct block *b, unsigned run, struct weights *w)
{
    if (type == RDU_IQ4_NL || type == RDU_IQ4_XS) {
        unpack_iq4(type, b, run, w);
        return;
    }
    if (type == RDU_Q4_K || type == RDU_Q5_K)
        unpack_q45_k(type, b, run, w);
    else if (type == RDU_Q6_K)
        unpack_q6_k(b, run, w);
    else if (type == RDU_Q3_K)
        unpack_q3_k(b, run, w);
    else if (type == RDU_Q2_K)
        unpack_q2_k(b, run, w);
    else
        unpack_basic(type, b->p, w);
}

#endif
