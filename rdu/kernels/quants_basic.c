/* Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 elements with one f16 scale, the _1 ones with an f16 minimum.
 * Low nibbles are elements 0..15, high nibbles 16..31; the fifth bits sit in one 32-bit word. */
#include "rdu/kernels/quants.h"

#include "rdu/kernels/half.h"

#include <math.h>

void rdu_dequant_q4_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 18, dst += 32) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned i = 0; i < 16; i++) {
            dst[i] = d * (float)((src[2 + i] & 15) - 8);
            dst[i + 16] = d * (float)((src[2 + i] >> 4) - 8);
        }
    }
}

void rdu_dequant_q4_1(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 20, dst += 32) {
        float d = rdu_half_load(rdu_load_u16(src)), m = rdu_half_load(rdu_load_u16(src + 2));
        for (unsigned i = 0; i < 16; i++) {
            dst[i] = d * (float)(src[4 + i] & 15) + m;
            dst[i + 16] = d * (float)(src[4 + i] >> 4) + m;
        }
    }
}

void rdu_dequant_q5_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 22, dst += 32) {
        float d = rdu_half_load(rdu_load_u16(src));
        uint32_t high = rdu_load_u32(src + 2);
        for (unsigned i = 0; i < 16; i++) {
            int lo = (int)((src[6 + i] & 15u) | (high >> i & 1u) << 4);
            int hi = (int)(src[6 + i] >> 4 | (high >> (i + 16) & 1u) << 4);
            dst[i] = d * (float)(lo - 16);
            dst[i + 16] = d * (float)(hi - 16);
        }
    }
}

void rdu_dequant_q5_1(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 24, dst += 32) {
        float d = rdu_half_load(rdu_load_u16(src)), m = rdu_half_load(rdu_load_u16(src + 2));
        uint32_t high = rdu_load_u32(src + 4);
        for (unsigned i = 0; i < 16; i++) {
            uint32_t lo = (src[8 + i] & 15u) | (high >> i & 1u) << 4;
            uint32_t hi = (uint32_t)(src[8 + i] >> 4) | (high >> (i + 16) & 1u) << 4;
            dst[i] = d * (float)lo + m;
            dst[i + 16] = d * (float)hi + m;
        }
    }
}

void rdu_dequant_q8_0(const uint8_t *src, float *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 34, dst += 32) {
        float d = rdu_half_load(rdu_load_u16(src));
        for (unsigned i = 0; i < 32; i++)
            dst[i] = d * (float)(int8_t)src[2 + i];
    }
}

static void store_half(uint8_t *dst, float v)
{
    uint16_t h = rdu_half_store(v);
    memcpy(dst, &h, sizeof h);
}

/* Quantise to [0, top] after `offset`; the scale is kept unrounded here, as other writers of these
 * formats do, so that files agree with theirs. */
static uint8_t nibble(float v, float inverse, float offset)
{
    float q = v * inverse + offset + 0.5f;
    return (uint8_t)(q < 0 ? 0 : q > 15 ? 15 : q);
}

void rdu_quant_q4_0(const float *src, uint8_t *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 32, dst += 18) {
        /* The element largest in magnitude maps to -8, the end with the extra step. */
        float extreme = 0;
        for (unsigned i = 0; i < 32; i++)
            extreme = fabsf(src[i]) > fabsf(extreme) ? src[i] : extreme;
        float d = extreme / -8.0f, inverse = d == 0.0f || isinf(1.0f / d) ? 0.0f : 1.0f / d;
        store_half(dst, d);
        for (unsigned i = 0; i < 16; i++)
            dst[2 + i] =
                (uint8_t)(nibble(src[i], inverse, 8.0f) | nibble(src[i + 16], inverse, 8.0f) << 4);
    }
}

void rdu_quant_q4_1(const float *src, uint8_t *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 32, dst += 20) {
        float min = src[0], max = src[0];
        for (unsigned i = 1; i < 32; i++) {
            min = src[i] < min ? src[i] : min;
            max = src[i] > max ? src[i] : max;
        }
        float d = (max - min) / 15.0f, inverse = d == 0.0f || isinf(1.0f / d) ? 0.0f : 1.0f / d;
        store_half(dst, d);
        store_half(dst + 2, min);
        for (unsigned i = 0; i < 16; i++)
            dst[4 + i] = (uint8_t)(nibble(src[i] - min, inverse, 0.0f) |
                                   nibble(src[i + 16] - min, inverse, 0.0f) << 4);
    }
}

void rdu_quant_q8_0(const float *src, uint8_t *dst, size_t blocks)
{
    for (; blocks > 0; blocks--, src += 32, dst += 34) {
        float amax = 0;
        for (unsigned i = 0; i < 32; i++)
            amax = fabsf(src[i]) > amax ? fabsf(src[i]) : amax;
        float d = amax / 127.0f, inverse = d == 0.0f || isinf(1.0f / d) ? 0.0f : 1.0f / d;
        store_half(dst, d);
        for (unsigned i = 0; i < 32; i++) {
            float q = roundf(src[i] * inverse);
            dst[2 + i] = (uint8_t)(int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
        }
    }
}
