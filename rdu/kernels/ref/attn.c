/* Attention of one token over the blocks of its context, rule 9 of rdu/README.md. */
#include "rdu/kernels/ref/ref.h"

#include "rdu/kernels/half.h"

#include <math.h>

static float kv_load(enum rdu_kv_type type, const void *block, size_t index)
{
    return type == RDU_KV_F32 ? ((const float *)block)[index]
                              : rdu_half_load(((const uint16_t *)block)[index]);
}

/* Scores of the visible slots [from, to) of one block; returns their maximum. */
static float block_scores(enum rdu_kv_type type, const struct rdu_attn_args *a, const float *q,
                          const void *block, uint32_t from, uint32_t to, float *s)
{
    float max = -INFINITY;
    for (uint32_t t = from; t < to; t++) {
        float sum = 0;
        for (uint32_t d = 0; d < a->head_dim; d++)
            sum = __builtin_fmaf(q[d], kv_load(type, block, d * RDU_KV_BLOCK + t), sum);
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
    size_t v = (size_t)RDU_KV_BLOCK * n; /* the values follow the keys */
    for (uint32_t d = 0; d < n; d++) {
        float sum = 0;
        for (uint32_t t = from; t < to; t++)
            sum = __builtin_fmaf(p[t], kv_load(type, block, v + (size_t)t * n + d), sum);
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

void REF(rdu_ref_attn)(struct rdu_kernels *k)
{
    k->attn[RDU_KV_F16] = attn_f16;
    k->attn[RDU_KV_F32] = attn_f32;
    k->attn_tile[RDU_KV_F16] = attn_tile_f16;
    k->attn_tile[RDU_KV_F32] = attn_tile_f32;
    k->kv_store[RDU_KV_F16] = kv_store_f16;
    k->kv_store[RDU_KV_F32] = kv_store_f32;
}
