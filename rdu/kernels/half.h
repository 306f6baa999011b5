/* f16 and bf16 conversions without instructions beyond the baseline; same bits as F16C's. */
#ifndef SWITCHYARD_RDU_KERNELS_HALF_H
#define SWITCHYARD_RDU_KERNELS_HALF_H

#include "rdu/kernels/math.h"

/* Exact. Subnormals go through an integer conversion; NaN payloads are kept and made quiet. */
static inline float rdu_half_load(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
    if (exponent == 0) {
        float v = (float)mantissa * 0x1p-24f;
        return rdu_float_of_bits(rdu_bits_of_float(v) | sign);
    }
    if (exponent == 31)
        return rdu_float_of_bits(sign | 0x7f800000u | (mantissa ? 0x400000u : 0) | mantissa << 13);
    return rdu_float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* Nearest even; too large gives infinity. */
static inline uint16_t rdu_half_store(float f)
{
    uint32_t bits = rdu_bits_of_float(f);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
    if (bits >= 0x47800000u) /* 2^16 */
        return sign | 0x7c00u;
    if (bits < 0x38800000u) {
        /* Below 2^-14: adding 0.5 leaves multiples of 2^-24 in the mantissa, rounded by the add. */
        float v = rdu_float_of_bits(bits) + 0.5f;
        return (uint16_t)(sign | (rdu_bits_of_float(v) - 0x3f000000u));
    }
    /* A carry out of the mantissa raises the exponent, up to infinity: as it should. */
    uint32_t rounded = bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u);
    return (uint16_t)(sign | rounded >> 13);
}

static inline float rdu_bf16_load(uint16_t h)
{
    return rdu_float_of_bits((uint32_t)h << 16);
}

/* Nearest even; NaN stays NaN. */
static inline uint16_t rdu_bf16_store(float f)
{
    uint32_t bits = rdu_bits_of_float(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#endif
