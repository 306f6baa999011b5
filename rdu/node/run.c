/* Running launches. Every worker walks the same list; a launch splits its output over the sockets
 * by the stencil of its kernel: rows (matmul), tokens (norm, rope, embed) or (token, head) pairs
 * (attention), and a barrier ends it. Small steps are different: with a handful of tokens each
 * socket normalises and quantises the whole broadcast input for itself, as the chip's sockets do,
 * which saves a barrier for less than a microsecond of work; see is_broadcast. */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "rdu/node/run.h"
#include "rdu/opt/opt.h"

/* ---- buffers ------------------------------------------------------------------------------------
 */

static bool buf_is_local(const struct run *r, uint32_t id)
{
    return id < 256 && (r->local_bits[id / 64] >> (id % 64) & 1);
}

static void buf_mark(struct run *r, uint32_t id, bool local)
{
    if (id >= 256)
        return;
    uint64_t bit = (uint64_t)1 << (id % 64);
    r->local_bits[id / 64] = local ? r->local_bits[id / 64] | bit : r->local_bits[id / 64] & ~bit;
}

static uint32_t rows_of(const struct run *r, uint32_t id)
{
    if (id == RDU_BUF_X)
        return r->a->n_tokens;
    if (id == RDU_BUF_LOGITS)
        return r->a->n_outs;
    return r->p->bufs[id].per_out ? r->a->n_outs : r->a->n_tokens;
}

float *node_f32_of(const struct run *r, uint32_t id, size_t *ret_stride)
{
    if (id == RDU_BUF_X) {
        *ret_stride = (r->p->width + 15u) & ~15u;
        return r->a->x;
    }
    if (id == RDU_BUF_LOGITS) {
        *ret_stride = r->a->logits_stride;
        return r->a->logits;
    }
    *ret_stride = rdu_buf_stride(&r->p->bufs[id]);
    char *arena = buf_is_local(r, id) ? r->w->local_arena : r->n->arena;
    return (float *)rdu_buf_base(r->p, arena, id, r->a->n_tokens);
}

static uint32_t width_of(const struct run *r, uint32_t id)
{
    if (id == RDU_BUF_X)
        return r->p->width;
    return id == RDU_BUF_LOGITS ? r->p->vocab : r->p->bufs[id].width;
}

/* A view without data (q == NULL) where the launch has no int8 operand. */
struct rdu_q8 node_q8_of(const struct run *r, uint32_t id)
{
    struct rdu_q8 v = {0};
    if (id == RDU_BUF_NONE)
        return v;
    const struct rdu_buf *b = &r->p->bufs[id];
    char *arena = buf_is_local(r, id) ? r->w->local_arena : r->n->arena;
    char *base = rdu_buf_base(r->p, arena, id, r->a->n_tokens);
    size_t rows = rows_of(r, id);
    v.q_stride = (b->width + 63u) & ~63u;
    v.b_stride = ((b->width + 31u) / 32 + 15u) & ~15u;
    v.q = (int8_t *)base;
    v.d = (float *)(base + rows * v.q_stride);
    v.s = v.d + rows * v.b_stride;
    return v;
}

static struct rdu_q8 q8_rows(struct rdu_q8 v, uint32_t row)
{
    v.q += row * v.q_stride;
    v.d += row * v.b_stride;
    v.s += row * v.b_stride;
    return v;
}

/* Quantise columns [col, col + n) of row t; col is a multiple of 32. */
void node_quantize_part(const struct run *r, const float *x, uint32_t n, struct rdu_q8 v,
                        uint32_t t, uint32_t col)
{
    v = q8_rows(v, t);
    r->k->quantize(x, n, v.q + col, v.d + col / 32, v.s + col / 32);
}

/* ---- who does what
 * --------------------------------------------------------------------------------- */

/* The units (row groups, or runs of them) of the sockets this worker plays. */
static void shard(const struct run *r, uint32_t units, uint32_t *ret_from, uint32_t *ret_to)
{
    uint64_t s = r->n->opt.sockets;
    uint64_t socket_from = r->thread_idx * s / r->threads;
    uint64_t socket_to = (r->thread_idx + 1) * s / r->threads;
    *ret_from = (uint32_t)(units * socket_from / s);
    *ret_to = (uint32_t)(units * socket_to / s);
}

/* Row groups of this worker; whole runs of 32 rows when the rows are quantised right after. */
static void shard_groups(const struct run *r, uint32_t rows, bool blocks, uint32_t *ret_from,
                         uint32_t *ret_to)
{
    uint32_t groups = (rows + RDU_GROUP - 1) / RDU_GROUP;
    if (!blocks) {
        shard(r, groups, ret_from, ret_to);
        return;
    }
    uint32_t from, to, units = (groups + 3) / 4;
    shard(r, units, &from, &to);
    *ret_from = BASE_MIN(from * 4, groups);
    *ret_to = BASE_MIN(to * 4, groups);
}

/* Rows (tokens) of this worker for row-wise kernels; all of them when the launch is broadcast. */
void node_share_rows(const struct run *r, uint32_t rows, bool broadcast, uint32_t *ret_from,
                     uint32_t *ret_to)
{
    *ret_from = broadcast ? 0 : (uint32_t)((uint64_t)rows * r->thread_idx / r->threads);
    *ret_to = broadcast ? rows : (uint32_t)((uint64_t)rows * (r->thread_idx + 1) / r->threads);
}

/* Row-wise launches over inputs that every worker can see whole, with few rows: each worker
 * computes its own copy and no barrier is needed after. Inputs in the shared arena do not qualify:
 * a faster worker's next launch might reuse their space while a slower one still reads. */
static bool is_broadcast(const struct run *r, const struct rdu_launch *l)
{
    if (l->kernel != RDU_KERNEL_NORM && l->kernel != RDU_KERNEL_QUANTIZE &&
        l->kernel != RDU_KERNEL_TAKE_OUTS)
        return false;
    if (r->a->n_tokens > NODE_LOCAL_TOKENS || r->threads == 1 || r->interpreted)
        return false;
    return l->in[0] == RDU_BUF_X || buf_is_local(r, l->in[0]);
}

static bool writes_x(const struct rdu_launch *l)
{
    for (int i = 0; i < 4; i++)
        if (l->out[i] == RDU_BUF_X)
            return true;
    return false;
}

/* ---- matmul
 * ------------------------------------------------------------------------------------------ */

static const struct rdu_weight *weight_of(const struct run *r, uint32_t slot)
{
    if (r->global_slots)
        return &r->a->globals[slot];
    return &r->a->layers[(size_t)r->layer * r->p->layer_slots.count + slot];
}

/* `width` values of `tokens` tokens go to all other sockets, in int8 form if they are quantised. */
void node_count_gather(const struct run *r, uint32_t width, uint32_t tokens, bool q8)
{
    if (r->n->opt.sockets > 1)
        r->w->gather_bytes += opt_value_bytes((struct opt_value){width, q8}) * tokens;
}

/* Both forms of a matmul's input. q8.q == NULL in f32 programs. */
struct operand {
    const float *x;
    size_t x_stride;
    struct rdu_q8 q8;
    uint32_t cols;
};

static struct operand operand_of(const struct run *r, const struct rdu_launch *l)
{
    struct operand o = {.cols = width_of(r, l->in[0])};
    o.x = node_f32_of(r, l->in[0], &o.x_stride);
    o.q8 = node_q8_of(r, l->in[1]);
    return o;
}

static void mm_packed(const struct run *r, enum rdu_type type, const void *data,
                      const struct operand *o, uint32_t t, uint32_t tokens, uint32_t from,
                      uint32_t to, float *y, size_t stride, bool add)
{
    if (from >= to)
        return;
    if (o->q8.q && r->k->mm_q8[type]) {
        struct rdu_q8 q = q8_rows(o->q8, t);
        r->k->mm_q8[type](data, o->cols, from, to, &q, tokens, y, stride, add);
    } else {
        r->k->mm_f32[type](data, o->cols, from, to, o->x + t * o->x_stride, o->x_stride, tokens, y,
                           stride, add);
    }
}

/* y rows of tokens [t, t + tokens) for the row groups [from, to) of a weight, whole or in chunks.
 */
static void mm(const struct run *r, const struct rdu_weight *w, const struct operand *o, uint32_t t,
               uint32_t tokens, uint32_t from, uint32_t to, float *y, size_t stride, bool add)
{
    if (t == 0 && from < to) /* tiles of tokens read the same weights again, from cache */
        r->w->weight_bytes += rdu_pack_bytes(w->type, (size_t)(to - from) * RDU_GROUP, w->cols);
    if (w->chunk == NULL) {
        mm_packed(r, w->type, w->data, o, t, tokens, from, to, y, stride, add);
        return;
    }
    uint32_t per_chunk = w->chunk_rows / RDU_GROUP;
    for (uint32_t c = from / per_chunk; c * per_chunk < to; c++) {
        uint32_t first = c * per_chunk;
        uint32_t lo = BASE_MAX(from, first) - first, hi = BASE_MIN(to - first, per_chunk);
        mm_packed(r, w->type, w->chunk[c], o, t, tokens, lo, hi, y + (size_t)first * RDU_GROUP,
                  stride, add);
    }
}

static bool group_touches(const struct run *r, const struct rdu_token_group *g, uint32_t slot)
{
    size_t idx = (size_t)r->layer * r->p->layer_slots.count + slot;
    for (uint32_t i = 0; i < g->adapters_count; i++)
        if (g->deltas[i][idx].a)
            return true;
    return false;
}

static bool any_touches(const struct run *r, uint32_t slot)
{
    if (r->global_slots)
        return false;
    for (uint32_t i = 0; i < r->a->groups_count; i++)
        if (group_touches(r, &r->a->groups[i], slot))
            return true;
    return false;
}

/* y[t][rows of groups from..to) = fma(scale, B (A x), y) for `tokens` tokens from t, at most
 * NODE_TILE; y points at token t's row 0. Every socket computes the few rows of A x for itself:
 * cheaper than a barrier, and what broadcast input means. */
static void delta_tile(const struct run *r, const struct rdu_delta *d, const struct operand *o,
                       uint32_t t, uint32_t tokens, uint32_t from, uint32_t to, float *y,
                       size_t stride)
{
    size_t u_stride = NODE_RANK_MAX, v_stride = r->n->tile_rows;
    float *u = r->w->delta_u, *v = r->w->delta_v;
    r->k->mm_f32[d->a_type](d->a, o->cols, 0, (d->rank + RDU_GROUP - 1) / RDU_GROUP,
                            o->x + t * o->x_stride, o->x_stride, tokens, u, u_stride, false);
    r->k->mm_f32[d->b_type](d->b, d->rank, from, to, u, u_stride, tokens, v, v_stride, false);
    uint32_t row = from * RDU_GROUP, rows = (to - from) * RDU_GROUP;
    for (uint32_t i = 0; i < tokens; i++)
        r->k->axpy(d->scale, v + i * v_stride + row, rows, y + i * stride + row);
}

/* The deltas of tokens [t, t + tokens) on y (row 0 = token t). */
static void deltas(const struct run *r, uint32_t slot, const struct operand *o, uint32_t t,
                   uint32_t tokens, uint32_t from, uint32_t to, float *y, size_t stride)
{
    size_t idx = (size_t)r->layer * r->p->layer_slots.count + slot;
    if (from >= to)
        return;
    for (uint32_t gi = 0; gi < r->a->groups_count; gi++) {
        const struct rdu_token_group *g = &r->a->groups[gi];
        uint32_t lo = BASE_MAX(t, g->token_from);
        uint32_t hi = BASE_MIN(t + tokens, g->token_from + g->token_count);
        for (uint32_t i = 0; i < g->adapters_count; i++) {
            const struct rdu_delta *d = &g->deltas[i][idx];
            for (uint32_t at = lo; d->a && at < hi; at += NODE_TILE)
                delta_tile(r, d, o, at, BASE_MIN(hi - at, NODE_TILE), from, to,
                           y + (at - t) * stride, stride);
        }
    }
}

/* Residual form with adapters: the base product must take its deltas before it is added to x. */
static void matmul_add_with_deltas(const struct run *r, const struct rdu_launch *l,
                                   const struct operand *o, uint32_t from, uint32_t to, float *y,
                                   size_t stride)
{
    const struct rdu_weight *w = weight_of(r, l->slot[0]);
    uint32_t tokens = rows_of(r, l->out[0]), row = from * RDU_GROUP, rows = (to - from) * RDU_GROUP;
    float *tile = r->w->delta_y;
    size_t tile_stride = r->n->tile_rows;
    if (from >= to)
        return;
    for (uint32_t t = 0; t < tokens; t += NODE_TILE) {
        uint32_t n = BASE_MIN(tokens - t, NODE_TILE);
        mm(r, w, o, t, n, from, to, tile, tile_stride, false);
        deltas(r, l->slot[0], o, t, n, from, to, tile, tile_stride);
        for (uint32_t i = 0; i < n; i++) {
            float *dst = y + (t + i) * stride + row;
            r->k->add(dst, tile + i * tile_stride + row, rows, dst);
        }
    }
}

static void run_matmul(struct run *r, const struct rdu_launch *l)
{
    struct operand o = operand_of(r, l);
    for (uint32_t i = 0; i < l->slots; i++) {
        const struct rdu_weight *w = weight_of(r, l->slot[i]);
        uint32_t from, to, tokens = rows_of(r, l->out[i]);
        size_t stride;
        float *y = node_f32_of(r, l->out[i], &stride);
        shard_groups(r, w->rows, false, &from, &to);
        node_count_gather(r,
                          BASE_MIN(to * RDU_GROUP, w->rows) - BASE_MIN(from * RDU_GROUP, w->rows),
                          tokens, false);
        bool touched = any_touches(r, l->slot[i]);
        if (l->add && touched) {
            matmul_add_with_deltas(r, l, &o, from, to, y, stride);
            continue;
        }
        mm(r, w, &o, 0, tokens, from, to, y, stride, l->add);
        if (touched)
            deltas(r, l->slot[i], &o, 0, tokens, from, to, y, stride);
    }
}

/* gate and up, the activation, and its quantisation by the rows' own socket: nothing leaves the
 * socket but h. Tokens go in tiles so that gate and up stay in cache between the two. */
#define GATE_TILE 32
static void run_gate_up(struct run *r, const struct rdu_launch *l)
{
    struct operand o = operand_of(r, l);
    uint32_t tokens = rows_of(r, l->out[0]), width = width_of(r, l->out[0]);
    uint32_t from, to;
    size_t stride[2], h_stride;
    float *y[2] = {node_f32_of(r, l->out[2], &stride[0]), node_f32_of(r, l->out[3], &stride[1])};
    float *h = node_f32_of(r, l->out[0], &h_stride);
    struct rdu_q8 q = node_q8_of(r, l->out[1]);
    shard_groups(r, width, true, &from, &to);
    uint32_t row = from * RDU_GROUP, rows = BASE_MIN(to * RDU_GROUP, width) - row;
    if (from >= to)
        return;
    node_count_gather(r, rows, tokens, q.q != NULL);
    for (uint32_t t = 0; t < tokens; t += GATE_TILE) {
        uint32_t n = BASE_MIN(tokens - t, GATE_TILE);
        for (int i = 0; i < 2; i++) {
            float *dst = y[i] + t * stride[i];
            mm(r, weight_of(r, l->slot[i]), &o, t, n, from, to, dst, stride[i], false);
            if (any_touches(r, l->slot[i]))
                deltas(r, l->slot[i], &o, t, n, from, to, dst, stride[i]);
        }
        for (uint32_t at = t; at < t + n; at++) {
            const float *gate = y[0] + at * stride[0] + row, *up = y[1] + at * stride[1] + row;
            float *dst = h + at * h_stride + row;
            (l->act == RDU_ACT_GELU ? r->k->gelu_mul : r->k->silu_mul)(gate, up, rows, dst);
            if (q.q)
                node_quantize_part(r, dst, rows, q, at, row);
        }
    }
}

/* ---- row-wise kernels
 * ------------------------------------------------------------------------------------ */

static void run_embed(struct run *r, const struct rdu_launch *l)
{
    const struct rdu_weight *w = weight_of(r, l->slot[0]);
    uint32_t from, to;
    size_t stride;
    float *y = node_f32_of(r, l->out[0], &stride);
    node_share_rows(r, r->a->n_tokens, false, &from, &to);
    for (uint32_t t = from; t < to; t++) {
        uint32_t row = l->by_pos ? BASE_MIN(r->a->pos[t], w->rows - 1) : (uint32_t)r->a->tokens[t];
        const void *data = w->data;
        if (w->chunk) {
            data = w->chunk[row / w->chunk_rows];
            row %= w->chunk_rows;
        }
        r->k->unpack_row(w->type, data, row, w->cols, y + t * stride);
    }
}

static void run_norm(struct run *r, const struct rdu_launch *l, bool broadcast)
{
    size_t x_stride, y_stride;
    const float *x = node_f32_of(r, l->in[0], &x_stride);
    uint32_t rows = rows_of(r, l->out[0]), width = width_of(r, l->out[0]), part = width / l->groups;
    const float *weight = weight_of(r, l->slot[0])->data;
    buf_mark(r, l->out[0], broadcast);
    buf_mark(r, l->out[1], broadcast);
    float *y = node_f32_of(r, l->out[0], &y_stride);
    struct rdu_q8 q = node_q8_of(r, l->out[1]);
    uint32_t from, to;
    node_share_rows(r, rows, broadcast, &from, &to);
    for (uint32_t t = from; t < to; t++) {
        for (uint32_t g = 0; g < l->groups; g++)
            r->k->rms_norm(x + t * x_stride + g * part, weight, l->eps, part,
                           y + t * y_stride + g * part);
        if (q.q)
            node_quantize_part(r, y + t * y_stride, width, q, t, 0);
    }
}

static void run_quantize(struct run *r, const struct rdu_launch *l, bool broadcast)
{
    size_t stride;
    const float *x = node_f32_of(r, l->in[0], &stride);
    uint32_t from, to, width = width_of(r, l->in[0]);
    buf_mark(r, l->out[1], broadcast);
    struct rdu_q8 q = node_q8_of(r, l->out[1]);
    node_share_rows(r, rows_of(r, l->in[0]), broadcast, &from, &to);
    for (uint32_t t = from; t < to; t++)
        node_quantize_part(r, x + t * stride, width, q, t, 0);
}

static void run_take_outs(struct run *r, const struct rdu_launch *l, bool broadcast)
{
    size_t x_stride, y_stride;
    const float *x = node_f32_of(r, l->in[0], &x_stride);
    buf_mark(r, l->out[0], broadcast);
    float *y = node_f32_of(r, l->out[0], &y_stride);
    uint32_t from, to, width = width_of(r, l->out[0]);
    node_share_rows(r, r->a->n_outs, broadcast, &from, &to);
    for (uint32_t i = from; i < to; i++)
        memcpy(y + i * y_stride, x + r->a->outs[i] * x_stride, width * sizeof(float));
}

/* A sequence's rows lie next to each other and end at the wanted output. */
static void run_mean_pool(struct run *r, const struct rdu_launch *l)
{
    size_t x_stride, y_stride;
    const float *x = node_f32_of(r, l->in[0], &x_stride);
    float *y = node_f32_of(r, l->out[0], &y_stride);
    uint32_t from, to, width = width_of(r, l->out[0]);
    node_share_rows(r, r->a->n_outs, false, &from, &to);
    for (uint32_t i = from; i < to; i++) {
        uint32_t out = r->a->outs[i], count = r->a->pos[out] + 1;
        const float *row = x + (size_t)(out + 1 - count) * x_stride;
        float *sum = y + i * y_stride;
        memset(sum, 0, width * sizeof(float));
        for (uint32_t t = 0; t < count; t++)
            r->k->add(sum, row + t * x_stride, width, sum);
        r->k->scale(sum, 1.0f / (float)count, width, sum);
    }
}

static void run_elementwise(struct run *r, const struct rdu_launch *l)
{
    size_t a_stride, b_stride = 0, y_stride;
    const float *a = node_f32_of(r, l->in[0], &a_stride), *b = NULL;
    float *y = node_f32_of(r, l->out[0], &y_stride);
    if (l->in[1] != RDU_BUF_NONE)
        b = node_f32_of(r, l->in[1], &b_stride);
    if (l->kernel == RDU_KERNEL_ADD_BIAS)
        b = weight_of(r, l->slot[0])->data;
    struct rdu_q8 q = l->kernel == RDU_KERNEL_ACT ? node_q8_of(r, l->out[1]) : (struct rdu_q8){0};
    uint32_t from, to, width = width_of(r, l->out[0]);
    node_share_rows(r, rows_of(r, l->out[0]), false, &from, &to);
    for (uint32_t t = from; t < to; t++) {
        const float *at = a + t * a_stride, *bt = b ? b + t * b_stride : NULL;
        float *yt = y + t * y_stride;
        switch (l->kernel) {
        case RDU_KERNEL_SCALE:
            r->k->scale(at, l->factor, width, yt);
            break;
        case RDU_KERNEL_CENTER:
            r->k->center(at, width, yt);
            break;
        case RDU_KERNEL_SOFTCAP:
            r->k->softcap(at, l->factor, width, yt);
            break;
        case RDU_KERNEL_ACT:
            if (l->act == RDU_ACT_GELU_ERF)
                r->k->gelu(at, width, yt);
            else
                (l->act == RDU_ACT_GELU ? r->k->gelu_mul : r->k->silu_mul)(at, bt, width, yt);
            if (q.q)
                node_quantize_part(r, yt, width, q, t, 0);
            break;
        default: /* ADD, ADD_BIAS */
            r->k->add(at, bt, width, yt);
        }
    }
}

/* ---- reading ahead
 * -----------------------------------------------------------------------------------------------
 */

#define AHEAD_BYTES                                                                                \
    (192 * 1024)       /* of each worker: well within the smallest L2 beside what it works on */
#define AHEAD_START 32 /* lines asked for before a small launch that reads no weights */

static bool is_matmul(const struct rdu_launch *l)
{
    return l->kernel == RDU_KERNEL_MATMUL || l->kernel == RDU_KERNEL_HEAD ||
           l->kernel == RDU_KERNEL_GATE_UP;
}

/* This worker's rows of a weight, or as many as are in one piece. */
static size_t ahead_span(const struct run *r, const struct rdu_launch *l,
                         const struct rdu_weight *w, const char **ret)
{
    uint32_t from, to;
    size_t group_bytes = rdu_pack_bytes(w->type, RDU_GROUP, w->cols);
    const char *data = w->data;
    shard_groups(r, w->rows, l->kernel == RDU_KERNEL_GATE_UP, &from, &to);
    if (w->chunk) {
        uint32_t per_chunk = w->chunk_rows / RDU_GROUP;
        data = w->chunk[from / per_chunk];
        to = BASE_MIN(to - from / per_chunk * per_chunk, per_chunk);
        from %= per_chunk;
    }
    *ret = data + from * group_bytes;
    return from < to ? (to - from) * group_bytes : 0;
}

/* Point r->ahead at what the first matmul from launch i on reads; past the section's end, at what
 * the next layer's first one does. */
static void look_ahead(struct run *r, const struct rdu_section_plan *plan, uint32_t i,
                       uint32_t layers_to)
{
    uint32_t layer = r->layer;
    while (i < plan->count && !is_matmul(&plan->launches[i]))
        i++;
    if (i == plan->count && !r->global_slots && layer + 1 < layers_to) {
        layer++;
        for (i = 0; i < plan->count && !is_matmul(&plan->launches[i]);)
            i++;
    }
    if (i == plan->count)
        return;
    const struct rdu_launch *l = &plan->launches[i];
    if (r->ahead_of == l && r->ahead_layer == layer)
        return; /* in progress */
    const struct rdu_weight *slots =
        r->global_slots ? r->a->globals : r->a->layers + (size_t)layer * r->p->layer_slots.count;
    size_t left = AHEAD_BYTES;
    r->ahead = (struct node_ahead){0};
    for (uint32_t k = 0; k < l->slots && k < NODE_AHEAD_SPANS; k++) {
        const char *at;
        size_t bytes = BASE_MIN(ahead_span(r, l, &slots[l->slot[k]], &at), left);
        r->ahead.at[k] = at;
        r->ahead.end[k] = at + bytes;
        left -= bytes;
    }
    r->ahead_of = l;
    r->ahead_layer = layer;
}

#include "rdu/node/run.h"
#include "rdu/opt/opt.h"

static void run_launch(struct run *r, const struct rdu_launch *l, bool broadcast)
{
    switch (l->kernel) {
    case RDU_KERNEL_EMBED:
        run_embed(r, l);
        break;
    case RDU_KERNEL_NORM:
        run_norm(r, l, broadcast);
        break;
    case RDU_KERNEL_QUANTIZE:
        run_quantize(r, l, broadcast);
        break;
    case RDU_KERNEL_TAKE_OUTS:
        run_take_outs(r, l, broadcast);
        break;
    case RDU_KERNEL_MEAN_POOL:
        run_mean_pool(r, l);
        break;
    case RDU_KERNEL_MATMUL:
    case RDU_KERNEL_HEAD:
        run_matmul(r, l);
        break;
    case RDU_KERNEL_GATE_UP:
        run_gate_up(r, l);
        break;
    case RDU_KERNEL_ROPE:
    case RDU_KERNEL_ROPE_APPEND:
    case RDU_KERNEL_APPEND:
        node_run_rope_append(r, l);
        break;
    case RDU_KERNEL_ATTENTION:
        node_run_attention(r, l);
        break;
    case RDU_KERNEL_ACT:
    case RDU_KERNEL_ADD:
    case RDU_KERNEL_ADD_BIAS:
    case RDU_KERNEL_SCALE:
    case RDU_KERNEL_SOFTCAP:
    case RDU_KERNEL_CENTER:
        run_elementwise(r, l);
        break;
    case RDU_KERNEL_LOOP:
        if (r->thread_idx == 0)
            rdu_interp_launch(r->p, l, r->a, r->layer, r->n->arena);
        break;
    case RDU_KERNELS:
        break;
    }
}

static void fetch_ahead(struct run *r, const struct rdu_section_plan *plan, uint32_t i,
                        uint32_t layers_to)
{
    bool product = is_matmul(&plan->launches[i]);
    look_ahead(r, plan, product ? i + 1 : i, layers_to);
    if (!product && r->a->n_tokens <= NODE_LOCAL_TOKENS)
        node_ahead_fetch(&r->ahead, AHEAD_START);
}

static void run_section(struct run *r, enum rdu_section section, uint32_t layer, uint32_t layers_to)
{
    const struct rdu_section_plan *plan = &r->p->section[section];
    r->layer = layer;
    r->global_slots = section != RDU_SECTION_LAYER;
    r->interpreted = false;
    for (uint32_t i = 0; i < plan->count; i++)
        r->interpreted |= plan->launches[i].kernel == RDU_KERNEL_LOOP;
    for (uint32_t i = 0; i < plan->count; i++) {
        const struct rdu_launch *l = &plan->launches[i];
        bool broadcast = is_broadcast(r, l);
        if (!broadcast)
            for (int o = 0; o < 4; o++)
                buf_mark(r, l->out[o], false);
        fetch_ahead(r, plan, i, layers_to);
        run_launch(r, l, broadcast);
        /* The exception: the next launch overwrites x in place while slower workers still read it.
         */
        if (!broadcast || i + 1 == plan->count || writes_x(&plan->launches[i + 1]))
            node_barrier_wait(&r->w->node->barrier, &r->ahead);
    }
}

/* ---- native code
 * --------------------------------------------------------------------------------------------- */

static_assert(sizeof(struct sy_weight) == sizeof(struct rdu_weight) &&
                  offsetof(struct sy_weight, chunk) == offsetof(struct rdu_weight, chunk) &&
                  offsetof(struct sy_weight, type) == offsetof(struct rdu_weight, type),
              "emitted code reads weights as sy_weight");
static_assert(sizeof(struct sy_q8) == sizeof(struct rdu_q8) &&
                  offsetof(struct sy_q8, b_stride) == offsetof(struct rdu_q8, b_stride),
              "emitted code makes sy_q8 for the leaves");

static void native_launch(void *host, uint32_t launch_idx)
{
    struct run *r = host;
    run_launch(r, &r->p->section[r->section].launches[launch_idx], false);
}

/* The bytes of a product that emitted code multiplies: as mm and run_matmul count them. */
static void native_count(void *host, uint32_t launch_idx)
{
    const struct run *r = host;
    const struct rdu_launch *l = &r->p->section[r->section].launches[launch_idx];
    bool gate = l->kernel == RDU_KERNEL_GATE_UP;
    for (uint32_t i = 0; i < l->slots; i++) {
        const struct rdu_weight *w = weight_of(r, l->slot[i]);
        uint32_t from, to, tokens = rows_of(r, l->out[gate ? 0 : i]);
        shard_groups(r, w->rows, gate, &from, &to);
        if (from >= to || tokens == 0)
            continue;
        r->w->weight_bytes += rdu_pack_bytes(w->type, (size_t)(to - from) * RDU_GROUP, w->cols);
        if (!gate || i == 0)
            node_count_gather(r, BASE_MIN(to * RDU_GROUP, w->rows) - from * RDU_GROUP, tokens,
                              gate && l->out[1] != RDU_BUF_NONE);
    }
}

static void native_ahead(void *host, uint32_t launch_idx)
{
    struct run *r = host;
    fetch_ahead(r, &r->p->section[r->section], launch_idx, r->layers_to);
}

static void native_barrier(void *host)
{
    struct run *r = host;
    node_barrier_wait(&r->w->node->barrier, &r->ahead);
}

static bool has_adapters(const struct rdu_args *a)
{
    for (uint32_t i = 0; i < a->groups_count; i++)
        if (a->groups[i].adapters_count > 0)
            return true;
    return false;
}

static void native_open(struct run *r, struct sy_run *y)
{
    *y = (struct sy_run){.host = r,
                         .shared = r->n->arena,
                         .local = r->w->local_arena,
                         .x = r->a->x,
                         .logits = r->a->logits,
                         .logits_stride = r->a->logits_stride,
                         .tokens = r->a->n_tokens,
                         .outs = r->a->n_outs,
                         .thread_idx = r->thread_idx,
                         .threads = r->threads,
                         .sockets = r->n->opt.sockets,
                         .token_ids = r->a->tokens,
                         .pos = r->a->pos,
                         .out = r->a->outs,
                         .tables = r->p->tables,
                         .mm_q8 = (sy_mm_q8_fn *const *)r->k->mm_q8,
                         .mm_f32 = (sy_mm_f32_fn *const *)r->k->mm_f32,
                         .launch = native_launch,
                         .count = native_count,
                         .barrier = native_barrier,
                         .ahead = r->n->solo ? NULL : native_ahead};
}

static void run_native(struct run *r, struct sy_run *y, enum rdu_section section, uint32_t layer)
{
    const struct rdu_section_plan *plan = &r->p->section[section];
    const struct rdu_weight *weights = r->a->globals;
    r->section = section;
    r->layer = layer;
    r->global_slots = section != RDU_SECTION_LAYER;
    if (!r->global_slots)
        weights = r->a->layers + (size_t)layer * r->p->layer_slots.count;
    y->weights = (const struct sy_weight *)(const void *)weights;
    y->adapted = !r->global_slots && has_adapters(r->a);
    y->small = r->threads > 1 && r->a->n_tokens <= NODE_LOCAL_TOKENS;
    for (int i = 0; i < 4; i++)
        r->local_bits[i] = y->small ? plan->local_bits[i] : 0;
    r->n->unit->section[section](y);
}

static void work_native(struct run *r, uint32_t last)
{
    struct sy_run y;
    native_open(r, &y);
    for (uint32_t s = r->n->stage_from; s < r->n->stage_to; s++) {
        if (s == 0)
            run_native(r, &y, RDU_SECTION_EMBED, 0);
        else if (s == last)
            run_native(r, &y, RDU_SECTION_HEAD, 0);
        else
            run_native(r, &y, RDU_SECTION_LAYER, s - 1);
    }
}

void node_work(struct node_worker *w)
{
    const struct rdu_node *n = w->node;
    struct run r = {.w = w,
                    .n = n,
                    .k = &n->kernels,
                    .p = n->program,
                    .a = n->args,
                    .thread_idx = w->thread_idx,
                    .threads = n->opt.threads};
    uint32_t last = r.a->n_layers + 1, layers_to = BASE_MIN(n->stage_to, last) - 1;
    if (n->solo)
        r.threads = 1;
    r.layers_to = layers_to;
    if (n->unit) {
        work_native(&r, last);
        return;
    }
    for (uint32_t s = n->stage_from; s < n->stage_to; s++) {
        if (s == 0)
            run_section(&r, RDU_SECTION_EMBED, 0, layers_to);
        else if (s == last)
            run_section(&r, RDU_SECTION_HEAD, 0, layers_to);
        else
            run_section(&r, RDU_SECTION_LAYER, s - 1, layers_to);
    }
}
