/* y = W x with int8 activations, rule 6 of rdu/README.md, for every type that has the form. */
#include "rdu/kernels/ref/ref.h"

#include "rdu/kernels/pack.h"

/* Tokens that share one decoding of the weights. */
#define TILE 8

static void run_times_tokens(const struct rdu_run *w, bool has_min, bool split_min,
                             const struct rdu_q8 *x, size_t block, uint32_t token_from,
                             uint32_t tokens, float *acc)
{
    for (uint32_t t = 0; t < tokens; t++) {
        const int8_t *q = x->q + (token_from + t) * x->q_stride + block * RDU_RUN;
        size_t at = (token_from + t) * x->b_stride + block;
        int32_t dot = 0, half_sum[2] = {0, 0};
        for (unsigned i = 0; i < RDU_RUN; i++) {
            dot += w->q[i] * q[i];
            half_sum[i / 16] += q[i];
        }
        float d = x->d[at];
        acc[t] = __builtin_fmaf(w->d * d, (float)dot, acc[t]);
        if (split_min) {
            acc[t] = __builtin_fmaf(w->m[0], d * (float)half_sum[0], acc[t]);
            acc[t] = __builtin_fmaf(w->m[1], d * (float)half_sum[1], acc[t]);
        } else if (has_min) {
            acc[t] = __builtin_fmaf(w->m[0], x->s[at], acc[t]);
        }
    }
}

static void mm_q8(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                  uint32_t group_to, const struct rdu_q8 *x, uint32_t n_tokens, float *y,
                  size_t y_stride, bool add)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t packed_bytes = (size_t)info->block_bytes * RDU_GROUP;
    unsigned runs = info->block_elems / RDU_RUN;
    size_t blocks = cols / info->block_elems;
    bool has_min = rdu_type_has_min(type), split_min = type == RDU_Q2_K;
    for (uint32_t t0 = 0; t0 < n_tokens; t0 += TILE) {
        uint32_t tokens = BASE_MIN(n_tokens - t0, (uint32_t)TILE);
        for (uint32_t g = group_from; g < group_to; g++) {
            const uint8_t *group = (const uint8_t *)w + g * blocks * packed_bytes;
            float acc[RDU_GROUP][TILE] = {{0}};
            for (size_t i = 0; i < blocks * runs; i++) {
                for (unsigned r = 0; r < RDU_GROUP; r++) {
                    struct rdu_run run;
                    rdu_packed_run(type, group + i / runs * packed_bytes, r, (unsigned)(i % runs),
                                   &run);
                    run_times_tokens(&run, has_min, split_min, x, i, t0, tokens, acc[r]);
                }
            }
            for (uint32_t t = 0; t < tokens; t++) {
                float *out = y + (t0 + t) * y_stride + (size_t)g * RDU_GROUP;
                for (unsigned r = 0; r < RDU_GROUP; r++)
                    out[r] = add ? out[r] + acc[r][t] : acc[r][t];
            }
        }
    }
}

#define DEFINE_MM(name, type)                                                                      \
    static void name(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,         \
                     const struct rdu_q8 *x, uint32_t n_tokens, float *y, size_t y_stride,         \
                     bool add)                                                                     \
    {                                                                                              \
        mm_q8(type, w, cols, group_from, group_to, x, n_tokens, y, y_stride, add);                 \
    }
DEFINE_MM(mm_q4_0, RDU_Q4_0)
DEFINE_MM(mm_q4_1, RDU_Q4_1)
DEFINE_MM(mm_q5_0, RDU_Q5_0)
DEFINE_MM(mm_q5_1, RDU_Q5_1)
DEFINE_MM(mm_q8_0, RDU_Q8_0)
DEFINE_MM(mm_q2_k, RDU_Q2_K)
DEFINE_MM(mm_q3_k, RDU_Q3_K)
DEFINE_MM(mm_q4_k, RDU_Q4_K)
DEFINE_MM(mm_q5_k, RDU_Q5_K)
DEFINE_MM(mm_q6_k, RDU_Q6_K)

void REF(rdu_ref_mm_q8)(struct rdu_kernels *k)
{
    k->mm_q8[RDU_Q4_0] = mm_q4_0;
    k->mm_q8[RDU_Q4_1] = mm_q4_1;
    k->mm_q8[RDU_Q5_0] = mm_q5_0;
    k->mm_q8[RDU_Q5_1] = mm_q5_1;
    k->mm_q8[RDU_Q8_0] = mm_q8_0;
    k->mm_q8[RDU_Q2_K] = mm_q2_k;
    k->mm_q8[RDU_Q3_K] = mm_q3_k;
    k->mm_q8[RDU_Q4_K] = mm_q4_k;
    k->mm_q8[RDU_Q5_K] = mm_q5_k;
    k->mm_q8[RDU_Q6_K] = mm_q6_k;
}
