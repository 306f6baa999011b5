/* Limits of the plain build: what the compiler makes of a multiply-add over arrays. */
#include "rdu/kernels/ref/ref.h"

#define LANES 64

static double peak_int8(uint32_t rounds, float *sink)
{
    int8_t a[LANES];
    int32_t acc[LANES] = {0};
    for (unsigned i = 0; i < LANES; i++)
        a[i] = (int8_t)((i + rounds) % 5);
    for (uint32_t r = 0; r < rounds; r++)
        for (unsigned i = 0; i < LANES; i++)
            acc[i] += a[i] * a[(i + r) % LANES];
    int32_t sum = 0;
    for (unsigned i = 0; i < LANES; i++)
        sum += acc[i];
    *sink = (float)sum;
    return 2.0 * LANES * rounds;
}

static double peak_f32(uint32_t rounds, float *sink)
{
    float acc[LANES] = {0};
    for (uint32_t r = 0; r < rounds; r++)
        for (unsigned i = 0; i < LANES; i++)
            acc[i] = __builtin_fmaf(acc[i], 0.5f, 1.0f);
    *sink = acc[rounds % LANES];
    return 2.0 * LANES * rounds;
}

void REF(rdu_ref_peak)(struct rdu_kernels *k)
{
    k->peak_int8 = peak_int8;
    k->peak_f32 = peak_f32;
}
