/* Limits of AVX-512 VNNI; for f32 AVX2's multiply-adds are the limit too (the same two pipes). */
#include "rdu/kernels/x86/x86.h"

#include <immintrin.h>

#define CHAINS 12

static double peak_int8(uint32_t rounds, float *sink)
{
    __m512i acc[CHAINS], w = _mm512_set1_epi32(0x01020304);
    X86_UNROLL
    for (unsigned i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_epi32((int)i);
    for (uint32_t r = 0; r < rounds; r++) {
        X86_UNROLL
        for (unsigned i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbusd_epi32(acc[i], w, w);
    }
    for (unsigned i = 1; i < CHAINS; i++)
        acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    *sink = (float)_mm512_cvtsi512_si32(acc[0]);
    return 128.0 * CHAINS * rounds;
}

void rdu_x86_peak_avx512(struct rdu_kernels *k)
{
    k->peak_int8 = peak_int8;
}
