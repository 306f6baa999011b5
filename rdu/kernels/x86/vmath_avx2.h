/* rdu_expf and rdu_tanhf of math.h on 8 lanes: the same operations in the same order. */
#ifndef SWITCHYARD_RDU_KERNELS_VMATH_AVX2_H
#define SWITCHYARD_RDU_KERNELS_VMATH_AVX2_H

#include "rdu/kernels/math.h"
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

X86_INLINE __m256 exp_ps(__m256 x)
{
    /* max and min return the second operand for NaN, as the comparisons in rdu_expf do. */
    x = _mm256_max_ps(_mm256_set1_ps(RDU_EXP_LO), x);
    x = _mm256_min_ps(_mm256_set1_ps(RDU_EXP_HI), x);
    const __m256 magic = _mm256_set1_ps(RDU_EXP_MAGIC);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(RDU_EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-RDU_EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-RDU_EXP_LN2_LO), r);
    __m256 p = _mm256_set1_ps(RDU_EXP_C6);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(RDU_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(RDU_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(RDU_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(RDU_EXP_C2));
    p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(r, r), p, r), _mm256_set1_ps(1.0f));
    __m256i i = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_castps_si256(magic));
    __m256i half = _mm256_srai_epi32(i, 1), bias = _mm256_set1_epi32(127);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(i, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

X86_INLINE __m256 tanh_ps(__m256 x)
{
    const __m256 sign_bit = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    __m256 ax = _mm256_andnot_ps(sign_bit, x), x2 = _mm256_mul_ps(ax, ax);
    __m256 p = _mm256_set1_ps(RDU_TANH_C11);
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(RDU_TANH_C9));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(RDU_TANH_C7));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(RDU_TANH_C5));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(RDU_TANH_C3));
    __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(x2, ax), p, ax);
    __m256 e = _mm256_add_ps(exp_ps(_mm256_add_ps(ax, ax)), one);
    __m256 big = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), e));
    __m256 is_small = _mm256_cmp_ps(ax, _mm256_set1_ps(RDU_TANH_SMALL), _CMP_LT_OQ);
    __m256 y = _mm256_blendv_ps(big, small, is_small);
    return _mm256_or_ps(y, _mm256_and_ps(sign_bit, x));
}

#endif
