/* y = W x with int8 activations on AVX-512 VNNI for the few tokens of decoding: 256-bit vpdpbusd,
 * one row group after the other, so that the weights stream. mm_q8_avx512.c sends small batches
 * here. */
#include "rdu/kernels/x86/mm_q8_record.h"
#include "rdu/kernels/x86/unpack_avx2.h"

#define TILE_MAX 2

X86_INLINE __m256i dot_units(__m256i sum, const __m256i *w, const int8_t *x, unsigned units)
{
    X86_UNROLL
    for (unsigned j = 0; j < units; j++) {
        int32_t v;
        memcpy(&v, x + 4 * j, sizeof v);
        sum = _mm256_dpbusd_epi32(sum, w[j], _mm256_set1_epi32(v));
    }
    return sum;
}

/* I of rule 6; I = sc0 * I0 + sc1 * I1 in f32, where every term stays below 2^24: exact. */
X86_INLINE __m256 integer_sum(enum rdu_type type, const struct weights *w, const struct record *x)
{
    const bool offset = rdu_offset(type) != 0;
    __m256i lo = offset ? _mm256_set1_epi32(x->start[0]) : _mm256_setzero_si256();
    if (!rdu_has_half_scales(type))
        return _mm256_cvtepi32_ps(dot_units(lo, w->q, x->q, 8));
    __m256i hi = offset ? _mm256_set1_epi32(x->start[1]) : _mm256_setzero_si256();
    lo = dot_units(lo, w->q, x->q, 4);
    hi = dot_units(hi, w->q + 4, x->q + 16, 4);
    return _mm256_fmadd_ps(w->sc[1], _mm256_cvtepi32_ps(hi),
                           _mm256_mul_ps(w->sc[0], _mm256_cvtepi32_ps(lo)));
}

#include "rdu/kernels/x86/mm_q8_ymm_tmpl.h"

rdu_mm_q8_fn *rdu_x86_mv_q8_avx512(enum rdu_type type)
{
    return row_fns[type];
}
