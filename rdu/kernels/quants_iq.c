/* The IQ formats: code books of sign-less vectors (iq_tables.c), signs stored apart, scales per 16
 * or 32 elements; and IQ4, a non-linear 4-bit scale. */
#include "rdu/kernels/quants.h"

#include "rdu/kernels/half.h"

static const uint8_t grid2[4] = {0x08, 0x19, 0x2b, 0};
static const uint8_t grid3_xxs[8] = {0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e};
const int8_t rdu_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

/* Seven stored signs; the eighth makes their number even. */
static uint8_t even_signs(uint32_t seven)
{
    seven &= 127;
    return (uint8_t)(seven | ((uint32_t)__builtin_popcount(seven) & 1u) << 7);
}

static void put_grid2(uint16_t entry, uint8_t signs, float scale, float *dst)
{
    for (unsigned i = 0; i < 8; i++) {
        float v = scale * (float)grid2[entry >> (2 * i) & 3];
        dst[i] = signs >> i & 1 ? -v : v;
    }
}

static void put_grid3(uint16_t entry, bool xxs, unsigned signs, float scale, float *dst)
{
    for (unsigned i = 0; i < 4; i++) {
        unsigned code = entry >> (3 * i) & 7u;
        float v = scale * (float)(xxs ? grid3_xxs[code] : 2 * code + 1);
        dst[i] = signs >> i & 1 ? -v : v;
    }
}

/* d, then per 32 elements four grid bytes and a word: 4 x 7 signs, 4-bit scale on top. */
void rdu_dequant_iq2_xxs(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 66, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned run = 0; run < 8; run++) {
            const uint8_t *q = src + 2 + run * 8;
            uint32_t word = rdu_load_u32(q + 4);
            float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
            for (unsigned k = 0; k < 4; k++)
                put_grid2(rdu_iq2_xxs_grid[q[k]], even_signs(word >> (7 * k)), scale,
                          dst + run * 32 + k * 8);
        }
    }
}

/* d, 32 x (9-bit grid, 7 signs), 8 bytes of two 4-bit scales, one per 16 elements. */
void rdu_dequant_iq2_xs(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 74, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned k = 0; k < 32; k++) {
            uint16_t q = rdu_load_u16(src + 2 + 2 * k);
            unsigned s = src[66 + k / 4] >> (k / 2 % 2 * 4) & 15u;
            float scale = d * (0.5f + (float)s) * 0.25f;
            put_grid2(rdu_iq2_xs_grid[q & 511], even_signs(q >> 9), scale, dst + k * 8);
        }
    }
}

/* d, 32 grid bytes, 32 sign bytes, 8 bytes of grid tops (2 bits each), 8 bytes of 4-bit scales. */
void rdu_dequant_iq2_s(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 82, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned k = 0; k < 32; k++) {
            unsigned top = src[66 + k / 4] >> (2 * (k % 4)) & 3u;
            unsigned s = src[74 + k / 4] >> (k / 2 % 2 * 4) & 15u;
            float scale = d * (0.5f + (float)s) * 0.25f;
            put_grid2(rdu_iq2_s_grid[src[2 + k] | top << 8], src[34 + k], scale, dst + k * 8);
        }
    }
}

/* d, 64 grid bytes, 8 words: 4 x 7 signs, 4-bit scale on top. */
void rdu_dequant_iq3_xxs(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 98, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned k = 0; k < 64; k++) {
            uint32_t word = rdu_load_u32(src + 66 + k / 8 * 4);
            float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
            unsigned signs = even_signs(word >> (7 * (k / 2 % 4))) >> (k % 2 * 4);
            put_grid3(rdu_iq3_xxs_grid[src[2 + k]], true, signs, scale, dst + k * 4);
        }
    }
}

/* d, 64 grid bytes, 8 bytes of ninth bits, 32 sign bytes, 4 bytes of two 4-bit scales per 32. */
void rdu_dequant_iq3_s(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 110, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned k = 0; k < 64; k++) {
            unsigned top = src[66 + k / 8] >> (k % 8) & 1u;
            unsigned s = src[106 + k / 16] >> (k / 8 % 2 * 4) & 15u;
            float scale = d * (float)(1 + 2 * s);
            unsigned signs = src[74 + k / 2] >> (k % 2 * 4);
            put_grid3(rdu_iq3_s_grid[src[2 + k] | top << 8], false, signs, scale, dst + k * 4);
        }
    }
}

/* d, 32 grid bytes, 8 halfwords: 4 x 3 grid tops, 3-bit scale, sign of the shift by 1/8. */
void rdu_dequant_iq1_s(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 50, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned k = 0; k < 32; k++) {
            unsigned h = rdu_load_u16(src + 34 + k / 4 * 2);
            float scale = d * (float)(2 * (h >> 12 & 7u) + 1);
            float shift = h & 0x8000u ? -0.125f : 0.125f;
            unsigned top = h >> (3 * (k % 4)) & 7u;
            uint16_t entry = rdu_iq1_s_grid[src[2 + k] | top << 8];
            for (unsigned i = 0; i < 8; i++)
                dst[k * 8 + i] = scale * ((float)((entry >> (2 * i) & 3) - 1) + shift);
        }
    }
}

void rdu_dequant_iq4_nl(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 18, dst += 32) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned i = 0; i < 16; i++) {
            dst[i] = d * (float)rdu_iq4_values[src[2 + i] & 15];
            dst[i + 16] = d * (float)rdu_iq4_values[src[2 + i] >> 4];
        }
    }
}

/* d, 8 x 2 scale tops, 4 bytes of scale nibbles, then runs of 32 as IQ4_NL. */
void rdu_dequant_iq4_xs(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 136, dst += 256) {
        float d = rdu_half_load(rdu_load_u16(src));
        unsigned tops = rdu_load_u16(src + 2);
        for (unsigned run = 0; run < 8; run++) {
            unsigned s = (src[4 + run / 2] >> (run % 2 * 4) & 15u) | (tops >> (2 * run) & 3u) << 4;
            float scale = d * (float)((int)s - 32);
            const uint8_t *q = src + 8 + run * 16;
            for (unsigned i = 0; i < 16; i++) {
                dst[run * 32 + i] = scale * (float)rdu_iq4_values[q[i] & 15];
                dst[run * 32 + 16 + i] = scale * (float)rdu_iq4_values[q[i] >> 4];
            }
        }
    }
}
