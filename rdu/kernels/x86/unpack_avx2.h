/* Packed weights to registers, AVX2: one run of 32 columns of 8 rows (one group) as unsigned bytes in
 * the operand shape of vpdpbusd and vpmaddubsw, with the scales of rdu/README.md rule 6. */
#ifndef SWITCHYARD_RDU_KERNELS_UNPACK_AVX2_H
#define SWITCHYARD_RDU_KERNELS_UNPACK_AVX2_H

#include "rdu/kernels/pack.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

/* One run of 32 columns for 8 rows; unit j holds columns 4 j .. 4 j + 3. */
struct weights {
    __m256i q[8];     /* unsigned; Q8_0: signed */
    __m256i mag[8];   /* Q8_0: magnitudes */
    __m256 d, m[2];
    __m256i sc[2];
};

X86_INLINE __m256i load_unit(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

X86_INLINE __m256 load_halves(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

X86_INLINE __m128i load_bytes(const uint8_t *p)
{
    return _mm_loadl_epi64((const __m128i *)p);
}

X86_INLINE __m256i mask_shifted(__m256i v, unsigned shift, char mask)
{
    return _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128((int)shift)),
                            _mm256_set1_epi8(mask));
}

X86_INLINE void unpack_nibbles(const uint8_t *p, struct weights *w)
{
    X86_UNROLL
    for (unsigned j = 0; j < 4; j++) {
        __m256i v = load_unit(p + 32 * j);
        w->q[j] = _mm256_and_si256(v, _mm256_set1_epi8(15));
        w->q[j + 4] = _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    }
}

X86_INLINE void unpack_fifth_bits(const uint8_t *p, struct weights *w)
{
    __m256i h = load_unit(p), bit = _mm256_set1_epi8(16);
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m256i v = j < 4 ? _mm256_slli_epi16(h, (int)(4 - j)) : _mm256_srli_epi16(h, (int)(j - 4));
        w->q[j] = _mm256_or_si256(w->q[j], _mm256_and_si256(v, bit));
    }
}

X86_INLINE __m256 bytes_to_ps(__m128i v)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v));
}

X86_INLINE __m256 negate(__m256 v)
{
    return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}

/* See rdu_k_scale_min. */
X86_INLINE void unpack_k_scales(const uint8_t *p, unsigned run, struct weights *w)
{
    const uint8_t *s = p + PACK_K_SCALES + 8 * run;
    __m128i sc, mn;
    if (run < 4) {
        sc = _mm_and_si128(load_bytes(s), _mm_set1_epi8(63));
        mn = _mm_and_si128(load_bytes(s + 32), _mm_set1_epi8(63));
    } else {
        __m128i low = load_bytes(s + 32), nib = _mm_set1_epi8(15), top = _mm_set1_epi8(0x30);
        sc = _mm_or_si128(_mm_and_si128(low, nib),
                          _mm_and_si128(_mm_srli_epi16(load_bytes(s - 32), 2), top));
        mn = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(low, 4), nib),
                          _mm_and_si128(_mm_srli_epi16(load_bytes(s), 2), top));
    }
    w->d = _mm256_mul_ps(load_halves(p), bytes_to_ps(sc));
    w->m[0] = negate(_mm256_mul_ps(load_halves(p + PACK_K_DMIN), bytes_to_ps(mn)));
}

X86_INLINE void unpack_q45_k(enum rdu_type type, const uint8_t *p, unsigned run, struct weights *w)
{
    const uint8_t *q = p + (type == RDU_Q4_K ? PACK_Q4_K_Q : PACK_Q5_K_Q) + run / 2 * 256;
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        w->q[j] = mask_shifted(load_unit(q + 32 * j), run % 2 * 4, 15);
        if (type == RDU_Q5_K) {
            __m256i h = mask_shifted(load_unit(p + PACK_Q5_K_H + 32 * j), run, 1);
            w->q[j] = _mm256_or_si256(w->q[j], _mm256_slli_epi16(h, 4));
        }
    }
    unpack_k_scales(p, run, w);
}

X86_INLINE void unpack_q6_k(const uint8_t *p, unsigned run, struct weights *w)
{
    const uint8_t *low = p + PACK_Q6_K_LOW + run / 4 * 512 + run % 2 * 256;
    const uint8_t *top = p + PACK_Q6_K_TOP + run / 4 * 256;
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m256i l = mask_shifted(load_unit(low + 32 * j), run % 4 / 2 * 4, 15);
        __m256i t = mask_shifted(load_unit(top + 32 * j), run % 4 * 2, 3);
        w->q[j] = _mm256_or_si256(l, _mm256_slli_epi16(t, 4));
    }
    const uint8_t *sc = p + PACK_Q6_K_SCALES + run * 16;
    w->sc[0] = _mm256_cvtepi8_epi32(load_bytes(sc));
    w->sc[1] = _mm256_cvtepi8_epi32(load_bytes(sc + 8));
    w->d = load_halves(p);
}

/* See rdu_q3_k_scale. */
X86_INLINE __m256i q3_k_scale(const uint8_t *p, unsigned sub)
{
    const uint8_t *s = p + PACK_Q3_K_SCALES;
    __m128i low = _mm_srl_epi16(load_bytes(s + 8 * (sub & 7)), _mm_cvtsi32_si128(sub < 8 ? 0 : 4));
    __m128i top = _mm_srl_epi16(load_bytes(s + 64 + 8 * (sub & 3)),
                                _mm_cvtsi32_si128((int)(2 * (sub >> 2))));
    low = _mm_and_si128(low, _mm_set1_epi8(15));
    top = _mm_and_si128(top, _mm_set1_epi8(3));
    __m128i v = _mm_or_si128(low, _mm_slli_epi16(top, 4));
    return _mm256_sub_epi32(_mm256_cvtepu8_epi32(v), _mm256_set1_epi32(32));
}

X86_INLINE void unpack_q3_k(const uint8_t *p, unsigned run, struct weights *w)
{
    const uint8_t *q = p + PACK_Q3_K_Q + run / 4 * 256;
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++) {
        __m256i v = mask_shifted(load_unit(q + 32 * j), run % 4 * 2, 3);
        __m256i h = mask_shifted(load_unit(p + PACK_Q3_K_H + 32 * j), run, 1);
        w->q[j] = _mm256_or_si256(v, _mm256_slli_epi16(h, 2));
    }
    w->sc[0] = q3_k_scale(p, 2 * run);
    w->sc[1] = q3_k_scale(p, 2 * run + 1);
    w->d = load_halves(p);
}

X86_INLINE void unpack_q2_k(const uint8_t *p, unsigned run, struct weights *w)
{
    const uint8_t *q = p + PACK_Q2_K_Q + run / 4 * 256;
    X86_UNROLL
    for (unsigned j = 0; j < 8; j++)
        w->q[j] = mask_shifted(load_unit(q + 32 * j), run % 4 * 2, 3);
    __m256 dmin = load_halves(p + PACK_K_DMIN);
    X86_UNROLL
    for (unsigned i = 0; i < 2; i++) {
        __m256i s = _mm256_cvtepu8_epi32(load_bytes(p + PACK_K_SCALES + run * 16 + i * 8));
        w->sc[i] = _mm256_and_si256(s, _mm256_set1_epi32(15));
        w->m[i] = negate(_mm256_mul_ps(dmin, _mm256_cvtepi32_ps(_mm256_srli_epi32(s, 4))));
    }
    w->d = load_halves(p);
}

X86_INLINE void unpack_basic(enum rdu_type type, const uint8_t *p, struct weights *w)
{
    w->d = load_halves(p);
    if (type == RDU_Q8_0) {
        X86_UNROLL
        for (unsigned j = 0; j < 8; j++) {
            w->q[j] = load_unit(p + PACK_Q8_0_Q + 32 * j);
            w->mag[j] = _mm256_abs_epi8(w->q[j]);
        }
        return;
    }
    unpack_nibbles(p + (type == RDU_Q4_0   ? PACK_Q4_0_Q
                        : type == RDU_Q4_1 ? PACK_Q4_1_Q
                        : type == RDU_Q5_0 ? PACK_Q5_0_Q
                                           : PACK_Q5_1_Q), w);
    if (type == RDU_Q5_0)
        unpack_fifth_bits(p + PACK_Q5_0_H, w);
    if (type == RDU_Q5_1)
        unpack_fifth_bits(p + PACK_Q5_1_H, w);
    if (rdu_has_min(type)) /* the minimum follows the scale in both */
        w->m[0] = load_halves(p + PACK_Q4_1_M);
}

X86_INLINE void unpack(enum rdu_type type, const uint8_t *p, unsigned run, struct weights *w)
{
    if (type == RDU_Q4_K || type == RDU_Q5_K)
        unpack_q45_k(type, p, run, w);
    else if (type == RDU_Q6_K)
        unpack_q6_k(p, run, w);
    else if (type == RDU_Q3_K)
        unpack_q3_k(p, run, w);
    else if (type == RDU_Q2_K)
        unpack_q2_k(p, run, w);
    else
        unpack_basic(type, p, w);
}

#endif
