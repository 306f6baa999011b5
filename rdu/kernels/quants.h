/* Block formats of GGUF weights: how `blocks` raw blocks become f32. Private to rdu/kernels and its
 * tests. The order of multiply, add and subtract is the one of rdu/README.md rule 5. */
#ifndef SWITCHYARD_RDU_KERNELS_QUANTS_H
#define SWITCHYARD_RDU_KERNELS_QUANTS_H

#include "rdu/rdu.h"

#include <string.h>

typedef void rdu_dequant_fn(const uint8_t *src, float *dst, size_t blocks);

rdu_dequant_fn rdu_dequant_q4_0, rdu_dequant_q4_1, rdu_dequant_q5_0, rdu_dequant_q5_1,
    rdu_dequant_q8_0; /* quants_basic.c */
rdu_dequant_fn rdu_dequant_q2_k, rdu_dequant_q3_k, rdu_dequant_q4_k, rdu_dequant_q5_k,
    rdu_dequant_q6_k; /* quants_k.c */
rdu_dequant_fn rdu_dequant_iq1_s, rdu_dequant_iq2_xxs, rdu_dequant_iq2_xs, rdu_dequant_iq2_s,
    rdu_dequant_iq3_xxs, rdu_dequant_iq3_s, rdu_dequant_iq4_nl,
    rdu_dequant_iq4_xs;                              /* quants_iq.c */
rdu_dequant_fn rdu_dequant_tq1_0, rdu_dequant_tq2_0; /* quants_tq.c */

/* Blocks from f32; inputs are finite and the scale fits f16 (rdu_quantize_row checks). */
typedef void rdu_quant_fn(const float *src, uint8_t *dst, size_t blocks);
rdu_quant_fn rdu_quant_q4_0, rdu_quant_q4_1, rdu_quant_q8_0; /* quants_basic.c */

/* Code books of the IQ formats (iq_tables.c): entry i holds its elements from the low bits up, 2
 * bits each (8 elements) or 3 bits each (4 elements, IQ3). */
extern const uint16_t rdu_iq1_s_grid[2048], rdu_iq2_xxs_grid[256], rdu_iq2_xs_grid[512],
    rdu_iq2_s_grid[1024], rdu_iq3_xxs_grid[256], rdu_iq3_s_grid[512];

extern const int8_t rdu_iq4_values[16]; /* of IQ4_NL and IQ4_XS */

/* Packed 6-bit scales and minima of Q4_K and Q5_K: bytes 0..3 low scales, 4..7 low minima, 8..11
 * the low nibbles of scales and minima 4..7, whose top bits sit above the first eight. `stride` is
 * the distance between bytes (1 raw, 8 packed). */
static inline void rdu_k_scale_min(const uint8_t *s, size_t stride, unsigned run,
                                   uint8_t *ret_scale, uint8_t *ret_min)
{
    if (run < 4) {
        *ret_scale = s[run * stride] & 63;
        *ret_min = s[(run + 4) * stride] & 63;
    } else {
        uint8_t low = s[(run + 4) * stride];
        *ret_scale = (uint8_t)((low & 15) | (s[(run - 4) * stride] >> 6) << 4);
        *ret_min = (uint8_t)(low >> 4 | (s[run * stride] >> 6) << 4);
    }
}

/* 6-bit signed scales of Q3_K: low nibbles in 8 bytes, two top bits each in 4 more. */
static inline int rdu_q3_k_scale(const uint8_t *s, size_t stride, unsigned sub)
{
    unsigned low = s[(sub & 7) * stride] >> (sub < 8 ? 0 : 4) & 15u;
    unsigned high = s[(8 + (sub & 3)) * stride] >> (2 * (sub >> 2)) & 3u;
    return (int)(low | high << 4) - 32;
}

static inline uint16_t rdu_load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t rdu_load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif
