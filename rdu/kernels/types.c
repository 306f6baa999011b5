/* The table of element types, conversions of whole rows, and the public f16 helpers. */
#include "rdu/kernels/half.h"
#include "rdu/kernels/quants.h"

#include <math.h>

static const struct rdu_type_info infos[RDU_TYPES] = {
    [RDU_F32] = {"F32", 0, 1, 4, true, true},
    [RDU_F16] = {"F16", 1, 1, 2, true, true},
    [RDU_BF16] = {"BF16", 30, 1, 2, true, true},
    [RDU_Q4_0] = {"Q4_0", 2, 32, 18, false, true},
    [RDU_Q4_1] = {"Q4_1", 3, 32, 20, false, true},
    [RDU_Q5_0] = {"Q5_0", 6, 32, 22, false, true},
    [RDU_Q5_1] = {"Q5_1", 7, 32, 24, false, true},
    [RDU_Q8_0] = {"Q8_0", 8, 32, 34, false, true},
    [RDU_Q2_K] = {"Q2_K", 10, 256, 84, false, true},
    [RDU_Q3_K] = {"Q3_K", 11, 256, 110, false, true},
    [RDU_Q4_K] = {"Q4_K", 12, 256, 144, false, true},
    [RDU_Q5_K] = {"Q5_K", 13, 256, 176, false, true},
    [RDU_Q6_K] = {"Q6_K", 14, 256, 210, false, true},
    [RDU_IQ1_S] = {"IQ1_S", 19, 256, 50, false, false},
    [RDU_IQ2_XXS] = {"IQ2_XXS", 16, 256, 66, false, false},
    [RDU_IQ2_XS] = {"IQ2_XS", 17, 256, 74, false, false},
    [RDU_IQ2_S] = {"IQ2_S", 22, 256, 82, false, false},
    [RDU_IQ3_XXS] = {"IQ3_XXS", 18, 256, 98, false, false},
    [RDU_IQ3_S] = {"IQ3_S", 21, 256, 110, false, false},
    [RDU_IQ4_NL] = {"IQ4_NL", 20, 32, 18, false, true},
    [RDU_IQ4_XS] = {"IQ4_XS", 23, 256, 136, false, true},
    [RDU_TQ1_0] = {"TQ1_0", 34, 256, 54, false, false},
    [RDU_TQ2_0] = {"TQ2_0", 35, 256, 66, false, false},
};

const struct rdu_type_info *rdu_type_info(enum rdu_type type)
{
    return (unsigned)type < RDU_TYPES ? &infos[type] : NULL;
}

bool rdu_type_from_gguf(int gguf_id, enum rdu_type *ret)
{
    for (unsigned i = 0; i < RDU_TYPES; i++) {
        if (infos[i].gguf_id == gguf_id) {
            *ret = (enum rdu_type)i;
            return true;
        }
    }
    return false;
}

float rdu_f16_to_f32(uint16_t h)
{
    return rdu_half_load(h);
}

uint16_t rdu_f32_to_f16(float f)
{
    return rdu_half_store(f);
}

static void dequant_f32(const uint8_t *src, float *dst, size_t blocks)
{
    memcpy(dst, src, blocks * sizeof *dst);
}

static void dequant_f16(const uint8_t *src, float *dst, size_t blocks)
{
    for (size_t i = 0; i < blocks; i++)
        dst[i] = rdu_half_load(rdu_load_u16(src + 2 * i));
}

static void dequant_bf16(const uint8_t *src, float *dst, size_t blocks)
{
    for (size_t i = 0; i < blocks; i++)
        dst[i] = rdu_bf16_load(rdu_load_u16(src + 2 * i));
}

static rdu_dequant_fn *const dequant_fns[RDU_TYPES] = {
    [RDU_F32] = dequant_f32,
    [RDU_F16] = dequant_f16,
    [RDU_BF16] = dequant_bf16,
    [RDU_Q4_0] = rdu_dequant_q4_0,
    [RDU_Q4_1] = rdu_dequant_q4_1,
    [RDU_Q5_0] = rdu_dequant_q5_0,
    [RDU_Q5_1] = rdu_dequant_q5_1,
    [RDU_Q8_0] = rdu_dequant_q8_0,
    [RDU_Q2_K] = rdu_dequant_q2_k,
    [RDU_Q3_K] = rdu_dequant_q3_k,
    [RDU_Q4_K] = rdu_dequant_q4_k,
    [RDU_Q5_K] = rdu_dequant_q5_k,
    [RDU_Q6_K] = rdu_dequant_q6_k,
    [RDU_IQ1_S] = rdu_dequant_iq1_s,
    [RDU_IQ2_XXS] = rdu_dequant_iq2_xxs,
    [RDU_IQ2_XS] = rdu_dequant_iq2_xs,
    [RDU_IQ2_S] = rdu_dequant_iq2_s,
    [RDU_IQ3_XXS] = rdu_dequant_iq3_xxs,
    [RDU_IQ3_S] = rdu_dequant_iq3_s,
    [RDU_IQ4_NL] = rdu_dequant_iq4_nl,
    [RDU_IQ4_XS] = rdu_dequant_iq4_xs,
    [RDU_TQ1_0] = rdu_dequant_tq1_0,
    [RDU_TQ2_0] = rdu_dequant_tq2_0,
};

void rdu_dequant_row(enum rdu_type type, const void *src, float *dst, size_t cols)
{
    dequant_fns[type](src, dst, cols / infos[type].block_elems);
}

static void quant_f32(const float *src, uint8_t *dst, size_t blocks)
{
    memcpy(dst, src, blocks * sizeof *src);
}

static void quant_f16(const float *src, uint8_t *dst, size_t blocks)
{
    for (size_t i = 0; i < blocks; i++) {
        uint16_t h = rdu_half_store(src[i]);
        memcpy(dst + 2 * i, &h, sizeof h);
    }
}

static void quant_bf16(const float *src, uint8_t *dst, size_t blocks)
{
    for (size_t i = 0; i < blocks; i++) {
        uint16_t h = rdu_bf16_store(src[i]);
        memcpy(dst + 2 * i, &h, sizeof h);
    }
}

static rdu_quant_fn *const quant_fns[RDU_TYPES] = {
    [RDU_F32] = quant_f32,       [RDU_F16] = quant_f16,       [RDU_BF16] = quant_bf16,
    [RDU_Q4_0] = rdu_quant_q4_0, [RDU_Q4_1] = rdu_quant_q4_1, [RDU_Q8_0] = rdu_quant_q8_0,
};

/* Blocks keep their scale and minimum in f16: anything beyond it would come back as infinity. */
static enum err_code check_quantizable(enum rdu_type type, const float *src, size_t cols,
                                       struct err *e)
{
    /* Largest magnitude whose scale still rounds to a finite f16 (65504 and less than half a step).
     */
    const double f16_max = 65519.0;
    double limit = type == RDU_Q8_0 ? f16_max * 127 : type == RDU_Q4_0 ? f16_max * 8 : f16_max;
    for (size_t i = 0; i < cols; i++) {
        double v = (double)src[i];
        if (!isfinite(v))
            return err_set(e, ERR_INVALID, "column %zu is %s: only finite values fit %s", i,
                           isnan(v) ? "not a number" : "infinite", infos[type].name);
        if (fabs(v) > limit)
            return err_set(e, ERR_INVALID, "column %zu is %g: %s scales end at %g; use BF16 or F32",
                           i, v, infos[type].name, limit);
    }
    return ERR_OK;
}

enum err_code rdu_quantize_row(enum rdu_type type, const float *src, void *dst, size_t cols,
                               struct err *e)
{
    if ((unsigned)type >= RDU_TYPES)
        return err_set(e, ERR_INVALID, "element type %d does not exist", (int)type);
    if (quant_fns[type] == NULL)
        return err_set(e, ERR_UNSUPPORTED,
                       "cannot quantise to %s; use Q8_0, Q4_0, Q4_1, F16, BF16 or F32",
                       infos[type].name);
    if (cols % infos[type].block_elems != 0)
        return err_set(e, ERR_INVALID, "%zu columns are no multiple of %s's blocks of %u", cols,
                       infos[type].name, infos[type].block_elems);
    if (!infos[type].is_float) {
        enum err_code rc = check_quantizable(type, src, cols, e);
        if (rc != ERR_OK)
            return rc;
    }
    quant_fns[type](src, dst, cols / infos[type].block_elems);
    return ERR_OK;
}

size_t rdu_kv_block_bytes(enum rdu_kv_type type, uint32_t head_dim)
{
    size_t elems = (size_t)2 * RDU_KV_BLOCK * head_dim;
    if (type == RDU_KV_Q8_0)
        return elems + (size_t)2 * RDU_KV_BLOCK * ((head_dim + 31) / 32) * sizeof(uint16_t);
    return elems * (type == RDU_KV_F16 ? 2 : 4);
}
