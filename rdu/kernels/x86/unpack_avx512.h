/* Packed weights to registers, AVX-512: one run of 32 columns of 16 rows (two groups) as unsigned bytes in
 * the operand shape of vpdpbusd and vpmaddubsw, with the scales of rdu/README.md rule 6. */
#ifndef SWITCHYARD_RDU_KERNELS_UNPACK_AVX512_H
#define SWITCHYARD_RDU_KERNELS_UNPACK_AVX512_H

#include "rdu/kernels/pack.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

/* One run of 32 columns for 16 rows. */
struct weights {
    __m512i q[8];   /* unit j: columns 4 j .. 4 j + 3, unsigned */
    __m512 d, m[2]; /* scale; minimum (of each half) */
    __m512i sc[2];  /* integer scales of the halves */
};

/* The same field of two groups side by side. */
X86_INLINE __m512i load_pair(const uint8_t *a, const uint8_t *b)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a)),
                              _mm256_loadu_si256((const __m256i *)b), 1);
}

X86_INLINE __m512 load_halves(const uint8_t *a, const uint8_t *b)
{
    return _mm512_cvtph_ps(
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a)),
                                _mm_loadu_si128((const __m128i *)b), 1));
}

X86_INLINE __m128i load_bytes(const uint8_t *a, const uint8_t *b)
{
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)a),
                              _mm_loadl_epi64((const __m128i *)b));
}

X86_INLINE __m512i low_nibbles(__m512i v)
{
    return _mm512_and_si512(v, _mm512_set1_epi8(15));
}

X86_INLINE __m512i high_nibbles(__m512i v)
{
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
}

X86_INLINE void unpack_nibbles(const uint8_t *a, const uint8_t *b, struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 4; j++) {
        __m512i v = load_pair(a + 32 * j, b + 32 * j);
        w->q[j] = low_nibbles(v);
        w->q[j + 4] = high_nibbles(v);
    }
}

/* Bit j of each byte is the fifth bit of unit j. */
X86_INLINE void unpack_fifth_bits(const uint8_t *a, const uint8_t *b, struct weights *w)
{
    __m512i h = load_pair(a, b), bit = _mm512_set1_epi8(16);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i v = j < 4 ? _mm512_slli_epi16(h, 4 - j) : _mm512_srli_epi16(h, j - 4);
        w->q[j] = _mm512_ternarylogic_epi32(w->q[j], v, bit, 0xf8); /* q | (v & bit) */
    }
}

/* Scale and minimum bytes of run `run` of Q4_K and Q5_K (see rdu_k_scale_min). */
X86_INLINE void unpack_k_scales(const uint8_t *a, const uint8_t *b, unsigned run, struct weights *w)
{
    const uint8_t *sa = a + PACK_K_SCALES + 8 * run, *sb = b + PACK_K_SCALES + 8 * run;
    __m128i sc, mn;
    if (run < 4) {
        sc = _mm_and_si128(load_bytes(sa, sb), _mm_set1_epi8(63));
        mn = _mm_and_si128(load_bytes(sa + 32, sb + 32), _mm_set1_epi8(63));
    } else {
        __m128i low = load_bytes(sa + 32, sb + 32), nib = _mm_set1_epi8(15);
        __m128i top = _mm_set1_epi8(0x30);
        sc = _mm_or_si128(_mm_and_si128(low, nib),
                          _mm_and_si128(_mm_srli_epi16(load_bytes(sa - 32, sb - 32), 2), top));
        mn = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(low, 4), nib),
                          _mm_and_si128(_mm_srli_epi16(load_bytes(sa, sb), 2), top));
    }
    w->d = _mm512_mul_ps(load_halves(a, b), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sc)));
    __m512 dmin = load_halves(a + PACK_K_DMIN, b + PACK_K_DMIN);
    __m512 m = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(mn)));
    w->m[0] = _mm512_xor_ps(m, _mm512_set1_ps(-0.0f));
}

X86_INLINE void unpack_q45_k(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                             struct weights *w)
{
    size_t q = (type == RDU_Q4_K ? PACK_Q4_K_Q : PACK_Q5_K_Q) + run / 2 * 256;
    const __m128i shift = _mm_cvtsi32_si128((int)(run % 2 * 4));
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i v = load_pair(a + q + 32 * j, b + q + 32 * j);
        w->q[j] = low_nibbles(_mm512_srl_epi16(v, shift));
        if (type == RDU_Q5_K) {
            __m512i h = load_pair(a + PACK_Q5_K_H + 32 * j, b + PACK_Q5_K_H + 32 * j);
            h = _mm512_srl_epi16(h, _mm_cvtsi32_si128((int)run));
            h = _mm512_and_si512(h, _mm512_set1_epi8(1));
            w->q[j] = _mm512_or_si512(w->q[j], _mm512_slli_epi16(h, 4));
        }
    }
    unpack_k_scales(a, b, run, w);
}

X86_INLINE void unpack_q6_k(const uint8_t *a, const uint8_t *b, unsigned run, struct weights *w)
{
    size_t low = PACK_Q6_K_LOW + run / 4 * 512 + run % 2 * 256;
    size_t top = PACK_Q6_K_TOP + run / 4 * 256;
    const __m128i low_shift = _mm_cvtsi32_si128((int)(run % 4 / 2 * 4));
    const __m128i top_shift = _mm_cvtsi32_si128((int)(run % 4 * 2));
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i l = _mm512_srl_epi16(load_pair(a + low + 32 * j, b + low + 32 * j), low_shift);
        __m512i t = _mm512_srl_epi16(load_pair(a + top + 32 * j, b + top + 32 * j), top_shift);
        t = _mm512_slli_epi16(_mm512_and_si512(t, _mm512_set1_epi8(3)), 4);
        w->q[j] = _mm512_or_si512(low_nibbles(l), t);
    }
    const size_t sc = PACK_Q6_K_SCALES + run * 16;
    w->sc[0] = _mm512_cvtepi8_epi32(load_bytes(a + sc, b + sc));
    w->sc[1] = _mm512_cvtepi8_epi32(load_bytes(a + sc + 8, b + sc + 8));
    w->d = load_halves(a, b);
}

/* Scale byte `sub` of Q3_K (see rdu_q3_k_scale). */
X86_INLINE __m512i q3_k_scale(const uint8_t *a, const uint8_t *b, unsigned sub)
{
    const uint8_t *sa = a + PACK_Q3_K_SCALES, *sb = b + PACK_Q3_K_SCALES;
    __m128i low = load_bytes(sa + 8 * (sub & 7), sb + 8 * (sub & 7));
    __m128i top = load_bytes(sa + 64 + 8 * (sub & 3), sb + 64 + 8 * (sub & 3));
    low = _mm_and_si128(_mm_srl_epi16(low, _mm_cvtsi32_si128(sub < 8 ? 0 : 4)), _mm_set1_epi8(15));
    top = _mm_and_si128(_mm_srl_epi16(top, _mm_cvtsi32_si128((int)(2 * (sub >> 2)))),
                        _mm_set1_epi8(3));
    __m128i v = _mm_or_si128(low, _mm_slli_epi16(top, 4));
    return _mm512_sub_epi32(_mm512_cvtepu8_epi32(v), _mm512_set1_epi32(32));
}

X86_INLINE void unpack_q3_k(const uint8_t *a, const uint8_t *b, unsigned run, struct weights *w)
{
    size_t q = PACK_Q3_K_Q + run / 4 * 256;
    const __m128i shift = _mm_cvtsi32_si128((int)(run % 4 * 2));
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i v = _mm512_srl_epi16(load_pair(a + q + 32 * j, b + q + 32 * j), shift);
        __m512i h = load_pair(a + PACK_Q3_K_H + 32 * j, b + PACK_Q3_K_H + 32 * j);
        h = _mm512_srl_epi16(h, _mm_cvtsi32_si128((int)run));
        h = _mm512_slli_epi16(_mm512_and_si512(h, _mm512_set1_epi8(1)), 2);
        w->q[j] = _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi8(3)), h);
    }
    w->sc[0] = q3_k_scale(a, b, 2 * run);
    w->sc[1] = q3_k_scale(a, b, 2 * run + 1);
    w->d = load_halves(a, b);
}

X86_INLINE void unpack_q2_k(const uint8_t *a, const uint8_t *b, unsigned run, struct weights *w)
{
    size_t q = PACK_Q2_K_Q + run / 4 * 256;
    const __m128i shift = _mm_cvtsi32_si128((int)(run % 4 * 2));
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m512i v = _mm512_srl_epi16(load_pair(a + q + 32 * j, b + q + 32 * j), shift);
        w->q[j] = _mm512_and_si512(v, _mm512_set1_epi8(3));
    }
    __m512 dmin = load_halves(a + PACK_K_DMIN, b + PACK_K_DMIN);
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) {
        size_t at = PACK_K_SCALES + run * 16 + i * 8;
        __m512i s = _mm512_cvtepu8_epi32(load_bytes(a + at, b + at));
        w->sc[i] = _mm512_and_si512(s, _mm512_set1_epi32(15));
        __m512 m = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_srli_epi32(s, 4)));
        w->m[i] = _mm512_xor_ps(m, _mm512_set1_ps(-0.0f));
    }
    w->d = load_halves(a, b);
}

X86_INLINE void unpack(enum rdu_type type, const uint8_t *a, const uint8_t *b, unsigned run,
                       struct weights *w)
{
    if (type == RDU_Q4_K || type == RDU_Q5_K) {
        unpack_q45_k(type, a, b, run, w);
        return;
    }
    if (type == RDU_Q6_K) {
        unpack_q6_k(a, b, run, w);
        return;
    }
    if (type == RDU_Q3_K) {
        unpack_q3_k(a, b, run, w);
        return;
    }
    if (type == RDU_Q2_K) {
        unpack_q2_k(a, b, run, w);
        return;
    }
    w->d = load_halves(a, b);
    if (type == RDU_Q8_0) {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++)
            w->q[j] = _mm512_xor_si512(load_pair(a + PACK_Q8_0_Q + 32 * j, b + PACK_Q8_0_Q + 32 * j),
                                       _mm512_set1_epi8(-128));
        return;
    }
    size_t q = type == RDU_Q4_0 ? PACK_Q4_0_Q : type == RDU_Q4_1 ? PACK_Q4_1_Q
             : type == RDU_Q5_0 ? PACK_Q5_0_Q : PACK_Q5_1_Q;
    unpack_nibbles(a + q, b + q, w);
    if (type == RDU_Q5_0)
        unpack_fifth_bits(a + PACK_Q5_0_H, b + PACK_Q5_0_H, w);
    if (type == RDU_Q5_1)
        unpack_fifth_bits(a + PACK_Q5_1_H, b + PACK_Q5_1_H, w);
    if (type == RDU_Q4_1 || type == RDU_Q5_1) /* the minimum follows the scale in both */
        w->m[0] = load_halves(a + PACK_Q4_1_M, b + PACK_Q4_1_M);
}

#endif
