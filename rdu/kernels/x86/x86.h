/* Overrides of the table for x86-64; each file fills the slots it improves. Private to rdu/kernels.
 */
#ifndef SWITCHYARD_RDU_KERNELS_X86_H
#define SWITCHYARD_RDU_KERNELS_X86_H

#include "rdu/kernels/kernels.h"

/* AVX2 + FMA + F16C */
void rdu_x86_mm_q8_avx2(struct rdu_kernels *k);
void rdu_x86_mm_f32_avx2(struct rdu_kernels *k);
rdu_mm_f32_fn *rdu_x86_one_group_mm_f32(enum rdu_type type); /* AVX2's */
void rdu_x86_attn_avx2(struct rdu_kernels *k);
void rdu_x86_rows_avx2(struct rdu_kernels *k);
void rdu_x86_peak_avx2(struct rdu_kernels *k);
/* AVX-512 F, BW, VL, DQ, VNNI */
void rdu_x86_mm_q8_avx512(struct rdu_kernels *k);
rdu_mm_q8_fn *rdu_x86_mv_q8_avx512(enum rdu_type type); /* the better one for few tokens */
void rdu_x86_mm_f32_avx512(struct rdu_kernels *k);
void rdu_x86_attn_avx512(struct rdu_kernels *k);
void rdu_x86_rows_avx512(struct rdu_kernels *k);
void rdu_x86_peak_avx512(struct rdu_kernels *k);

/* Loops over arrays of registers must vanish, or the arrays live in memory. */
#ifdef __clang__
#define X86_UNROLL _Pragma("clang loop unroll(full)")
#else
#define X86_UNROLL _Pragma("GCC unroll 16")
#endif
#define X86_INLINE static inline __attribute__((always_inline))

#endif
