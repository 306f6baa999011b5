/* Attention of one token over the blocks of its context, rule 9 of rdu/README.md. */
#include "rdu/kernels/ref/ref.h"

#include "rdu/kernels/half.h"
#include "rdu/kernels/pack.h"

#include <math.h>

/* Element (t, d) of the keys of a block, as it was stored. */
static float load_key(enum rdu_kv_type type, const void *block, uint32_t n, uint32_t t, uint32_t d)
{
    size_t at = (size_t)d * RDU_KV_BLOCK + t;
    if (type == RDU_KV_F32)
        return ((const float *)block)[at];
    if (type == RDU_KV_F16)
        return rdu_half_load(((const uint16_t *)block)[at]);
    const int8_t *q = block;
    const uint16_t *scale = (const uint16_t *)(const void *)(q + (size_t)2 * RDU_KV_BLOCK * n);
    return rdu_half_load(scale[(size_t)(d / RDU_RUN) * RDU_KV_BLOCK + t]) * (float)q[at];
}

/* The same of the values, which follow. */
static float load_value(enum rdu_kv_type type, const void *block, uint32_t n, uint32_t t,
                        uint32_t d)
{
    size_t at = (size_t)RDU_KV_BLOCK * n + (size_t)t * n + d;
    if (type == RDU_KV_F32)
        return ((const float *)block)[at];
    if (type == RDU_KV_F16)
        return rdu_half_load(((const uint16_t *)block)[at]);
    const int8_t *q = block;
    const uint16_t *scale = (const uint16_t *)(const void *)(q + (size_t)2 * RDU_KV_BLOCK * n);
    size_t runs = (n + RDU_RUN - 1) / RDU_RUN;
    return rdu_half_load(scale[(RDU_KV_BLOCK + t) * runs + d / RDU_RUN]) * (float)q[at];
}

/* Scores of the visible slots [from, to) of one block; returns their maximum. */
static float block_scores(enum rdu_kv_type type, const struct rdu_attn_args *a, const float *q,
                          const void *block, uint32_t from, uint32_t to, float *s)
{
    float max = -INFINITY;
    for (uint32_t t = from; t < to; t++) {
        float sum = 0;
        for (uint32_t d = 0; d < a->head_dim; d++)
            sum = __builtin_fmaf(q[d], load_key(type, block, a->head_dim, t, d), sum);
        sum = sum * a->scale;
        if (a->softcap != 0.0f)
            sum = a->softcap * rdu_tanhf(sum / a->softcap);
        s[t] = sum;
        max = sum > max ? sum : max;
    }
    return max;
}

static float sum_slots(const float *p)
{
    float lane[16];
    for (unsigned i = 0; i < 16; i++)
        lane[i] = p[i] + p[i + 16];
    for (unsigned n = 8; n > 0; n /= 2)
        for (unsigned i = 0; i < n; i++)
            lane[i] += lane[i + n];
    return lane[0];
}

/* One head over one block, merged into (m, l, o). */
static void attend_block(enum rdu_kv_type type, const struct rdu_attn_args *a, uint32_t head,
                         const void *block, uint32_t from, uint32_t to)
{
    uint32_t n = a->head_dim;
    const float *q = a->q + (size_t)head * n;
    float *o = a->o + (size_t)head * n;
    float p[RDU_KV_BLOCK] = {0};
    float m_c = block_scores(type, a, q, block, from, to, p);
    for (uint32_t t = from; t < to; t++)
        p[t] = rdu_expf(p[t] - m_c);
    float l_c = sum_slots(p);
    float m = a->m[head], max = m_c > m ? m_c : m;
    float keep = m == -INFINITY ? 0.0f : rdu_expf(m - max), take = rdu_expf(m_c - max);
    a->l[head] = __builtin_fmaf(a->l[head], keep, l_c * take);
    a->m[head] = max;
    for (uint32_t d = 0; d < n; d++) {
        float sum = 0;
        for (uint32_t t = from; t < to; t++)
            sum = __builtin_fmaf(p[t], load_value(type, block, n, t, d), sum);
        o[d] = __builtin_fmaf(o[d], keep, sum * take);
    }
}

static void attn(enum rdu_kv_type type, const struct rdu_attn_args *a)
{
    for (uint32_t b = a->block_from; b < a->block_to; b++) {
        uint32_t first = b * RDU_KV_BLOCK;
        uint32_t from = a->pos_from > first ? a->pos_from - first : 0;
        uint32_t to = a->pos_to > first ? BASE_MIN(a->pos_to - first, (uint32_t)RDU_KV_BLOCK) : 0;
        for (uint32_t h = 0; from < to && h < a->heads; h++)
            attend_block(type, a, h, a->block[b], from, to);
    }
}

static void attn_f16(const struct rdu_attn_args *a)
{
    attn(RDU_KV_F16, a);
}

static void attn_f32(const struct rdu_attn_args *a)
{
    attn(RDU_KV_F32, a);
}

static void attn_q8_0(const struct rdu_attn_args *a)
{
    attn(RDU_KV_Q8_0, a);
}

static void attn_tile_f16(const struct rdu_attn_args *a, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        attn(RDU_KV_F16, &a[i]);
}

static void attn_tile_f32(const struct rdu_attn_args *a, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        attn(RDU_KV_F32, &a[i]);
}

static void attn_tile_q8_0(const struct rdu_attn_args *a, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        attn(RDU_KV_Q8_0, &a[i]);
}

static void kv_store_f16(void *block, uint32_t slot, uint32_t head_dim, const float *k,
                         const float *v)
{
    uint16_t *keys = block, *values = keys + (size_t)head_dim * RDU_KV_BLOCK;
    for (uint32_t d = 0; d < head_dim; d++) {
        keys[(size_t)d * RDU_KV_BLOCK + slot] = rdu_half_store(k[d]);
        values[(size_t)slot * head_dim + d] = rdu_half_store(v[d]);
    }
}

static void kv_store_f32(void *block, uint32_t slot, uint32_t head_dim, const float *k,
                         const float *v)
{
    float *keys = block, *values = keys + (size_t)head_dim * RDU_KV_BLOCK;
    for (uint32_t d = 0; d < head_dim; d++) {
        keys[(size_t)d * RDU_KV_BLOCK + slot] = k[d];
        values[(size_t)slot * head_dim + d] = v[d];
    }
}

/* One run of at most 32 dimensions to int8 elements `step` apart; returns their scale. */
static uint16_t store_run(const float *x, uint32_t n, int8_t *q, size_t step)
{
    float amax = 0;
    for (uint32_t i = 0; i < n; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    float d = amax / 127.0f;
    uint16_t scale = rdu_half_store(d < 65504.0f ? d : 65504.0f);
    float stored = rdu_half_load(scale), inverse = stored > 0.0f ? 1.0f / stored : 0.0f;
    for (uint32_t i = 0; i < n; i++) {
        float v = rintf(x[i] * inverse);
        v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
        q[i * step] = isnan(v) ? 0 : (int8_t)v;
    }
    return scale;
}

static void kv_store_q8_0(void *block, uint32_t slot, uint32_t head_dim, const float *k,
                          const float *v)
{
    int8_t *keys = block, *values = keys + (size_t)head_dim * RDU_KV_BLOCK;
    uint16_t *k_scale = (uint16_t *)(void *)(values + (size_t)head_dim * RDU_KV_BLOCK);
    size_t runs = (head_dim + RDU_RUN - 1) / RDU_RUN;
    uint16_t *v_scale = k_scale + RDU_KV_BLOCK * runs;
    for (uint32_t d = 0; d < head_dim; d += RDU_RUN) {
        uint32_t n = BASE_MIN(head_dim - d, (uint32_t)RDU_RUN), run = d / RDU_RUN;
        k_scale[(size_t)run * RDU_KV_BLOCK + slot] =
            store_run(k + d, n, keys + (size_t)d * RDU_KV_BLOCK + slot, RDU_KV_BLOCK);
        v_scale[(size_t)slot * runs + run] =
            store_run(v + d, n, values + (size_t)slot * head_dim + d, 1);
    }
}

void REF(rdu_ref_attn)(struct rdu_kernels *k)
{
    k->attn[RDU_KV_F16] = attn_f16;
    k->attn[RDU_KV_F32] = attn_f32;
    k->attn[RDU_KV_Q8_0] = attn_q8_0;
    k->attn_tile[RDU_KV_F16] = attn_tile_f16;
    k->attn_tile[RDU_KV_F32] = attn_tile_f32;
    k->attn_tile[RDU_KV_Q8_0] = attn_tile_q8_0;
    k->kv_store[RDU_KV_F16] = kv_store_f16;
    k->kv_store[RDU_KV_F32] = kv_store_f32;
    k->kv_store[RDU_KV_Q8_0] = kv_store_q8_0;
}
