/* Limits of AVX2: multiply-adds from registers. */
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

#define CHAINS 12

static double peak_f32(uint32_t rounds, float *sink)
{
    __m256 acc[CHAINS], a = _mm256_set1_ps(0.5f), c = _mm256_set1_ps(1.0f);
    X86_UNROLL
    for (unsigned i = 0; i < CHAINS; i++)
        acc[i] = _mm256_set1_ps((float)i);
    for (uint32_t r = 0; r < rounds; r++) {
        X86_UNROLL
        for (unsigned i = 0; i < CHAINS; i++)
            acc[i] = _mm256_fmadd_ps(acc[i], a, c);
    }
    for (unsigned i = 1; i < CHAINS; i++)
        acc[0] = _mm256_add_ps(acc[0], acc[i]);
    *sink = _mm256_cvtss_f32(acc[0]);
    return 16.0 * CHAINS * rounds;
}

/* The best AVX2 has: four vpmaddubsw added in int16, then widened and added. */
static double peak_int8(uint32_t rounds, float *sink)
{
    __m256i acc[CHAINS / 4], w = _mm256_set1_epi8(3), one = _mm256_set1_epi16(1);
    X86_UNROLL
    for (unsigned i = 0; i < CHAINS / 4; i++)
        acc[i] = _mm256_set1_epi32((int)i);
    for (uint32_t r = 0; r < rounds; r++) {
        X86_UNROLL
        for (unsigned i = 0; i < CHAINS / 4; i++) {
            __m256i x = _mm256_xor_si256(acc[i], w);
            __m256i s = _mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(x, w));
            x = _mm256_add_epi8(x, w);
            s = _mm256_add_epi16(
                s, _mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(x, w)));
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(s, one));
        }
    }
    for (unsigned i = 1; i < CHAINS / 4; i++)
        acc[0] = _mm256_add_epi32(acc[0], acc[i]);
    *sink = (float)_mm256_cvtsi256_si32(acc[0]);
    return 64.0 * CHAINS * rounds;
}

void rdu_x86_peak_avx2(struct rdu_kernels *k)
{
    k->peak_int8 = peak_int8;
    k->peak_f32 = peak_f32;
}
