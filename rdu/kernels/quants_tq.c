/* Ternary formats: super-blocks of 256 elements in {-1, 0, 1} times one f16 scale. */
#include "rdu/kernels/quants.h"

#include "rdu/kernels/half.h"

/* Digit `n` (0 = most significant) of a byte that holds a fraction of five base-3 digits. */
static float trit(uint8_t byte, unsigned n)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    uint8_t rest = (uint8_t)(byte * power[n]);
    return (float)((rest * 3 >> 8) - 1);
}

/* 32 bytes of 5 digits (element = digit * 32 + byte), 16 bytes of 5, 4 bytes of 4, d. */
void rdu_dequant_tq1_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 54, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src + 52));
        for (unsigned n = 0; n < 5; n++) {
            for (unsigned i = 0; i < 32; i++)
                dst[n * 32 + i] = d * trit(src[i], n);
            for (unsigned i = 0; i < 16; i++)
                dst[160 + n * 16 + i] = d * trit(src[32 + i], n);
            for (unsigned i = 0; i < 4 && n < 4; i++)
                dst[240 + n * 4 + i] = d * trit(src[48 + i], n);
        }
    }
}

/* 64 bytes of four 2-bit values, 32 bytes per half, d. */
void rdu_dequant_tq2_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 66, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src + 64));
        for (unsigned i = 0; i < 256; i++) {
            int q = src[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
            dst[i] = d * (float)(q - 1);
        }
    }
}
