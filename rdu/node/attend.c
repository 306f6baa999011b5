/* Launches around the KV pages: rotating and appending K and V, and attention over the pages. */
#include <math.h>
#include <string.h>

#include "rdu/node/run.h"

/* The block that holds position `pos` of a kv head, for token t's sequence. */
static void *kv_block(const struct run *r, uint32_t t, uint32_t pos, uint32_t kv_head)
{
    uint32_t page_tokens = r->a->kv_page_tokens;
    size_t block_bytes = rdu_kv_block_bytes(r->a->kv_type, r->p->head_dim);
    size_t blocks = page_tokens / RDU_KV_BLOCK;
    char *page = r->a->kv_pages[r->a->seq[t]][pos / page_tokens];
    size_t idx =
        ((size_t)r->layer * r->p->kv_heads + kv_head) * blocks + pos % page_tokens / RDU_KV_BLOCK;
    return page + idx * block_bytes;
}

static void rope_row(const struct run *r, const struct rdu_launch *l, float *x, uint32_t t,
                     uint32_t heads)
{
    size_t at = (size_t)r->a->pos[t] * (l->rot / 2);
    r->k->rope(x, l->cos_table + at, l->sin_table + at, heads, l->head_dim, l->rot, l->rope);
}

static void append_row(const struct run *r, const float *k, const float *v, uint32_t t)
{
    uint32_t pos = r->a->pos[t], head_dim = r->p->head_dim;
    for (uint32_t h = 0; h < r->p->kv_heads; h++)
        r->k->kv_store[r->a->kv_type](kv_block(r, t, pos, h), pos % RDU_KV_BLOCK, head_dim,
                                      k + h * head_dim, v + h * head_dim);
}

/* ROPE, ROPE_APPEND and APPEND differ only in which of their halves they have. */
void node_run_rope_append(struct run *r, const struct rdu_launch *l)
{
    bool rope = l->kernel != RDU_KERNEL_APPEND, append = l->kernel != RDU_KERNEL_ROPE;
    size_t q_stride = 0, k_stride = 0, v_stride = 0;
    float *q = rope ? node_f32_of(r, l->in[0], &q_stride) : NULL;
    float *k = append ? node_f32_of(r, l->in[1], &k_stride) : NULL;
    const float *v = append ? node_f32_of(r, l->in[2], &v_stride) : NULL;
    uint32_t from, to;
    node_share_rows(r, r->a->n_tokens, false, &from, &to);
    for (uint32_t t = from; t < to; t++) {
        if (rope)
            rope_row(r, l, q + t * q_stride, t, l->heads);
        if (rope && append)
            rope_row(r, l, k + t * k_stride, t, l->kv_heads);
        if (append)
            append_row(r, k + t * k_stride, v + t * v_stride, t);
    }
}

/* Addresses of a kv head's blocks are gathered in runs of this many (2,048 positions). */
#define BLOCK_RUN 64

/* What one attention item covers: `tokens` tokens from t, consecutive positions of one sequence,
 * and `heads` q heads from head_from, all of one kv head. */
struct attn_item {
    uint32_t t, tokens, head_from, heads;
};

/* State of token i of an item: m and l [heads], then o [heads, head_dim]. */
static float *attn_state(const struct run *r, const struct rdu_attention_options *opt,
                         const struct attn_item *it, uint32_t i)
{
    return r->w->attn_state + (size_t)i * it->heads * (2 + opt->head_dim);
}

/* Positions below this one are visible to token t. */
static uint32_t visible_end(const struct run *r, const struct rdu_attention_options *opt,
                            uint32_t t)
{
    return (opt->bidirectional ? r->a->ends[t] : r->a->pos[t]) + 1;
}

static uint32_t visible_from(const struct run *r, const struct rdu_attention_options *opt,
                             uint32_t t)
{
    uint32_t window = opt->windowed && r->a->window ? r->a->window[r->layer] : 0;
    uint32_t end = visible_end(r, opt, t);
    return window && end > window ? end - window : 0;
}

/* Token i's share of the blocks [base, base + count * RDU_KV_BLOCK), counted from base. */
static void fill_attn_args(const struct run *r, const struct rdu_attention_options *opt,
                           const struct attn_item *it, uint32_t i, uint32_t base, uint32_t count,
                           struct rdu_attn_args *a)
{
    uint32_t t = it->t + i, begin = visible_from(r, opt, t), end = visible_end(r, opt, t);
    float *state = attn_state(r, opt, it, i);
    a->pos_from = begin > base ? begin - base : 0;
    a->pos_to = end > base ? BASE_MIN(end - base, count * RDU_KV_BLOCK) : 0;
    if (a->pos_from >= a->pos_to)
        a->pos_from = a->pos_to = 0; /* sees nothing of this run */
    a->block_from = a->pos_from / RDU_KV_BLOCK;
    a->block_to = (a->pos_to + RDU_KV_BLOCK - 1) / RDU_KV_BLOCK;
    a->m = state;
    a->l = state + it->heads;
    a->o = state + 2 * it->heads;
}

static void start_attn(const struct run *r, const struct rdu_attention_options *opt,
                       const struct attn_item *it)
{
    for (uint32_t i = 0; i < it->tokens; i++) {
        float *state = attn_state(r, opt, it, i);
        for (uint32_t h = 0; h < it->heads; h++) {
            state[h] = -INFINITY;
            state[it->heads + h] = 0;
        }
        memset(state + 2 * it->heads, 0, it->heads * opt->head_dim * sizeof(float));
    }
}

/* The whole visible context of an item in runs of blocks. q points at token t's head head_from. */
static void attend(const struct run *r, const struct rdu_attention_options *opt,
                   const struct attn_item *it, const float *q, size_t q_stride)
{
    uint32_t kv_head = it->head_from / (opt->heads / opt->kv_heads);
    uint32_t end = visible_end(r, opt, it->t + it->tokens - 1),
             first = visible_from(r, opt, it->t) / RDU_KV_BLOCK;
    start_attn(r, opt, it);
    for (; first * RDU_KV_BLOCK < end; first += BLOCK_RUN) {
        const void *block[BLOCK_RUN];
        struct rdu_attn_args args[NODE_ATTN_TILE];
        uint32_t base = first * RDU_KV_BLOCK;
        uint32_t count = BASE_MIN((end - base + RDU_KV_BLOCK - 1) / RDU_KV_BLOCK, BLOCK_RUN);
        for (uint32_t i = 0; i < count; i++)
            block[i] = kv_block(r, it->t, base + i * RDU_KV_BLOCK, kv_head);
        for (uint32_t i = 0; i < it->tokens; i++) {
            args[i] = (struct rdu_attn_args){.q = q + i * q_stride,
                                             .block = block,
                                             .heads = it->heads,
                                             .head_dim = opt->head_dim,
                                             .scale = opt->scale,
                                             .softcap = opt->softcap};
            fill_attn_args(r, opt, it, i, base, count, &args[i]);
        }
        if (it->tokens == 1)
            r->k->attn[r->a->kv_type](args);
        else
            r->k->attn_tile[r->a->kv_type](args, it->tokens);
    }
}

static void finish_attn(const struct run *r, const struct rdu_attention_options *opt,
                        const struct attn_item *it, float *y, size_t y_stride, struct rdu_q8 q8)
{
    uint32_t hd = opt->head_dim;
    node_count_gather(r, it->heads * hd, it->tokens, q8.q != NULL);
    for (uint32_t i = 0; i < it->tokens; i++) {
        const float *l = attn_state(r, opt, it, i) + it->heads, *o = l + it->heads;
        float *out = y + (it->t + i) * y_stride + it->head_from * hd;
        for (uint32_t h = 0; h < it->heads; h++)
            for (uint32_t d = 0; d < hd; d++)
                out[h * hd + d] = o[h * hd + d] / l[h];
        if (q8.q)
            node_quantize_part(r, out, it->heads * hd, q8, it->t + i, it->head_from * hd);
    }
}

/* Tokens from t on that are consecutive positions of one sequence, at most a tile. */
static uint32_t tile_tokens(const struct run *r, uint32_t t)
{
    uint32_t n = 1;
    while (n < NODE_ATTN_TILE && t + n < r->a->n_tokens && r->a->seq[t + n] == r->a->seq[t] &&
           r->a->pos[t + n] == r->a->pos[t] + n)
        n++;
    return n;
}

/* The heads [head, head + per_item) of `tokens` tokens from t. */
static void attend_item(const struct run *r, const struct rdu_launch *l, uint32_t t,
                        uint32_t tokens, uint32_t head, uint32_t heads)
{
    size_t q_stride, y_stride;
    const float *q = node_f32_of(r, l->in[0], &q_stride);
    float *y = node_f32_of(r, l->out[0], &y_stride);
    struct attn_item it = {t, tokens, head, heads};
    attend(r, &l->attention, &it, q + t * q_stride + head * l->attention.head_dim, q_stride);
    finish_attn(r, &l->attention, &it, y, y_stride, node_q8_of(r, l->out[1]));
}

/* Few tokens: an equal run of (token, head) pairs for each worker, cut where the kv head changes,
 * so that heads of a worker that share K and V read them once. */
static void attend_pairs(const struct run *r, const struct rdu_launch *l)
{
    uint32_t heads = l->attention.heads, group = heads / l->attention.kv_heads, at, to;
    node_share_rows(r, r->a->n_tokens * heads, false, &at, &to);
    while (at < to) {
        uint32_t head = at % heads, n = BASE_MIN(group - head % group, to - at);
        attend_item(r, l, at / heads, 1, head, n);
        at += n;
    }
}

/* Items are (tokens, kv head): the heads of a group and the tokens of a tile share each load of K
 * and V. Fewer items than would balance the workers are cut between heads, where a head's output
 * still is whole int8 blocks. */
void node_run_attention(struct run *r, const struct rdu_launch *l)
{
    const struct rdu_attention_options *opt = &l->attention;
    uint32_t tokens = r->a->n_tokens, group = opt->heads / opt->kv_heads, item = 0;
    if (r->threads > 1 && tokens * opt->kv_heads < 8 * r->threads && opt->head_dim % 32 == 0) {
        attend_pairs(r, l);
        return;
    }
    for (uint32_t t = 0, n; t < tokens; t += n) {
        n = tile_tokens(r, t);
        for (uint32_t head = 0; head < opt->heads; head += group)
            if (item++ % r->threads == r->thread_idx)
                attend_item(r, l, t, n, head, group);
    }
}
