/* Formats kept as raw blocks (IQ1, IQ2, IQ3, TQ): eight neighbouring columns of one row to f32, as
 * the functions of quants_iq.c and quants_tq.c do it, and eight rows of them as columns. */
#ifndef SWITCHYARD_RDU_KERNELS_DECODE_RAW_H
#define SWITCHYARD_RDU_KERNELS_DECODE_RAW_H

#include "rdu/kernels/pack.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

X86_INLINE __m256i lanes8(void)
{
    return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
}

/* Code `lane` of a word of 2-bit or 3-bit codes looked up in a table of 8 values. */
X86_INLINE __m256 look_up(uint32_t word, unsigned bits, __m256 table)
{
    __m256i shift = _mm256_mullo_epi32(lanes8(), _mm256_set1_epi32((int)bits));
    __m256i code = _mm256_srlv_epi32(_mm256_set1_epi32((int)word), shift);
    code = _mm256_and_si256(code, _mm256_set1_epi32((1 << bits) - 1));
    return _mm256_permutevar8x32_ps(table, code);
}

/* Negative where bit `lane` of signs is set. */
X86_INLINE __m256 with_signs(__m256 v, uint32_t signs)
{
    __m256i up = _mm256_sub_epi32(_mm256_set1_epi32(31), lanes8());
    __m256i bit = _mm256_sllv_epi32(_mm256_set1_epi32((int)signs), up);
    __m256 sign = _mm256_and_ps(_mm256_castsi256_ps(bit), _mm256_set1_ps(-0.0f));
    return _mm256_xor_ps(v, sign);
}

X86_INLINE uint32_t even_signs(uint32_t seven)
{
    seven &= 127;
    return seven | ((uint32_t)__builtin_popcount(seven) & 1u) << 7;
}

X86_INLINE __m256 scaled_grid2(uint16_t entry, uint32_t signs, float scale)
{
    const __m256 table = _mm256_setr_ps(8, 25, 43, 0, 0, 0, 0, 0);
    return with_signs(_mm256_mul_ps(_mm256_set1_ps(scale), look_up(entry, 2, table)), signs);
}

/* Two neighbouring entries of 4 codes. */
X86_INLINE __m256 scaled_grid3(uint32_t first, uint32_t second, bool xxs, uint32_t signs,
                               float scale)
{
    const __m256 table = xxs ? _mm256_setr_ps(4, 12, 20, 28, 36, 44, 52, 62)
                             : _mm256_setr_ps(1, 3, 5, 7, 9, 11, 13, 15);
    __m256 v = look_up(first | second << 12, 3, table);
    return with_signs(_mm256_mul_ps(_mm256_set1_ps(scale), v), signs);
}

X86_INLINE float load_half(const uint8_t *p)
{
    return _cvtsh_ss(rdu_load_u16(p));
}

X86_INLINE __m256 decode_iq2(enum rdu_type type, const uint8_t *p, unsigned k)
{
    const float d = load_half(p);
    if (type == RDU_IQ2_XXS) {
        const uint8_t *q = p + 2 + k / 4 * 8;
        uint32_t word = rdu_load_u32(q + 4);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
        return scaled_grid2(rdu_iq2_xxs_grid[q[k % 4]], even_signs(word >> (7 * (k % 4))), scale);
    }
    const uint8_t *scales = p + (type == RDU_IQ2_XS ? 66 : 74);
    float scale = d * (0.5f + (float)(scales[k / 4] >> (k / 2 % 2 * 4) & 15)) * 0.25f;
    if (type == RDU_IQ2_XS) {
        uint32_t q = rdu_load_u16(p + 2 + 2 * k);
        return scaled_grid2(rdu_iq2_xs_grid[q & 511], even_signs(q >> 9), scale);
    }
    uint32_t top = p[66 + k / 4] >> (2 * (k % 4)) & 3u;
    return scaled_grid2(rdu_iq2_s_grid[p[2 + k] | top << 8], p[34 + k], scale);
}

X86_INLINE __m256 decode_iq3(enum rdu_type type, const uint8_t *p, unsigned k)
{
    const float d = load_half(p);
    const uint8_t *q = p + 2 + 2 * k;
    if (type == RDU_IQ3_XXS) {
        uint32_t word = rdu_load_u32(p + 66 + k / 4 * 4);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
        return scaled_grid3(rdu_iq3_xxs_grid[q[0]], rdu_iq3_xxs_grid[q[1]], true,
                            even_signs(word >> (7 * (k % 4))), scale);
    }
    uint32_t tops = (uint32_t)p[66 + k / 4] >> (2 * (k % 4));
    float scale = d * (float)(1 + 2 * (p[106 + k / 8] >> (k / 4 % 2 * 4) & 15));
    return scaled_grid3(rdu_iq3_s_grid[q[0] | (tops & 1) << 8],
                        rdu_iq3_s_grid[q[1] | (tops >> 1 & 1) << 8], false, p[74 + k], scale);
}

X86_INLINE __m256 decode_iq1_s(const uint8_t *p, unsigned k)
{
    const __m256 table = _mm256_setr_ps(-1, 0, 1, 2, 0, 0, 0, 0);
    uint32_t h = rdu_load_u16(p + 34 + k / 4 * 2);
    float scale = load_half(p) * (float)(2 * (h >> 12 & 7u) + 1);
    float shift = h & 0x8000u ? -0.125f : 0.125f;
    __m256 v = look_up(rdu_iq1_s_grid[p[2 + k] | (h >> (3 * (k % 4)) & 7u) << 8], 2, table);
    return _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_add_ps(v, _mm256_set1_ps(shift)));
}

X86_INLINE __m256i load_8_bytes(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

X86_INLINE __m256 decode_tq(enum rdu_type type, const uint8_t *p, unsigned k)
{
    static const int power[5] = {1, 3, 9, 27, 81};
    __m256i v;
    float d;
    if (type == RDU_TQ2_0) {
        d = load_half(p + 64);
        v = load_8_bytes(p + k / 16 * 32 + k % 4 * 8);
        v = _mm256_srl_epi32(v, _mm_cvtsi32_si128((int)(2 * (k / 4 % 4))));
        v = _mm256_and_si256(v, _mm256_set1_epi32(3));
    } else {
        d = load_half(p + 52);
        __m256i digit;
        if (k < 20) {
            v = load_8_bytes(p + k % 4 * 8);
            digit = _mm256_set1_epi32(power[k / 4]);
        } else if (k < 30) {
            v = load_8_bytes(p + 32 + k % 2 * 8);
            digit = _mm256_set1_epi32(power[(k - 20) / 2]);
        } else { /* four bytes, two digits of them */
            v = _mm256_cvtepu8_epi32(_mm_set1_epi32((int)rdu_load_u32(p + 48)));
            digit = _mm256_set_m128i(_mm_set1_epi32(power[2 * (k - 30) + 1]),
                                     _mm_set1_epi32(power[2 * (k - 30)]));
        }
        v = _mm256_and_si256(_mm256_mullo_epi32(v, digit), _mm256_set1_epi32(255));
        v = _mm256_srli_epi32(_mm256_mullo_epi32(v, _mm256_set1_epi32(3)), 8);
    }
    v = _mm256_sub_epi32(v, _mm256_set1_epi32(1));
    return _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(v));
}

/* Columns 8 k .. 8 k + 7 of a raw block. */
X86_INLINE __m256 decode_8(enum rdu_type type, const uint8_t *p, unsigned k)
{
    if (type == RDU_IQ1_S)
        return decode_iq1_s(p, k);
    if (type == RDU_TQ1_0 || type == RDU_TQ2_0)
        return decode_tq(type, p, k);
    if (type == RDU_IQ3_XXS || type == RDU_IQ3_S)
        return decode_iq3(type, p, k);
    return decode_iq2(type, p, k);
}

/* Rows to columns. */
X86_INLINE void transpose_8(__m256 *v)
{
    __m256 a[8], b[8];
    X86_UNROLL
    for (unsigned i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    X86_UNROLL
    for (unsigned i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    X86_UNROLL
    for (unsigned i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

/* Eight raw blocks, one per row and after the other, to [256 columns][8 rows]; `stride` in floats.
 */
X86_INLINE void decode_blocks(enum rdu_type type, const uint8_t *packed, size_t block_bytes,
                              float *out, size_t stride)
{
    for (unsigned k = 0; k < 32; k++) {
        __m256 v[8];
        X86_UNROLL
        for (unsigned r = 0; r < 8; r++)
            v[r] = decode_8(type, packed + r * block_bytes, k);
        transpose_8(v);
        X86_UNROLL
        for (unsigned i = 0; i < 8; i++)
            _mm256_storeu_ps(out + (8 * k + i) * stride, v[i]);
    }
}

#endif
