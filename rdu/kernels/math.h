/* exp and tanh as the leaves and emitted code compute them: plain f32 polynomials with fused
 * multiply-add, no libm, the same bits in scalar and vector code. Vector twins of these functions
 * (x86/vmath_*.h) do the same operations in the same order; emitted C includes this header, so it
 * depends on nothing else. Coefficients: minimax fits made for this project (weighted least squares
 * to the relative error, each coefficient rounded to f32 before the next is fitted). */
#ifndef SWITCHYARD_RDU_KERNELS_MATH_H
#define SWITCHYARD_RDU_KERNELS_MATH_H

#include <stdint.h>

#define RDU_EXP_LO (-104.0f) /* exp rounds to 0 below */
#define RDU_EXP_HI 89.0f     /* and to infinity above */
#define RDU_EXP_LOG2E 0x1.715476p+0f
#define RDU_EXP_LN2_HI 0x1.62e4p-1f
#define RDU_EXP_LN2_LO 0x1.7f7d1cp-20f
#define RDU_EXP_MAGIC 0x1.8p+23f /* adding it rounds to an integer in the low mantissa bits */
#define RDU_EXP_C2 0x1.fffffcp-2f
#define RDU_EXP_C3 0x1.55548cp-3f
#define RDU_EXP_C4 0x1.5558bap-5f
#define RDU_EXP_C5 0x1.123e5cp-7f
#define RDU_EXP_C6 0x1.6a4b98p-10f

#define RDU_TANH_SMALL 0.625f /* below: odd polynomial, above: through exp */
#define RDU_TANH_C3 (-0x1.55553p-2f)
#define RDU_TANH_C5 0x1.110688p-3f
#define RDU_TANH_C7 (-0x1.b826fep-5f)
#define RDU_TANH_C9 0x1.51971ap-6f
#define RDU_TANH_C11 (-0x1.734efep-8f)

#define RDU_LOG_C3 0x1.555564p-2f
#define RDU_LOG_C4 (-0x1.00023cp-2f)
#define RDU_LOG_C5 0x1.99986p-3f
#define RDU_LOG_C6 (-0x1.54679p-3f)
#define RDU_LOG_C7 0x1.236438p-3f
#define RDU_LOG_C8 (-0x1.0e6826p-3f)
#define RDU_LOG_C9 0x1.025beap-3f
#define RDU_LOG_C10 (-0x1.2d3636p-4f)
#define RDU_LOG_ROOT_HALF 0x3f3504f3u /* bits of sqrt(1/2): mantissas are taken from here up */

#define RDU_ERF_HALF_ROOT 0.70710678f
#define RDU_ERF_P 0.3275911f
#define RDU_ERF_A1 0.254829592f
#define RDU_ERF_A2 (-0.284496736f)
#define RDU_ERF_A3 1.421413741f
#define RDU_ERF_A4 (-1.453152027f)
#define RDU_ERF_A5 1.061405429f

static inline float rdu_float_of_bits(uint32_t bits)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = bits};
    return v.f;
}

static inline uint32_t rdu_bits_of_float(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {.f = f};
    return v.u;
}

/* e^x within 1 ulp, subnormal results included; NaN gives NaN. Branch-free: compilers vectorise it.
 */
static inline float rdu_expf(float x)
{
    x = RDU_EXP_LO > x ? RDU_EXP_LO : x;
    x = RDU_EXP_HI < x ? RDU_EXP_HI : x;
    float t = __builtin_fmaf(x, RDU_EXP_LOG2E, RDU_EXP_MAGIC);
    float n = t - RDU_EXP_MAGIC;
    float r = __builtin_fmaf(n, -RDU_EXP_LN2_HI, x);
    r = __builtin_fmaf(n, -RDU_EXP_LN2_LO, r);
    float p = RDU_EXP_C6;
    p = __builtin_fmaf(p, r, RDU_EXP_C5);
    p = __builtin_fmaf(p, r, RDU_EXP_C4);
    p = __builtin_fmaf(p, r, RDU_EXP_C3);
    p = __builtin_fmaf(p, r, RDU_EXP_C2);
    p = __builtin_fmaf(r * r, p, r) + 1.0f;
    /* 2^n in two factors: n reaches -150 and 128, which one normal f32 does not. */
    int32_t i = (int32_t)(rdu_bits_of_float(t) - rdu_bits_of_float(RDU_EXP_MAGIC));
    int32_t half = i >> 1;
    float a = rdu_float_of_bits((uint32_t)(half + 127) << 23);
    float b = rdu_float_of_bits((uint32_t)(i - half + 127) << 23);
    return (p * a) * b;
}

/* tanh(x) within 2 ulp; NaN gives NaN. */
static inline float rdu_tanhf(float x)
{
    uint32_t bits = rdu_bits_of_float(x);
    float ax = rdu_float_of_bits(bits & 0x7fffffffu);
    float x2 = ax * ax;
    float p = RDU_TANH_C11;
    p = __builtin_fmaf(p, x2, RDU_TANH_C9);
    p = __builtin_fmaf(p, x2, RDU_TANH_C7);
    p = __builtin_fmaf(p, x2, RDU_TANH_C5);
    p = __builtin_fmaf(p, x2, RDU_TANH_C3);
    float small = __builtin_fmaf(x2 * ax, p, ax);
    float big = 1.0f - 2.0f / (rdu_expf(ax + ax) + 1.0f);
    float y = ax < RDU_TANH_SMALL ? small : big;
    return rdu_float_of_bits(rdu_bits_of_float(y) | (bits & 0x80000000u));
}

/* ln x within 2 ulp, subnormals included; 0 gives -inf, below 0 and NaN give NaN. */
static inline float rdu_logf(float x)
{
    int32_t tiny = x < 0x1p-126f;
    float v = tiny ? x * 0x1p23f : x;
    uint32_t bits = rdu_bits_of_float(v);
    int32_t e = (int32_t)(bits - RDU_LOG_ROOT_HALF) >> 23;
    float f = rdu_float_of_bits(bits - ((uint32_t)e << 23)) - 1.0f;
    float n = (float)(tiny ? e - 23 : e);
    float p = RDU_LOG_C10;
    p = __builtin_fmaf(p, f, RDU_LOG_C9);
    p = __builtin_fmaf(p, f, RDU_LOG_C8);
    p = __builtin_fmaf(p, f, RDU_LOG_C7);
    p = __builtin_fmaf(p, f, RDU_LOG_C6);
    p = __builtin_fmaf(p, f, RDU_LOG_C5);
    p = __builtin_fmaf(p, f, RDU_LOG_C4);
    p = __builtin_fmaf(p, f, RDU_LOG_C3);
    float f2 = f * f;
    float y = __builtin_fmaf(f2 * f, p, -0.5f * f2);
    y = __builtin_fmaf(n, RDU_EXP_LN2_LO, y) + f;
    y = __builtin_fmaf(n, RDU_EXP_LN2_HI, y);
    y = x > 0.0f ? y : (x == 0.0f ? -__builtin_inff() : __builtin_nanf(""));
    return x == __builtin_inff() ? x : y;
}

/* x * Phi(x) with erf by Abramowitz and Stegun, 7.1.26 (error below 1.5e-7). */
static inline float rdu_geluf(float x)
{
    float z = rdu_float_of_bits(rdu_bits_of_float(x) & 0x7fffffffu) * RDU_ERF_HALF_ROOT;
    float t = 1.0f / __builtin_fmaf(RDU_ERF_P, z, 1.0f);
    float p = RDU_ERF_A5;
    p = __builtin_fmaf(p, t, RDU_ERF_A4);
    p = __builtin_fmaf(p, t, RDU_ERF_A3);
    p = __builtin_fmaf(p, t, RDU_ERF_A2);
    p = __builtin_fmaf(p, t, RDU_ERF_A1);
    p = p * t;
    float e = 1.0f - p * rdu_expf(-(z * z));
    e = x < 0.0f ? -e : e;
    return (0.5f * x) * (1.0f + e);
}

#endif
