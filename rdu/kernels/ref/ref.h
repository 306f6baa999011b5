/* The scalar reference. Plain C, compiled twice: for the baseline and, on x86-64, once more with
 * fused multiply-add as an instruction; same source, same bits. RDU_REF is the suffix of the build.
 */
#ifndef SWITCHYARD_RDU_KERNELS_REF_H
#define SWITCHYARD_RDU_KERNELS_REF_H

#include "rdu/kernels/kernels.h"

#define RDU_REF_PASTE2(name, suffix) name##_##suffix
#define RDU_REF_PASTE(name, suffix) RDU_REF_PASTE2(name, suffix)
#define REF(name) RDU_REF_PASTE(name, RDU_REF)

/* Fill the slots that the file owns. */
void rdu_ref_mm_q8_base(struct rdu_kernels *k);
void rdu_ref_mm_f32_base(struct rdu_kernels *k);
void rdu_ref_attn_base(struct rdu_kernels *k);
void rdu_ref_rows_base(struct rdu_kernels *k);
void rdu_ref_peak_base(struct rdu_kernels *k);

void rdu_ref_mm_q8_fma(struct rdu_kernels *k);
void rdu_ref_mm_f32_fma(struct rdu_kernels *k);
void rdu_ref_attn_fma(struct rdu_kernels *k);
void rdu_ref_rows_fma(struct rdu_kernels *k);
void rdu_ref_peak_fma(struct rdu_kernels *k);

#endif
