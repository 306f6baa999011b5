/* See ir_model.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/rdu/ir_model.h"

struct model_spec model_spec_tiny(void)
{
    struct model_spec s = {.numerics = RDU_NUMERICS_INT8,
                           .matrix = RDU_Q4_1,
                           .head = RDU_Q8_0,
                           .width = 96,
                           .heads = 6,
                           .kv_heads = 2,
                           .head_dim = 16,
                           .rot = 16,
                           .ffn = 160,
                           .vocab = 203,
                           .layers = 2,
                           .context = 128,
                           .rope = RDU_ROPE_HALVES,
                           .kv = RDU_KV_F16,
                           .page_tokens = 64};
    return s;
}

/* ---- graph ----------------------------------------------------------------------------------- */

struct tables {
    uint32_t c, s;
};

static struct tables make_tables(struct rdu_graph *g, const struct model_spec *s)
{
    uint32_t half = s->rot / 2;
    float *c = mem_array((size_t)s->context * half, sizeof(float));
    float *n = mem_array((size_t)s->context * half, sizeof(float));
    for (uint32_t p = 0; p < s->context; p++) {
        for (uint32_t i = 0; i < half; i++) {
            double angle = p * pow(10000.0, -2.0 * i / s->rot);
            c[p * half + i] = (float)cos(angle);
            n[p * half + i] = (float)sin(angle);
        }
    }
    struct tables t = {rdu_const(g, "rope.cos", c, s->context, half),
                       rdu_const(g, "rope.sin", n, s->context, half)};
    free(c);
    free(n);
    return t;
}

static uint32_t project(struct rdu_graph *g, uint32_t x, const char *name, uint32_t rows,
                        uint32_t cols, bool bias)
{
    char slot[64];
    snprintf(slot, sizeof(slot), "%s.weight", name);
    uint32_t y = rdu_matmul(g, x, rdu_slot(g, slot, rows, cols));
    snprintf(slot, sizeof(slot), "%s.bias", name);
    return bias ? rdu_add_bias(g, y, rdu_slot(g, slot, 1, rows)) : y;
}

static uint32_t norm(struct rdu_graph *g, uint32_t x, const char *slot, uint32_t width,
                     uint32_t groups)
{
    return rdu_rms_norm(g, x, rdu_slot(g, slot, 1, width / groups), 1e-5f, groups);
}

static uint32_t attention(struct rdu_graph *g, uint32_t n, const struct model_spec *s,
                          struct tables t)
{
    uint32_t qw = s->heads * s->head_dim, kw = s->kv_heads * s->head_dim;
    uint32_t q = project(g, n, "attn_q", qw, s->width, s->bias);
    uint32_t k = project(g, n, "attn_k", kw, s->width, s->bias);
    uint32_t v = project(g, n, "attn_v", kw, s->width, s->bias);
    if (s->qk_norm) {
        q = norm(g, q, "attn_q_norm.weight", qw, s->heads);
        k = norm(g, k, "attn_k_norm.weight", kw, s->kv_heads);
    }
    q = rdu_rope(g, q, t.c, t.s, s->heads, s->head_dim, s->rot, s->rope);
    k = rdu_rope(g, k, t.c, t.s, s->kv_heads, s->head_dim, s->rot, s->rope);
    struct rdu_attention_options o = {.heads = s->heads,
                                      .kv_heads = s->kv_heads,
                                      .head_dim = s->head_dim,
                                      .scale = 1.0f / sqrtf((float)s->head_dim),
                                      .softcap = s->attn_softcap,
                                      .windowed = s->windowed};
    return project(g, rdu_attention(g, q, k, v, &o), "attn_output", s->width, qw, false);
}

static uint32_t mlp(struct rdu_graph *g, uint32_t n, const struct model_spec *s)
{
    uint32_t gate = project(g, n, "ffn_gate", s->ffn, s->width, false);
    uint32_t up = project(g, n, "ffn_up", s->ffn, s->width, false);
    uint32_t h = s->post_norm ? rdu_gelu_mul(g, gate, up) : rdu_silu_mul(g, gate, up);
    return project(g, h, "ffn_down", s->width, s->ffn, false);
}

static uint32_t layer(struct rdu_graph *g, uint32_t x, const struct model_spec *s, struct tables t)
{
    uint32_t n = norm(g, x, "attn_norm.weight", s->width, 1);
    uint32_t a = attention(g, n, s, t);
    if (s->parallel)
        return rdu_add(g, rdu_add(g, x, a), mlp(g, n, s));
    if (s->post_norm)
        a = norm(g, a, "post_attention_norm.weight", s->width, 1);
    x = rdu_add(g, x, a);
    uint32_t f = mlp(g, norm(g, x, "ffn_norm.weight", s->width, 1), s);
    if (s->post_norm)
        f = norm(g, f, "post_ffw_norm.weight", s->width, 1);
    return rdu_add(g, x, f);
}

struct rdu_graph *model_graph(const struct model_spec *s)
{
    struct rdu_graph *g = rdu_graph_open("test", s->numerics);
    struct tables t = make_tables(g, s);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    uint32_t x = rdu_embed(g, tokens, rdu_slot(g, "token_embd.weight", s->vocab, s->width));
    if (s->post_norm)
        x = rdu_scale(g, x, sqrtf((float)s->width));
    rdu_graph_end(g, x);
    x = rdu_graph_begin(g, RDU_SECTION_LAYER, s->width);
    rdu_graph_end(g, layer(g, x, s, t));
    x = rdu_take_outs(g, rdu_graph_begin(g, RDU_SECTION_HEAD, s->width));
    x = norm(g, x, "output_norm.weight", s->width, 1);
    x = rdu_matmul(g, x, rdu_slot(g, "token_embd.weight", s->vocab, s->width));
    if (s->softcap > 0)
        x = rdu_softcap(g, x, s->softcap);
    rdu_graph_end(g, x);
    return g;
}

/* ---- weights --------------------------------------------------------------------------------- */

float model_normal(struct rng *r)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += rng_f64(r);
    return (float)(sum - 6.0);
}

/* Where the f16 scales of a raw block are, so that random bytes become weights of a sane size. */
static void set_scales(enum rdu_type type, uint8_t *block, struct rng *r, float scale)
{
    static const int at[RDU_TYPES][2] = {
        [RDU_Q5_0] = {0, -1},   [RDU_Q5_1] = {0, 2},    [RDU_Q2_K] = {80, 82},
        [RDU_Q3_K] = {108, -1}, [RDU_Q4_K] = {0, 2},    [RDU_Q5_K] = {0, 2},
        [RDU_Q6_K] = {208, -1}, [RDU_IQ1_S] = {0, -1},  [RDU_IQ2_XXS] = {0, -1},
        [RDU_IQ2_XS] = {0, -1}, [RDU_IQ2_S] = {0, -1},  [RDU_IQ3_XXS] = {0, -1},
        [RDU_IQ3_S] = {0, -1},  [RDU_IQ4_NL] = {0, -1}, [RDU_IQ4_XS] = {0, -1},
        [RDU_TQ1_0] = {52, -1}, [RDU_TQ2_0] = {64, -1}};
    static const float range[RDU_TYPES] = {
        [RDU_Q5_0] = 16,     [RDU_Q5_1] = 32,    [RDU_Q2_K] = 40,     [RDU_Q3_K] = 100,
        [RDU_Q4_K] = 900,    [RDU_Q5_K] = 1800,  [RDU_Q6_K] = 4000,   [RDU_IQ1_S] = 15,
        [RDU_IQ2_XXS] = 400, [RDU_IQ2_XS] = 400, [RDU_IQ2_S] = 400,   [RDU_IQ3_XXS] = 400,
        [RDU_IQ3_S] = 400,   [RDU_IQ4_NL] = 120, [RDU_IQ4_XS] = 3000, [RDU_TQ1_0] = 1,
        [RDU_TQ2_0] = 1};
    for (int i = 0; i < 2; i++) {
        if (i == 1 && at[type][1] <= 0)
            break;
        float d = scale * (0.5f + (float)rng_f64(r)) / range[type];
        uint16_t h = rdu_f32_to_f16(i == 1 && type == RDU_Q5_1 ? -d * 16 : d);
        memcpy(block + at[type][i], &h, sizeof(h));
    }
}

void *model_matrix(struct arena *a, struct rng *r, enum rdu_type type, uint32_t rows, uint32_t cols,
                   float scale)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    size_t row_bytes = (size_t)cols / info->block_elems * info->block_bytes;
    uint8_t *raw = arena_alloc(a, row_bytes * rows);
    float *row = mem_array(cols, sizeof(*row));
    struct err e;
    bool random = !info->is_float && type != RDU_Q8_0 && type != RDU_Q4_0 && type != RDU_Q4_1;
    for (uint32_t i = 0; i < rows; i++) {
        uint8_t *to = raw + i * row_bytes;
        for (size_t k = 0; random && k < row_bytes; k++)
            to[k] = (uint8_t)rng_u64(r);
        for (size_t k = 0; random && k < row_bytes; k += info->block_bytes)
            set_scales(type, to + k, r, scale);
        for (uint32_t k = 0; !random && k < cols; k++)
            row[k] = scale * model_normal(r);
        if (!random && rdu_quantize_row(type, row, to, cols, &e) != ERR_OK)
            abort();
    }
    free(row);
    void *packed = arena_alloc(a, rdu_pack_bytes(type, rows, cols));
    rdu_pack_rows(type, rows, cols, raw, packed);
    return packed;
}

static struct rdu_weight make_weight(struct model *m, const struct rdu_slot_info *s,
                                     enum rdu_type type)
{
    struct rdu_weight w = {.rows = s->rows, .cols = s->cols, .type = RDU_F32};
    if (s->rows == 1) {
        bool bias = strstr(s->name, "bias") != NULL;
        float *v = arena_alloc(&m->memory, s->cols * sizeof(*v));
        for (uint32_t i = 0; i < s->cols; i++)
            v[i] = (bias ? 0.0f : 1.0f) + 0.2f * model_normal(&m->rng);
        w.data = v;
        return w;
    }
    w.type = s->cols % rdu_type_info(type)->block_elems == 0 ? type : RDU_F16;
    float scale = 1.0f / sqrtf((float)s->cols);
    uint8_t *data = model_matrix(&m->memory, &m->rng, w.type, s->rows, s->cols, scale);
    w.data = data;
    if (m->spec.chunk_rows == 0)
        return w;
    uint32_t chunks = (s->rows + m->spec.chunk_rows - 1) / m->spec.chunk_rows;
    const void **chunk = arena_alloc(&m->memory, chunks * sizeof(*chunk));
    for (uint32_t i = 0; i < chunks; i++)
        chunk[i] = data + rdu_pack_bytes(w.type, (size_t)i * m->spec.chunk_rows, s->cols);
    w.chunk = chunk;
    w.chunk_rows = m->spec.chunk_rows;
    w.data = NULL;
    return w;
}

/* Two token groups with an adapter list each; every third slot of an adapter is left out. */
static void make_deltas(struct model *m, const struct rdu_program *p)
{
    const struct model_spec *s = &m->spec;
    uint32_t lists = s->adapters * 2, slots = m->layer_slots;
    m->deltas = arena_alloc(&m->memory, (size_t)lists * s->layers * slots * sizeof(*m->deltas) + 1);
    for (uint32_t i = 0; i < lists; i++) {
        struct rdu_delta *list = m->deltas + (size_t)i * s->layers * slots;
        m->delta_list[i] = list;
        for (uint32_t k = 0; k < s->layers * slots; k++) {
            const struct rdu_slot_info *info = rdu_program_slot(p, RDU_SECTION_LAYER, k % slots);
            if (info->rows == 1 || (k + i) % 3 == 0)
                continue;
            list[k].rank = s->rank;
            list[k].a_type = k % 2 ? RDU_F16 : RDU_F32;
            list[k].b_type = RDU_F32;
            list[k].scale = 0.5f + 0.1f * (float)i;
            list[k].a =
                model_matrix(&m->memory, &m->rng, list[k].a_type, s->rank, info->cols, 0.1f);
            list[k].b =
                model_matrix(&m->memory, &m->rng, list[k].b_type, info->rows, s->rank, 0.1f);
        }
    }
}

static void make_pages(struct model *m)
{
    const struct model_spec *s = &m->spec;
    m->pages_count = (s->context + s->page_tokens - 1) / s->page_tokens;
    m->page_bytes = rdu_kv_page_bytes(s->kv, s->layers, s->kv_heads, s->head_dim, s->page_tokens);
    m->pages = arena_alloc(&m->memory, 2 * sizeof(*m->pages));
    for (int q = 0; q < 2; q++) {
        m->pages[q] = arena_alloc(&m->memory, m->pages_count * sizeof(**m->pages));
        for (uint32_t i = 0; i < m->pages_count; i++)
            m->pages[q][i] = arena_alloc(&m->memory, m->page_bytes);
    }
    model_clear_kv(m);
}

void model_clear_kv(struct model *m)
{
    for (int q = 0; q < 2; q++) {
        for (uint32_t i = 0; i < m->pages_count; i++)
            memset(m->pages[q][i], 0xff, m->page_bytes);
    }
}

void model_open(struct model *m, const struct model_spec *spec, const struct rdu_program *p,
                uint64_t seed)
{
    memset(m, 0, sizeof(*m));
    m->spec = *spec;
    rng_init(&m->rng, seed);
    arena_init(&m->memory, BASE_MIB);
    m->globals_count = rdu_program_slots(p, RDU_SECTION_HEAD);
    m->layer_slots = rdu_program_slots(p, RDU_SECTION_LAYER);
    m->globals = arena_alloc(&m->memory, m->globals_count * sizeof(*m->globals));
    m->layers = arena_alloc(&m->memory, (size_t)spec->layers * m->layer_slots * sizeof(*m->layers));
    for (uint32_t i = 0; i < m->globals_count; i++)
        m->globals[i] = make_weight(m, rdu_program_slot(p, RDU_SECTION_HEAD, i), spec->head);
    for (uint32_t i = 0; i < spec->layers * m->layer_slots; i++)
        m->layers[i] = make_weight(m, rdu_program_slot(p, RDU_SECTION_LAYER, i % m->layer_slots),
                                   spec->matrix);
    make_deltas(m, p);
    make_pages(m);
    m->window = arena_alloc(&m->memory, spec->layers * sizeof(*m->window));
    for (uint32_t i = 0; i < spec->layers; i++)
        m->window[i] = i % 2 ? 0 : 37;
}

void model_close(struct model *m)
{
    arena_done(&m->memory);
}

/* ---- runs ------------------------------------------------------------------------------------ */

void model_step_make(struct model *m, struct model_step *s, uint32_t n_tokens, uint32_t n_outs,
                     uint32_t pos)
{
    memset(s, 0, sizeof(*s));
    s->n_tokens = n_tokens;
    s->n_outs = n_outs;
    for (uint32_t i = 0; i < n_tokens; i++) {
        s->tokens[i] = (int32_t)rng_below(&m->rng, m->spec.vocab);
        s->seq[i] = i % 2;
        s->pos[i] = pos + i / 2;
    }
    for (uint32_t i = 0; i < n_outs; i++)
        s->outs[i] = n_tokens - n_outs + i;
}

void model_run(struct model *m, const struct rdu_program *p, const struct model_step *s,
               struct rdu_node *node, float *logits)
{
    const struct model_spec *spec = &m->spec;
    size_t x_bytes = s->n_tokens * ((size_t)rdu_program_width(p) + 15) / 16 * 16 * sizeof(float);
    float *x = aligned_alloc(64, (x_bytes + 1023) / 64 * 64);
    for (int i = 0; i < 2; i++) {
        uint32_t half = s->n_tokens / 2;
        m->groups[i].token_from = i ? half : 0;
        m->groups[i].token_count = i ? s->n_tokens - half : half;
        m->groups[i].deltas = m->delta_list + i * spec->adapters;
        m->groups[i].adapters_count = spec->adapters;
    }
    struct rdu_args a = {.n_tokens = s->n_tokens,
                         .n_outs = s->n_outs,
                         .n_layers = spec->layers,
                         .tokens = s->tokens,
                         .pos = s->pos,
                         .seq = s->seq,
                         .kv_pages = (void *const *const *)m->pages,
                         .kv_page_tokens = spec->page_tokens,
                         .kv_type = spec->kv,
                         .outs = s->outs,
                         .globals = m->globals,
                         .layers = m->layers,
                         .window = spec->windowed ? m->window : NULL,
                         .groups = m->groups,
                         .groups_count = 2,
                         .x = x,
                         .logits = logits,
                         .logits_stride = (rdu_program_vocab(p) + 7u) & ~7u};
    if (node) {
        rdu_node_run(node, p, &a, 0, spec->layers + 2);
    } else {
        rdu_interp_section(p, &a, RDU_SECTION_EMBED, 0);
        for (uint32_t i = 0; i < spec->layers; i++)
            rdu_interp_section(p, &a, RDU_SECTION_LAYER, i);
        rdu_interp_section(p, &a, RDU_SECTION_HEAD, 0);
    }
    free(x);
}
