/* y = W x with f32 activations, rule 5 of rdu/README.md, for every type. */
#include "rdu/kernels/ref/ref.h"

#include "rdu/kernels/pack.h"

#define TILE 8

/* Columns [col, col + n) of a group as [n][8] f32; col and n stay inside one raw block unless the
 * type has blocks of one element. `values` caches the decoded super-block [8][256] between its
 * runs. */
static void load_run(enum rdu_type type, const uint8_t *group, size_t col, unsigned n,
                     float (*values)[RDU_BLOCK_ELEMS_MAX], float (*ret)[RDU_GROUP])
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t packed_bytes = (size_t)info->block_bytes * RDU_GROUP;
    const uint8_t *packed = group + col / info->block_elems * packed_bytes;
    if (info->is_float) {
        for (unsigned i = 0; i < n * RDU_GROUP; i++)
            rdu_dequant_row(type, packed + (size_t)i * info->block_bytes,
                            &ret[i / RDU_GROUP][i % RDU_GROUP], 1);
        return;
    }
    unsigned first = (unsigned)(col % info->block_elems);
    for (unsigned r = 0; r < RDU_GROUP; r++) {
        if (first == 0) {
            uint8_t raw[RDU_BLOCK_BYTES_MAX];
            rdu_unpack_block(type, packed, r, raw);
            rdu_dequant_row(type, raw, values[r], info->block_elems);
        }
        for (unsigned i = 0; i < n; i++)
            ret[i][r] = values[r][first + i];
    }
}

static void mm_f32(enum rdu_type type, const void *w, uint32_t cols, uint32_t group_from,
                   uint32_t group_to, const float *x, size_t x_stride, uint32_t n_tokens, float *y,
                   size_t y_stride, bool add)
{
    size_t group_bytes = rdu_pack_bytes(type, RDU_GROUP, cols);
    float values[RDU_GROUP][RDU_BLOCK_ELEMS_MAX], run[RDU_RUN][RDU_GROUP];
    for (uint32_t t0 = 0; t0 < n_tokens; t0 += TILE) {
        uint32_t tokens = BASE_MIN(n_tokens - t0, (uint32_t)TILE);
        for (uint32_t g = group_from; g < group_to; g++) {
            float acc[TILE][RDU_GROUP] = {{0}};
            for (uint32_t c = 0; c < cols; c += RDU_RUN) {
                unsigned n = BASE_MIN(cols - c, (uint32_t)RDU_RUN);
                load_run(type, (const uint8_t *)w + g * group_bytes, c, n, values, run);
                for (uint32_t t = 0; t < tokens; t++) {
                    const float *in = x + (t0 + t) * x_stride + c;
                    float p[RDU_GROUP] = {0};
                    for (unsigned i = 0; i < n; i++)
                        for (unsigned r = 0; r < RDU_GROUP; r++)
                            p[r] = __builtin_fmaf(run[i][r], in[i], p[r]);
                    for (unsigned r = 0; r < RDU_GROUP; r++)
                        acc[t][r] += p[r];
                }
            }
            for (uint32_t t = 0; t < tokens; t++) {
                float *out = y + (t0 + t) * y_stride + (size_t)g * RDU_GROUP;
                for (unsigned r = 0; r < RDU_GROUP; r++)
                    out[r] = add ? out[r] + acc[t][r] : acc[t][r];
            }
        }
    }
}

#define DEFINE_MM(name, type)                                                                      \
    static void name(const void *w, uint32_t cols, uint32_t group_from, uint32_t group_to,         \
                     const float *x, size_t x_stride, uint32_t n_tokens, float *y,                 \
                     size_t y_stride, bool add)                                                    \
    {                                                                                              \
        mm_f32(type, w, cols, group_from, group_to, x, x_stride, n_tokens, y, y_stride, add);      \
    }
DEFINE_MM(mm_f32_, RDU_F32)
DEFINE_MM(mm_f16, RDU_F16)
DEFINE_MM(mm_bf16, RDU_BF16)
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
DEFINE_MM(mm_iq1_s, RDU_IQ1_S)
DEFINE_MM(mm_iq2_xxs, RDU_IQ2_XXS)
DEFINE_MM(mm_iq2_xs, RDU_IQ2_XS)
DEFINE_MM(mm_iq2_s, RDU_IQ2_S)
DEFINE_MM(mm_iq3_xxs, RDU_IQ3_XXS)
DEFINE_MM(mm_iq3_s, RDU_IQ3_S)
DEFINE_MM(mm_iq4_nl, RDU_IQ4_NL)
DEFINE_MM(mm_iq4_xs, RDU_IQ4_XS)
DEFINE_MM(mm_tq1_0, RDU_TQ1_0)
DEFINE_MM(mm_tq2_0, RDU_TQ2_0)

void REF(rdu_ref_mm_f32)(struct rdu_kernels *k)
{
    static rdu_mm_f32_fn *const fns[RDU_TYPES] = {
        [RDU_F32] = mm_f32_,      [RDU_F16] = mm_f16,       [RDU_BF16] = mm_bf16,
        [RDU_Q4_0] = mm_q4_0,     [RDU_Q4_1] = mm_q4_1,     [RDU_Q5_0] = mm_q5_0,
        [RDU_Q5_1] = mm_q5_1,     [RDU_Q8_0] = mm_q8_0,     [RDU_Q2_K] = mm_q2_k,
        [RDU_Q3_K] = mm_q3_k,     [RDU_Q4_K] = mm_q4_k,     [RDU_Q5_K] = mm_q5_k,
        [RDU_Q6_K] = mm_q6_k,     [RDU_IQ1_S] = mm_iq1_s,   [RDU_IQ2_XXS] = mm_iq2_xxs,
        [RDU_IQ2_XS] = mm_iq2_xs, [RDU_IQ2_S] = mm_iq2_s,   [RDU_IQ3_XXS] = mm_iq3_xxs,
        [RDU_IQ3_S] = mm_iq3_s,   [RDU_IQ4_NL] = mm_iq4_nl, [RDU_IQ4_XS] = mm_iq4_xs,
        [RDU_TQ1_0] = mm_tq1_0,   [RDU_TQ2_0] = mm_tq2_0,
    };
    for (unsigned i = 0; i < RDU_TYPES; i++)
        k->mm_f32[i] = fns[i];
}
