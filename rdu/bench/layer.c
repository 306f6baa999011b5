/* One decoder layer of a transformer (norm, grouped attention over 128 tokens of context, gated
 * MLP) with Q8_0 weights: one launch per operator or fused, on one thread; weights in rows as files
 * hold them, or interleaved eight by eight as the leaves want them; and the same calls of the same
 * leaves written down by hand. */
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/bench/ablation.h"
#include "rdu/node/node.h"

#define HEAD_DIM 64
#define CONTEXT 128 /* tokens before the step */
#define PAGE_TOKENS 256
#define EPS 1e-5f
#define TOKENS_MAX 64

enum { W_Q, W_K, W_V, W_O, W_GATE, W_UP, W_DOWN, W_NORM_A, W_NORM_F, WEIGHTS };
static const char *const slot_name[WEIGHTS] = {"attn_q",      "attn_k",    "attn_v",
                                               "attn_output", "ffn_gate",  "ffn_up",
                                               "ffn_down",    "attn_norm", "ffn_norm"};

struct layer_work {
    uint32_t width, heads, kv_heads, ffn, tokens;
    struct rdu_program *program[3]; /* unfused, fused, native */
    struct emit_object object;
    struct rdu_node *node;
    struct rdu_weight weight[WEIGHTS]; /* in the order of the enum */
    struct rdu_weight slots[WEIGHTS];  /* in the program's order */
    void *data[WEIGHTS];
    float *cos_table, *sin_table; /* [PAGE_TOKENS, HEAD_DIM / 2] */
    void *page, *pages[1], **lists[1];
    float *x, *x_first, *result[RDU_ABLATION_WAYS];
    size_t x_stride, x_bytes;
    uint32_t pos[TOKENS_MAX], seq[TOKENS_MAX], outs[1];
    int32_t ids[TOKENS_MAX];
    struct rdu_args args;
    float *hand;      /* memory of the calls by hand */
    struct rdu_q8 q8; /* of one activation, widest */
};

static void layer_close(void *work)
{
    struct layer_work *w = work;
    for (int i = 0; i < 3; i++)
        rdu_program_close(&w->program[i]);
    emit_unload(&w->object);
    rdu_node_close(&w->node);
    for (int i = 0; i < WEIGHTS; i++)
        free(w->data[i]);
    for (int i = 0; i < RDU_ABLATION_WAYS; i++)
        free(w->result[i]);
    free(w->cos_table);
    free(w->sin_table);
    free(w->page);
    free(w->x);
    free(w->x_first);
    free(w->hand);
    free(w->q8.q);
    free(w->q8.d);
    free(w->q8.s);
    free(w);
}

/* ---- graph ----------------------------------------------------------------------------------- */

static uint32_t rows_of(const struct layer_work *w, int i)
{
    switch (i) {
    case W_K:
    case W_V:
        return w->kv_heads * HEAD_DIM;
    case W_GATE:
    case W_UP:
        return w->ffn;
    default:
        return i >= W_NORM_A ? 1 : w->width;
    }
}

static uint32_t cols_of(const struct layer_work *w, int i)
{
    return i == W_DOWN ? w->ffn : w->width;
}

static uint32_t product(const struct layer_work *w, struct rdu_graph *g, uint32_t x, int i)
{
    return rdu_matmul(g, x, rdu_slot(g, slot_name[i], rows_of(w, i), cols_of(w, i)));
}

static uint32_t normed(const struct layer_work *w, struct rdu_graph *g, uint32_t x, int i)
{
    return rdu_rms_norm(g, x, rdu_slot(g, slot_name[i], 1, w->width), EPS, 1);
}

static struct rdu_graph *make_graph(const struct layer_work *w)
{
    struct rdu_graph *g = rdu_graph_open("decoder_layer", RDU_NUMERICS_INT8);
    uint32_t c = rdu_const(g, "rope.cos", w->cos_table, PAGE_TOKENS, HEAD_DIM / 2);
    uint32_t s = rdu_const(g, "rope.sin", w->sin_table, PAGE_TOKENS, HEAD_DIM / 2);
    uint32_t ids = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, ids, rdu_slot(g, "embed", 64, w->width)));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, w->width);
    uint32_t n = normed(w, g, x, W_NORM_A);
    uint32_t q = product(w, g, n, W_Q), k = product(w, g, n, W_K), v = product(w, g, n, W_V);
    q = rdu_rope(g, q, c, s, w->heads, HEAD_DIM, HEAD_DIM, RDU_ROPE_HALVES);
    k = rdu_rope(g, k, c, s, w->kv_heads, HEAD_DIM, HEAD_DIM, RDU_ROPE_HALVES);
    struct rdu_attention_options o = {.heads = w->heads,
                                      .kv_heads = w->kv_heads,
                                      .head_dim = HEAD_DIM,
                                      .scale = 1.0f / sqrtf((float)HEAD_DIM)};
    x = rdu_add(g, x, product(w, g, rdu_attention(g, q, k, v, &o), W_O));
    n = normed(w, g, x, W_NORM_F);
    uint32_t h = rdu_silu_mul(g, product(w, g, n, W_GATE), product(w, g, n, W_UP));
    rdu_graph_end(g, rdu_add(g, x, product(w, g, h, W_DOWN)));
    x = rdu_take_outs(g, rdu_graph_begin(g, RDU_SECTION_HEAD, w->width));
    rdu_graph_end(g, rdu_matmul(g, x, rdu_slot(g, "embed", 64, w->width)));
    return g;
}

/* ---- data ------------------------------------------------------------------------------------ */

static float *floats(size_t n)
{
    float *p = aligned_alloc(64, (n * sizeof(float) + 1023) & ~(size_t)63);
    if (p == NULL)
        abort();
    memset(p, 0, (n * sizeof(float) + 1023) & ~(size_t)63);
    return p;
}

static void make_weight(struct layer_work *w, int i, bool columns, struct rng *rng)
{
    uint32_t rows = rows_of(w, i), cols = cols_of(w, i);
    struct rdu_weight *d = &w->weight[i];
    *d = (struct rdu_weight){.rows = rows, .cols = cols, .type = i < W_NORM_A ? RDU_Q8_0 : RDU_F32};
    if (i >= W_NORM_A) {
        float *norm = floats(cols);
        for (uint32_t k = 0; k < cols; k++)
            norm[k] = 1.0f + (float)rng_f64(rng) * 0.25f;
        d->data = w->data[i] = norm;
        return;
    }
    size_t bytes = (size_t)rows * cols / 32 * 34;
    uint8_t *raw = (uint8_t *)floats(bytes / 4 + 1);
    for (size_t b = 0; b < bytes; b += 34) {
        uint16_t scale = rdu_f32_to_f16(1.0f / (73.0f * sqrtf((float)cols)));
        memcpy(raw + b, &scale, sizeof(scale));
        for (size_t k = 2; k < 34; k++)
            raw[b + k] = (uint8_t)((int)rng_below(rng, 255) - 127);
    }
    w->data[i] = raw;
    if (columns) {
        w->data[i] = floats(rdu_pack_bytes(RDU_Q8_0, rows, cols) / 4 + 1);
        rdu_pack_rows(RDU_Q8_0, rows, cols, raw, w->data[i]);
        free(raw);
    }
    d->data = w->data[i];
}

static void make_tables(struct layer_work *w)
{
    w->cos_table = floats((size_t)PAGE_TOKENS * HEAD_DIM / 2);
    w->sin_table = floats((size_t)PAGE_TOKENS * HEAD_DIM / 2);
    for (uint32_t p = 0; p < PAGE_TOKENS; p++) {
        for (uint32_t i = 0; i < HEAD_DIM / 2; i++) {
            double angle = p * pow(10000.0, -2.0 * i / HEAD_DIM);
            w->cos_table[p * HEAD_DIM / 2 + i] = (float)cos(angle);
            w->sin_table[p * HEAD_DIM / 2 + i] = (float)sin(angle);
        }
    }
}

static void make_step(struct layer_work *w, struct rng *rng)
{
    size_t page = rdu_kv_page_bytes(RDU_KV_F16, 1, w->kv_heads, HEAD_DIM, PAGE_TOKENS);
    uint16_t *kv = (uint16_t *)floats(page / 4 + 1);
    for (size_t i = 0; i < page / 2; i++)
        kv[i] = rdu_f32_to_f16((float)rng_f64(rng) - 0.5f);
    w->page = w->pages[0] = kv;
    w->lists[0] = w->pages;
    w->x_stride = (w->width + 15u) & ~15u;
    w->x_bytes = w->tokens * w->x_stride * sizeof(float);
    w->x = floats(w->x_bytes / 4);
    w->x_first = floats(w->x_bytes / 4);
    for (int i = 0; i < RDU_ABLATION_WAYS; i++)
        w->result[i] = floats(w->x_bytes / 4);
    for (uint32_t t = 0; t < w->tokens; t++) {
        w->pos[t] = CONTEXT + t;
        for (uint32_t i = 0; i < w->width; i++)
            w->x_first[t * w->x_stride + i] = (float)rng_f64(rng) * 2.0f - 1.0f;
    }
    w->args = (struct rdu_args){.n_tokens = w->tokens,
                                .n_layers = 1,
                                .tokens = w->ids,
                                .pos = w->pos,
                                .seq = w->seq,
                                .kv_pages = (void *const *const *)w->lists,
                                .kv_page_tokens = PAGE_TOKENS,
                                .kv_type = RDU_KV_F16,
                                .outs = w->outs,
                                .layers = w->slots,
                                .x = w->x};
    uint32_t widest = BASE_MAX(w->ffn, w->width);
    w->q8.q_stride = (widest + 63u) & ~63u;
    w->q8.b_stride = (widest / 32 + 15u) & ~15u;
    w->q8.q = (int8_t *)floats(w->tokens * w->q8.q_stride / 4);
    w->q8.d = floats(w->tokens * w->q8.b_stride);
    w->q8.s = floats(w->tokens * w->q8.b_stride);
    w->hand =
        floats(w->tokens * (size_t)(5 * w->width + 3 * w->ffn) + (size_t)w->heads * (HEAD_DIM + 2));
}

/* ---- by hand --------------------------------------------------------------------------------- */

struct hand {
    struct layer_work *w;
    const struct rdu_kernels *k;
    float *n, *q, *kk, *v, *o, *gate, *up, *h, *state;
};

static void quantize(const struct hand *h, const float *x, uint32_t width)
{
    const struct rdu_q8 *q = &h->w->q8;
    for (uint32_t t = 0; t < h->w->tokens; t++)
        h->k->quantize(x + (size_t)t * width, width, q->q + t * q->q_stride, q->d + t * q->b_stride,
                       q->s + t * q->b_stride);
}

static void multiply(const struct hand *h, int i, float *y, size_t stride, bool add)
{
    const struct rdu_weight *d = &h->w->weight[i];
    h->k->mm_q8[RDU_Q8_0](d->data, d->cols, 0, d->rows / RDU_GROUP, &h->w->q8, h->w->tokens, y,
                          stride, add);
}

static void norm_and_quantize(const struct hand *h, int i)
{
    const struct layer_work *w = h->w;
    for (uint32_t t = 0; t < w->tokens; t++)
        h->k->rms_norm(w->x + t * w->x_stride, w->weight[i].data, EPS, w->width,
                       h->n + (size_t)t * w->width);
    quantize(h, h->n, w->width);
}

static void attend(const struct hand *h, uint32_t t)
{
    const struct layer_work *w = h->w;
    uint32_t per = w->heads / w->kv_heads, blocks = PAGE_TOKENS / RDU_KV_BLOCK;
    size_t block_bytes = rdu_kv_block_bytes(RDU_KV_F16, HEAD_DIM);
    float *m = h->state, *l = m + w->heads, *o = l + w->heads;
    for (uint32_t head = 0; head < w->kv_heads; head++) {
        const void *block[PAGE_TOKENS / RDU_KV_BLOCK];
        for (uint32_t b = 0; b < blocks; b++)
            block[b] = (const char *)w->page + ((size_t)head * blocks + b) * block_bytes;
        for (uint32_t i = 0; i < per; i++) {
            m[i] = -INFINITY;
            l[i] = 0.0f;
        }
        memset(o, 0, per * HEAD_DIM * sizeof(*o));
        struct rdu_attn_args a = {.q = h->q + (size_t)t * w->width + head * per * HEAD_DIM,
                                  .block = block,
                                  .heads = per,
                                  .head_dim = HEAD_DIM,
                                  .block_to = w->pos[t] / RDU_KV_BLOCK + 1,
                                  .pos_to = w->pos[t] + 1,
                                  .scale = 1.0f / sqrtf((float)HEAD_DIM),
                                  .m = m,
                                  .l = l,
                                  .o = o};
        h->k->attn[RDU_KV_F16](&a);
        float *out = h->o + (size_t)t * w->width + head * per * HEAD_DIM;
        for (uint32_t i = 0; i < per; i++) {
            for (uint32_t d = 0; d < HEAD_DIM; d++)
                out[i * HEAD_DIM + d] = o[i * HEAD_DIM + d] / l[i];
        }
    }
}

static void store_kv(const struct hand *h, uint32_t t)
{
    const struct layer_work *w = h->w;
    size_t half = HEAD_DIM / 2, kv = (size_t)w->kv_heads * HEAD_DIM;
    const float *c = w->cos_table + w->pos[t] * half, *s = w->sin_table + w->pos[t] * half;
    h->k->rope(h->q + (size_t)t * w->width, c, s, w->heads, HEAD_DIM, HEAD_DIM, RDU_ROPE_HALVES);
    h->k->rope(h->kk + t * kv, c, s, w->kv_heads, HEAD_DIM, HEAD_DIM, RDU_ROPE_HALVES);
    for (uint32_t head = 0; head < w->kv_heads; head++) {
        size_t block = (size_t)head * (PAGE_TOKENS / RDU_KV_BLOCK) + w->pos[t] / RDU_KV_BLOCK;
        h->k->kv_store[RDU_KV_F16](
            (char *)w->page + block * rdu_kv_block_bytes(RDU_KV_F16, HEAD_DIM),
            w->pos[t] % RDU_KV_BLOCK, HEAD_DIM, h->kk + t * kv + head * HEAD_DIM,
            h->v + t * kv + head * HEAD_DIM);
    }
}

static void by_hand(struct layer_work *w)
{
    size_t x = (size_t)w->tokens * w->width, f = (size_t)w->tokens * w->ffn;
    float *at = w->hand;
    struct hand h = {.w = w,
                     .k = &w->node->kernels,
                     .n = at,
                     .q = at + x,
                     .kk = at + 2 * x,
                     .v = at + 3 * x,
                     .o = at + 4 * x,
                     .gate = at + 5 * x,
                     .up = at + 5 * x + f,
                     .h = at + 5 * x + 2 * f,
                     .state = at + 5 * x + 3 * f};
    uint32_t kv = w->kv_heads * HEAD_DIM;
    norm_and_quantize(&h, W_NORM_A);
    multiply(&h, W_Q, h.q, w->width, false);
    multiply(&h, W_K, h.kk, kv, false);
    multiply(&h, W_V, h.v, kv, false);
    for (uint32_t t = 0; t < w->tokens; t++)
        store_kv(&h, t);
    for (uint32_t t = 0; t < w->tokens; t++)
        attend(&h, t);
    quantize(&h, h.o, w->width);
    multiply(&h, W_O, w->x, w->x_stride, true);
    norm_and_quantize(&h, W_NORM_F);
    multiply(&h, W_GATE, h.gate, w->ffn, false);
    multiply(&h, W_UP, h.up, w->ffn, false);
    for (uint32_t t = 0; t < w->tokens; t++)
        h.k->silu_mul(h.gate + (size_t)t * w->ffn, h.up + (size_t)t * w->ffn, w->ffn,
                      h.h + (size_t)t * w->ffn);
    quantize(&h, h.h, w->ffn);
    multiply(&h, W_DOWN, w->x, w->x_stride, true);
}

/* ---- the ways -------------------------------------------------------------------------------- */

static void layer_run(void *work, enum rdu_ablation_way way)
{
    struct layer_work *w = work;
    memcpy(w->x, w->x_first, w->x_bytes);
    if (way == RDU_ABLATION_HAND)
        by_hand(w);
    else
        rdu_node_run(w->node, w->program[way], &w->args, 1, 2);
}

static const void *layer_result(void *work, enum rdu_ablation_way way, size_t *ret_count)
{
    struct layer_work *w = work;
    memcpy(w->result[way], w->x, w->x_bytes);
    *ret_count = w->x_bytes / sizeof(float);
    return w->result[way];
}

static const struct bench_ways layer_ways = {layer_run, layer_result, layer_close};

static void make_native(struct layer_work *w, struct rdu_ablation *a)
{
    struct buf text = {0};
    struct err e = {0};
    const void *unit = NULL;
    enum err_code code = emit_program(w->program[2], &text, &e);
    if (code == ERR_OK)
        code = bench_compile(&text, &w->object, &e);
    if (code == ERR_OK)
        unit = dlsym(w->object.handle, "sy_unit");
    if (unit)
        atomic_store(&w->program[2]->native, (const struct sy_unit *)unit);
    else
        bench_without_native(a, &e);
    buf_done(&text);
}

static enum err_code open_programs(struct layer_work *w, bool columns, struct rdu_ablation *a,
                                   struct err *e)
{
    struct rdu_node_options node = {.sockets = 8, .threads = 1, .max_tokens = w->tokens};
    enum err_code code = rdu_node_open(&node, &w->node, e);
    static const enum rdu_exec exec[3] = {RDU_EXEC_UNFUSED, RDU_EXEC_FUSED, RDU_EXEC_NATIVE};
    for (int i = 0; i < 3 && code == ERR_OK; i++) {
        struct rdu_graph *g = make_graph(w);
        struct rdu_program_options o = {.exec = exec[i], .sockets = 8};
        code = rdu_program_open(&g, &o, &w->program[i], e);
        if (code == ERR_OK)
            code = rdu_node_prepare(w->node, w->program[i], w->tokens, 1, e);
    }
    if (code != ERR_OK)
        return code;
    if (!columns)
        w->node->kernels.mm_q8[RDU_Q8_0] = bench_hand_best().rows_q8_0;
    for (uint32_t i = 0; i < rdu_program_slots(w->program[0], RDU_SECTION_LAYER); i++) {
        for (int k = 0; k < WEIGHTS; k++) {
            if (strcmp(rdu_program_slot(w->program[0], RDU_SECTION_LAYER, i)->name, slot_name[k]) ==
                0)
                w->slots[i] = w->weight[k];
        }
    }
    buf_printf(&a->report, "  %u launches -> %u\n", w->program[0]->section[RDU_SECTION_LAYER].count,
               w->program[1]->section[RDU_SECTION_LAYER].count);
    make_native(w, a);
    return ERR_OK;
}

enum err_code bench_layer_open(const struct rdu_ablation_spec *spec, struct rdu_ablation *a,
                               struct err *e)
{
    if (spec->n % HEAD_DIM != 0 || spec->n > 16384 || spec->tokens < 1 || spec->tokens > TOKENS_MAX)
        return err_set(
            e, ERR_INVALID,
            "a layer of width %llu and %u tokens: multiples of %d up to 16384, 1 to %d tokens",
            (unsigned long long)spec->n, spec->tokens, HEAD_DIM, TOKENS_MAX);
    struct layer_work *w = mem_alloc(sizeof(*w));
    struct rng rng;
    rng_init(&rng, spec->seed);
    w->object.fd = -1;
    a->ways = &layer_ways;
    a->work = w;
    a->has[RDU_ABLATION_PLAIN] = false;
    w->tokens = spec->tokens;
    w->width = (uint32_t)spec->n;
    w->heads = w->width / HEAD_DIM;
    w->kv_heads = w->heads % 3 == 0 ? w->heads / 3 : w->heads % 4 == 0 ? w->heads / 4 : w->heads;
    w->ffn = (w->width * 8 / 3 + 63u) & ~63u;
    make_tables(w);
    for (int i = 0; i < WEIGHTS; i++)
        make_weight(w, i, spec->columns, &rng);
    make_step(w, &rng);
    return open_programs(w, spec->columns, a, e);
}
