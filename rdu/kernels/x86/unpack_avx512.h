/* Packed weights to registers, 512 bits: one run of 32 columns of 16 rows (two groups) as unsigned
 * bytes in the operand shape of vpdpbusd, with the scales of rdu/README.md rule 6. */
#ifndef SWITCHYARD_RDU_KERNELS_UNPACK_AVX512_H
#define SWITCHYARD_RDU_KERNELS_UNPACK_AVX512_H

#include "rdu/kernels/pack.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

/* What the runs of two packed blocks, one of each group, share. */
struct block {
    const uint8_t *a, *b;
    __m512 d, minus_dmin;                      /* super-blocks */
    _Alignas(64) uint8_t scale[256], min[128]; /* [run or half run][16 rows] */
};

/* One run of 32 columns for 16 rows; unit j holds columns 4 j .. 4 j + 3, above the weight by
 * rdu_offset(type). */
struct weights {
    __m512i q[8];
    __m512 d, m[2];
    __m512 sc[2]; /* scales of the halves: whole numbers */
};

/* The field at `offset` of both groups side by side. */
X86_INLINE __m512i load_unit(const struct block *b, size_t offset)
{
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(b->a + offset))),
        _mm256_loadu_si256((const __m256i *)(b->b + offset)), 1);
}

X86_INLINE __m512 load_halves(const struct block *b, size_t offset)
{
    return _mm512_cvtph_ps(_mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(b->a + offset))),
        _mm_loadu_si128((const __m128i *)(b->b + offset)), 1));
}

/* 8 bytes of each group. */
X86_INLINE __m128i load_bytes(const struct block *b, size_t offset)
{
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)(b->a + offset)),
                              _mm_loadl_epi64((const __m128i *)(b->b + offset)));
}

/* Four times 8 bytes of each group, as [4][16 rows]. */
X86_INLINE __m512i load_byte_rows(const struct block *b, size_t offset)
{
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
                                    load_unit(b, offset));
}

X86_INLINE __m512 unsigned_bytes(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)p)));
}

X86_INLINE __m512i and_bytes(__m512i v, int mask)
{
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}

/* Bits of every byte moved down by `shift` (up if negative), then masked; shift is a constant. */
X86_INLINE __m512i take_bits(__m512i v, int shift, int mask)
{
    if (shift > 0)
        v = _mm512_srli_epi16(v, (unsigned)shift);
    else if (shift < 0)
        v = _mm512_slli_epi16(v, (unsigned)-shift);
    return and_bytes(v, mask);
}

/* `value` in the bytes of v that have `bit` set, added to q. */
X86_INLINE __m512i add_where_bit(__m512i q, __m512i v, __m512i bit, int value)
{
    return _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(v, bit), q, _mm512_set1_epi8((char)value));
}

/* ---- what a block's runs share ----------------------------------------------------------------
 */

/* Scales and minima of Q4_K and Q5_K, all runs at once (see rdu_k_scale_min). */
X86_INLINE void open_k_scales(struct block *b)
{
    __m512i sc = load_byte_rows(b, PACK_K_SCALES), mn = load_byte_rows(b, PACK_K_SCALES + 32);
    __m512i low = load_byte_rows(b, PACK_K_SCALES + 64);
    __m512i sc_top = take_bits(sc, 2, 0x30), mn_top = take_bits(mn, 2, 0x30);
    _mm512_store_si512(b->scale, and_bytes(sc, 63));
    _mm512_store_si512(b->scale + 64, _mm512_or_si512(and_bytes(low, 15), sc_top));
    _mm512_store_si512(b->min, and_bytes(mn, 63));
    _mm512_store_si512(b->min + 64, _mm512_or_si512(take_bits(low, 4, 15), mn_top));
}

/* The 16 scales of Q3_K (see rdu_q3_k_scale), still above by 32. */
X86_INLINE void open_q3_k_scales(struct block *b)
{
    __m512i a = load_byte_rows(b, PACK_Q3_K_SCALES), c = load_byte_rows(b, PACK_Q3_K_SCALES + 32);
    __m512i top = load_byte_rows(b, PACK_Q3_K_SCALES + 64);
    _mm512_store_si512(b->scale, _mm512_or_si512(and_bytes(a, 15), take_bits(top, -4, 0x30)));
    _mm512_store_si512(b->scale + 64, _mm512_or_si512(and_bytes(c, 15), take_bits(top, -2, 0x30)));
    _mm512_store_si512(b->scale + 128, _mm512_or_si512(take_bits(a, 4, 15), and_bytes(top, 0x30)));
    _mm512_store_si512(b->scale + 192,
                       _mm512_or_si512(take_bits(c, 4, 15), take_bits(top, 2, 0x30)));
}

X86_INLINE void open_block(enum rdu_type type, const uint8_t *first, const uint8_t *second,
                           struct block *b)
{
    b->a = first;
    b->b = second;
    if (rdu_block_elems(type) == RDU_RUN)
        return;
    b->d = load_halves(b, 0);
    if (rdu_has_min(type))
        b->minus_dmin = _mm512_xor_ps(load_halves(b, PACK_K_DMIN), _mm512_set1_ps(-0.0f));
    if (type == RDU_Q4_K || type == RDU_Q5_K)
        open_k_scales(b);
    if (type == RDU_Q3_K)
        open_q3_k_scales(b);
}

/* ---- runs --------------------------------------------------------------------------------------
 */

X86_INLINE void unpack_nibbles(const struct block *b, size_t at, struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 4; j++) {
        __m512i v = load_unit(b, at + 32 * j);
        w->q[j] = and_bytes(v, 15);
        w->q[j + 4] = take_bits(v, 4, 15);
    }
}

/* Bit j of each byte is the fifth bit of unit j. */
X86_INLINE void unpack_fifth_bits(const struct block *b, size_t at, struct weights *w)
{
    __m512i h = load_unit(b, at), bit = _mm512_set1_epi8(16);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i v = j < 4 ? _mm512_slli_epi16(h, 4 - j) : _mm512_srli_epi16(h, j - 4);
        w->q[j] = _mm512_ternarylogic_epi32(w->q[j], v, bit, 0xf8); /* q | (v & bit) */
    }
}

X86_INLINE void unpack_q45_k(enum rdu_type type, const struct block *b, unsigned run,
                             struct weights *w)
{
    const size_t q = (type == RDU_Q4_K ? PACK_Q4_K_Q : PACK_Q5_K_Q) + run / 2 * 256;
    if (run % 2 == 0) {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = and_bytes(load_unit(b, q + 32 * j), 15);
    } else {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = take_bits(load_unit(b, q + 32 * j), 4, 15);
    }
    if (type == RDU_Q5_K) {
        __m512i bit = _mm512_set1_epi8((char)(1 << run));
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = add_where_bit(w->q[j], load_unit(b, PACK_Q5_K_H + 32 * j), bit, 16);
    }
    w->d = _mm512_mul_ps(b->d, unsigned_bytes(b->scale + 16 * run));
    w->m[0] = _mm512_mul_ps(b->minus_dmin, unsigned_bytes(b->min + 16 * run));
}

X86_INLINE void q6_k_units(const struct block *b, size_t low, size_t top, const int quarter,
                           struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i l = take_bits(load_unit(b, low + 32 * j), quarter / 2 * 4, 15);
        __m512i t = take_bits(load_unit(b, top + 32 * j), 2 * quarter - 4, 0x30);
        w->q[j] = _mm512_or_si512(l, t);
    }
}

X86_INLINE void unpack_q6_k(const struct block *b, unsigned run, struct weights *w)
{
    const size_t low = PACK_Q6_K_LOW + run / 4 * 512 + run % 2 * 256;
    const size_t top = PACK_Q6_K_TOP + run / 4 * 256, sc = PACK_Q6_K_SCALES + run * 16;
    if (run % 4 == 0)
        q6_k_units(b, low, top, 0, w);
    else if (run % 4 == 1)
        q6_k_units(b, low, top, 1, w);
    else if (run % 4 == 2)
        q6_k_units(b, low, top, 2, w);
    else
        q6_k_units(b, low, top, 3, w);
    w->sc[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes(b, sc)));
    w->sc[1] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes(b, sc + 8)));
    w->d = b->d;
}

/* Bit pairs of Q2_K and Q3_K. */
X86_INLINE void pair_units(const struct block *b, size_t at, const int quarter, struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = take_bits(load_unit(b, at + 32 * j), 2 * quarter, 3);
}

X86_INLINE void unpack_pairs(const struct block *b, size_t field, unsigned run, struct weights *w)
{
    const size_t at = field + run / 4 * 256;
    if (run % 4 == 0)
        pair_units(b, at, 0, w);
    else if (run % 4 == 1)
        pair_units(b, at, 1, w);
    else if (run % 4 == 2)
        pair_units(b, at, 2, w);
    else
        pair_units(b, at, 3, w);
}

X86_INLINE void unpack_q3_k(const struct block *b, unsigned run, struct weights *w)
{
    __m512i bit = _mm512_set1_epi8((char)(1 << run));
    unpack_pairs(b, PACK_Q3_K_Q, run, w);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = add_where_bit(w->q[j], load_unit(b, PACK_Q3_K_H + 32 * j), bit, 4);
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++)
        w->sc[i] =
            _mm512_sub_ps(unsigned_bytes(b->scale + run * 32 + i * 16), _mm512_set1_ps(32.0f));
    w->d = b->d;
}

X86_INLINE void unpack_q2_k(const struct block *b, unsigned run, struct weights *w)
{
    unpack_pairs(b, PACK_Q2_K_Q, run, w);
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) {
        __m512i v = _mm512_cvtepu8_epi32(load_bytes(b, PACK_K_SCALES + run * 16 + i * 8));
        w->sc[i] = _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(15)));
        w->m[i] = _mm512_mul_ps(b->minus_dmin, _mm512_cvtepi32_ps(_mm512_srli_epi32(v, 4)));
    }
    w->d = b->d;
}

X86_INLINE void unpack_basic(enum rdu_type type, const struct block *b, struct weights *w)
{
    w->d = load_halves(b, 0);
    if (type == RDU_Q8_0) {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = _mm512_xor_si512(load_unit(b, PACK_Q8_0_Q + 32 * j), _mm512_set1_epi8(-128));
        return;
    }
    unpack_nibbles(b,
                   type == RDU_Q4_0   ? PACK_Q4_0_Q
                   : type == RDU_Q4_1 ? PACK_Q4_1_Q
                   : type == RDU_Q5_0 ? PACK_Q5_0_Q
                                      : PACK_Q5_1_Q,
                   w);
    if (type == RDU_Q5_0)
        unpack_fifth_bits(b, PACK_Q5_0_H, w);
    if (type == RDU_Q5_1)
        unpack_fifth_bits(b, PACK_Q5_1_H, w);
    if (rdu_has_min(type)) /* the minimum follows the scale in both */
        w->m[0] = load_halves(b, PACK_Q4_1_M);
}

/* IQ4: signed values of a table; mm_f32 only. */
X86_INLINE void unpack_iq4(enum rdu_type type, const struct block *b, unsigned run,
                           struct weights *w)
{
    const __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)rdu_iq4_values));
    unpack_nibbles(b, type == RDU_IQ4_NL ? PACK_IQ4_NL_Q : PACK_IQ4_XS_Q + run * 128, w);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = _mm512_shuffle_epi8(values, w->q[j]);
    if (type == RDU_IQ4_NL) {
        w->d = load_halves(b, 0);
        return;
    }
    /* Six bits of scale, above by 32: nibble run % 2 of byte run / 2, bit pair `run` of the tops.
     */
    __m512i low = _mm512_cvtepu8_epi32(load_bytes(b, PACK_IQ4_XS_SCALES + run / 2 * 8));
    __m512i top = _mm512_cvtepu16_epi32(_mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(b->a + PACK_IQ4_XS_TOPS))),
        _mm_loadu_si128((const __m128i *)(b->b + PACK_IQ4_XS_TOPS)), 1));
    low = _mm512_srl_epi32(low, _mm_cvtsi32_si128((int)(run % 2 * 4)));
    top = _mm512_srl_epi32(top, _mm_cvtsi32_si128((int)(run * 2)));
    low = _mm512_and_si512(low, _mm512_set1_epi32(15));
    top = _mm512_slli_epi32(_mm512_and_si512(top, _mm512_set1_epi32(3)), 4);
    __m512i scale = _mm512_sub_epi32(_mm512_or_si512(low, top), _mm512_set1_epi32(32));
    w->d = _mm512_mul_ps(b->d, _mm512_cvtepi32_ps(scale));
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
        unpack_basic(type, b, w);
}

#endif
