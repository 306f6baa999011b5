/* Which leaf goes into which slot: the scalar reference first, then what the CPU does better. */
#include "rdu/kernels/ref/ref.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include "rdu/kernels/x86/x86.h"

#include <cpuid.h>
#endif

enum level { LEVEL_SCALAR, LEVEL_AVX2, LEVEL_AVX512, LEVELS };
static const char *const level_names[LEVELS] = {"scalar", "avx2", "avx512"};

#if defined(__x86_64__)
static enum level level_of_cpu(void)
{
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return LEVEL_SCALAR;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vnni"))
        return LEVEL_AVX2;
    return LEVEL_AVX512;
}
#else
static enum level level_of_cpu(void)
{
    return LEVEL_SCALAR;
}
#endif

static void fill_scalar(struct rdu_kernels *k, bool fma)
{
#if defined(__x86_64__)
    if (fma) {
        rdu_ref_mm_q8_fma(k);
        rdu_ref_mm_f32_fma(k);
        rdu_ref_attn_fma(k);
        rdu_ref_rows_fma(k);
        rdu_ref_peak_fma(k);
        return;
    }
#endif
    (void)fma;
    rdu_ref_mm_q8_base(k);
    rdu_ref_mm_f32_base(k);
    rdu_ref_attn_base(k);
    rdu_ref_rows_base(k);
    rdu_ref_peak_base(k);
}

static void fill(struct rdu_kernels *k, enum level wanted, enum level cpu)
{
    memset(k, 0, sizeof *k);
    fill_scalar(k, cpu >= LEVEL_AVX2);
    k->isa = "scalar";
#if defined(__x86_64__)
    if (wanted < LEVEL_AVX2)
        return;
    rdu_x86_mm_q8_avx2(k);
    rdu_x86_mm_f32_avx2(k);
    rdu_x86_attn_avx2(k);
    rdu_x86_rows_avx2(k);
    rdu_x86_peak_avx2(k);
    k->isa = "avx2";
    if (wanted < LEVEL_AVX512)
        return;
    rdu_x86_mm_q8_avx512(k);
    rdu_x86_mm_f32_avx512(k);
    rdu_x86_attn_avx512(k);
    rdu_x86_rows_avx512(k);
    rdu_x86_peak_avx512(k);
    k->isa = "avx512-vnni";
#endif
}

enum err_code rdu_kernels_init(struct rdu_kernels *k, const char *cpu, struct err *e)
{
    enum level have = level_of_cpu(), wanted = have;
    const char *source = "the argument";
    if (cpu == NULL) {
        source = "SWITCHYARD_CPU";
        cpu = getenv("SWITCHYARD_CPU");
    }
    if (cpu != NULL && cpu[0] != '\0') {
        for (wanted = 0; wanted < LEVELS && strcmp(cpu, level_names[wanted]) != 0; wanted++)
            ;
        if (wanted == LEVELS)
            return err_set(e, ERR_INVALID,
                           "unknown instruction set '%s' in %s; use scalar, avx2 or avx512", cpu,
                           source);
    }
    if (wanted > have)
        return err_set(e, ERR_UNSUPPORTED,
                       "this machine lacks what '%s' needs; the best it has is %s", cpu,
                       level_names[have]);
    fill(k, wanted, have);
    return ERR_OK;
}
