/* rdu_expf and rdu_tanhf of math.h on 16 lanes: the same operations in the same order. */
#ifndef SWITCHYARD_RDU_KERNELS_VMATH_AVX512_H
#define SWITCHYARD_RDU_KERNELS_VMATH_AVX512_H

#include "rdu/kernels/math.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

X86_INLINE __m512 exp_ps(__m512 x)
{
    /* max and min return the second operand for NaN, as the comparisons in rdu_expf do. */
    x = _mm512_max_ps(_mm512_set1_ps(RDU_EXP_LO), x);
    x = _mm512_min_ps(_mm512_set1_ps(RDU_EXP_HI), x);
    const __m512 magic = _mm512_set1_ps(RDU_EXP_MAGIC);
    __m512 t = _mm512_fmadd_ps(x, _mm512_set1_ps(RDU_EXP_LOG2E), magic);
    __m512 n = _mm512_sub_ps(t, magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-RDU_EXP_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-RDU_EXP_LN2_LO), r);
    __m512 p = _mm512_set1_ps(RDU_EXP_C6);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(RDU_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(RDU_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(RDU_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(RDU_EXP_C2));
    p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r), _mm512_set1_ps(1.0f));
    /* p * 2^n with one rounding: what the two factors of rdu_expf give. */
    return _mm512_scalef_ps(p, n);
}

X86_INLINE __m512 tanh_ps(__m512 x)
{
    const __m512 sign_bit = _mm512_set1_ps(-0.0f), one = _mm512_set1_ps(1.0f);
    __m512 ax = _mm512_andnot_ps(sign_bit, x), x2 = _mm512_mul_ps(ax, ax);
    __m512 p = _mm512_set1_ps(RDU_TANH_C11);
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(RDU_TANH_C9));
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(RDU_TANH_C7));
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(RDU_TANH_C5));
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(RDU_TANH_C3));
    __m512 small = _mm512_fmadd_ps(_mm512_mul_ps(x2, ax), p, ax);
    __m512 e = _mm512_add_ps(exp_ps(_mm512_add_ps(ax, ax)), one);
    __m512 big = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), e));
    __mmask16 is_small = _mm512_cmp_ps_mask(ax, _mm512_set1_ps(RDU_TANH_SMALL), _CMP_LT_OQ);
    __m512 y = _mm512_mask_blend_ps(is_small, big, small);
    return _mm512_or_ps(y, _mm512_and_ps(sign_bit, x));
}

#endif
