/* The k-quants: super-blocks of 256 elements whose runs of 16 or 32 have small integer scales (and
 * minima) under one f16 scale (and one f16 for the minima). */
#include "rdu/kernels/quants.h"

#include "rdu/kernels/half.h"

/* 16 scale bytes (low nibble scale, high nibble minimum, one per 16 elements), 64 bytes of 2-bit
 * values, d, dmin. Two halves of 128 elements share 32 bytes each, four bit pairs high. */
void rdu_dequant_q2_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 84, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src + 80)),
              dmin = rdu_half_load(rdu_load_u16(src + 82));
        for (unsigned sub = 0; sub < 16; sub++) {
            const uint8_t *q = src + 16 + sub / 8 * 32 + sub % 2 * 16;
            float scale = d * (float)(src[sub] & 15), min = dmin * (float)(src[sub] >> 4);
            for (unsigned i = 0; i < 16; i++)
                dst[sub * 16 + i] = scale * (float)(q[i] >> (sub / 2 % 4 * 2) & 3) - min;
        }
    }
}

/* 32 bytes of third bits (a clear bit subtracts 4), 64 bytes of 2-bit values, 12 bytes of scales,
 * d. */
void rdu_dequant_q3_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 110, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src + 108));
        for (unsigned sub = 0; sub < 16; sub++) {
            const uint8_t *q = src + 32 + sub / 8 * 32 + sub % 2 * 16, *high = src + sub % 2 * 16;
            float scale = d * (float)rdu_q3_k_scale(src + 96, 1, sub);
            for (unsigned i = 0; i < 16; i++) {
                int low = q[i] >> (sub / 2 % 4 * 2) & 3, third = high[i] >> (sub / 2) & 1;
                dst[sub * 16 + i] = scale * (float)(low + 4 * third - 4);
            }
        }
    }
}

/* d, dmin, 12 bytes of scales and minima, [32 bytes of fifth bits,] 4 x 32 bytes whose low nibbles
 * are one run of 32 and whose high nibbles the next. */
static void dequant_q45_k(const uint8_t *scales, const uint8_t *high, const uint8_t *low, float d,
                          float dmin, float *dst)
{
    for (unsigned run = 0; run < 8; run++) {
        uint8_t sc, mn;
        rdu_k_scale_min(scales, 1, run, &sc, &mn);
        float scale = d * (float)sc, min = dmin * (float)mn;
        for (unsigned i = 0; i < 32; i++) {
            unsigned q = low[run / 2 * 32 + i] >> (run % 2 * 4) & 15u;
            if (high != NULL)
                q |= (high[i] >> run & 1u) << 4;
            dst[run * 32 + i] = scale * (float)q - min;
        }
    }
}

void rdu_dequant_q4_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 144, dst += 256)
        dequant_q45_k(src + 4, NULL, src + 16, rdu_half_load(rdu_load_u16(src)),
                      rdu_half_load(rdu_load_u16(src + 2)), dst);
}

void rdu_dequant_q5_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 176, dst += 256)
        dequant_q45_k(src + 4, src + 16, src + 48, rdu_half_load(rdu_load_u16(src)),
                      rdu_half_load(rdu_load_u16(src + 2)), dst);
}

/* 128 bytes of low nibbles, 64 bytes of 2-bit tops, 16 signed scales, d. In each half of 128
 * elements the runs of 32 take: low nibbles of bytes 0..31, of 32..63, then the high nibbles of
 * both. */
void rdu_dequant_q6_k(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 210, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src + 208));
        for (unsigned sub = 0; sub < 16; sub++) {
            unsigned half = sub / 8, run = sub / 2 % 4, k = sub % 2 * 16;
            const uint8_t *low = src + half * 64 + run % 2 * 32 + k,
                          *top = src + 128 + half * 32 + k;
            float scale = d * (float)(int8_t)src[192 + sub];
            for (unsigned i = 0; i < 16; i++) {
                int q = (low[i] >> (run / 2 * 4) & 15) | (top[i] >> (2 * run) & 3) << 4;
                dst[sub * 16 + i] = scale * (float)(q - 32);
            }
        }
    }
}
