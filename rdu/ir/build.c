/* The builder calls of rdu.h: check shapes, then emit the operator's Loop or External. The first
 * mistake sticks to the graph and rdu_program_open reports it; later calls do nothing and return 0.
 */
#include <string.h>

#include "rdu/ir/ir.h"

/* The f32 matrix `id` of the current section, or NULL after failing. */
static const struct ir_shape *matrix(struct rdu_graph *g, uint32_t id, const char *who)
{
    if (ir_failed(g))
        return NULL;
    if (g->current < 0) {
        ir_fail(g, "%s outside a section: call rdu_graph_begin first", who);
        return NULL;
    }
    if (id >= g->count) {
        ir_fail(g, "%s of value %u, which does not exist", who, id);
        return NULL;
    }
    const struct ir_key *key = &g->nodes[id].key;
    if (key->kind != IR_TABLE && key->section != (uint32_t)g->current) {
        ir_fail(g, "%s of value %u, which belongs to another section", who, id);
        return NULL;
    }
    if (key->shape.elem != IR_ELEM_F32 || ir_shape_width(&key->shape) == 0) {
        ir_fail(g, "%s of value %u, which is no f32 matrix", who, id);
        return NULL;
    }
    return &key->shape;
}

static const struct rdu_slot_info *slot_of(struct rdu_graph *g, uint32_t slot, const char *who)
{
    const struct rdu_slot_info *s = ir_slot(g, (uint32_t)g->current, slot);
    if (s == NULL)
        ir_fail(g, "%s uses weight slot %u, which this section does not have", who, slot);
    return s;
}

/* A slot that must be one row of `cols` floats. */
static bool is_vector(struct rdu_graph *g, uint32_t slot, uint32_t cols, const char *who)
{
    const struct rdu_slot_info *s = slot_of(g, slot, who);
    if (s && (s->rows != 1 || s->cols != cols))
        ir_fail(g, "%s needs slot %s as [1, %u], it is [%u, %u]", who, s->name, cols, s->rows,
                s->cols);
    return !ir_failed(g);
}

static uint32_t oper(struct rdu_graph *g, struct ir_shape shape, const struct ir_hint *hint,
                     const uint32_t *operand, uint32_t operands)
{
    struct ir_body b;
    ir_body_init(&b);
    ir_oper_body(hint, &shape, &b);
    return ir_node_loop(g, shape, operand, operands, &b, hint);
}

static struct ir_hint hint_of(enum ir_oper which)
{
    struct ir_hint h;
    memset(&h, 0, sizeof(h));
    h.oper = which;
    h.slot = IR_NONE;
    return h;
}

static struct ir_shape flat(const struct ir_shape *s)
{
    return ir_shape2(IR_ELEM_F32, s->dim[0], (int32_t)ir_shape_width(s));
}

uint32_t rdu_embed(struct rdu_graph *g, uint32_t tokens, uint32_t slot)
{
    if (ir_failed(g))
        return 0;
    if (g->current != RDU_SECTION_EMBED || tokens != g->section[RDU_SECTION_EMBED].input) {
        ir_fail(g, "rdu_embed takes the tokens of the embed section");
        return 0;
    }
    const struct rdu_slot_info *s = slot_of(g, slot, "rdu_embed");
    if (s == NULL)
        return 0;
    struct ir_hint h = hint_of(IR_OPER_EMBED);
    h.slot = slot;
    h.slot_rows = s->rows;
    struct ir_shape shape = ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, (int32_t)s->cols);
    return oper(g, shape, &h, &tokens, 1);
}

uint32_t rdu_embed_pos(struct rdu_graph *g, uint32_t slot)
{
    if (ir_failed(g))
        return 0;
    if (g->current != RDU_SECTION_EMBED) {
        ir_fail(g, "rdu_embed_pos belongs in the embed section");
        return 0;
    }
    const struct rdu_slot_info *s = slot_of(g, slot, "rdu_embed_pos");
    if (s == NULL)
        return 0;
    struct ir_hint h = hint_of(IR_OPER_EMBED);
    h.slot = slot;
    h.slot_rows = s->rows;
    struct ir_shape shape = ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, (int32_t)s->cols);
    uint32_t pos = ir_node_input(g, IR_INPUT_POS);
    return oper(g, shape, &h, &pos, 1);
}

uint32_t rdu_rms_norm(struct rdu_graph *g, uint32_t x, uint32_t slot, float eps, uint32_t groups)
{
    const struct ir_shape *s = matrix(g, x, "rdu_rms_norm");
    if (s == NULL)
        return 0;
    uint32_t width = ir_shape_width(s);
    if (groups == 0 || width % groups != 0) {
        ir_fail(g, "rdu_rms_norm: %u columns do not split into %u groups", width, groups);
        return 0;
    }
    if (!is_vector(g, slot, width / groups, "rdu_rms_norm"))
        return 0;
    struct ir_hint h = hint_of(IR_OPER_NORM);
    h.slot = slot;
    h.f = eps;
    struct ir_shape shape = flat(s);
    if (groups > 1)
        shape = ir_shape3(IR_ELEM_F32, s->dim[0], (int32_t)groups, (int32_t)(width / groups));
    return oper(g, shape, &h, &x, 1);
}

uint32_t rdu_layer_norm(struct rdu_graph *g, uint32_t x, uint32_t weight_slot, uint32_t bias_slot,
                        float eps)
{
    uint32_t y = rdu_rms_norm(g, rdu_center(g, x), weight_slot, eps, 1);
    return rdu_add_bias(g, y, bias_slot);
}

/* q, d and s of x (rule 4), each made once per x by hash-consing. */
static void quantise(struct rdu_graph *g, uint32_t x, const struct ir_shape *s, uint32_t ret[3])
{
    int32_t rows = s->dim[0], blocks = (int32_t)(ir_shape_width(s) / IR_RUN);
    struct ir_hint h = hint_of(IR_OPER_QUANT_D);
    ret[1] = oper(g, ir_shape2(IR_ELEM_F32, rows, blocks), &h, &x, 1);
    const uint32_t of_q[2] = {x, ret[1]};
    h.oper = IR_OPER_QUANT_Q;
    ret[0] = oper(g, ir_shape3(IR_ELEM_I8, rows, blocks, IR_RUN), &h, of_q, 2);
    h.oper = IR_OPER_QUANT_S;
    ret[2] = oper(g, ir_shape2(IR_ELEM_F32, rows, blocks), &h, ret, 2);
}

uint32_t rdu_matmul(struct rdu_graph *g, uint32_t x, uint32_t slot)
{
    const struct ir_shape *found = matrix(g, x, "rdu_matmul");
    const struct rdu_slot_info *w = found ? slot_of(g, slot, "rdu_matmul") : NULL;
    if (w == NULL)
        return 0;
    struct ir_shape s = *found; /* adding nodes may move them */
    if (ir_shape_width(&s) != w->cols) {
        ir_fail(g, "rdu_matmul: x has %u columns, slot %s is [%u, %u]", ir_shape_width(&s), w->name,
                w->rows, w->cols);
        return 0;
    }
    struct ir_key key;
    ir_key_init(&key, IR_EXTERNAL, (uint32_t)g->current,
                ir_shape2(IR_ELEM_F32, s.dim[0], (int32_t)w->rows));
    key.which = IR_EXT_MATMUL;
    key.slot = slot;
    key.operand[0] = x;
    key.operands = 1;
    /* Rows that are no whole blocks can only meet float weights, which take f32 activations. */
    if (g->numerics == RDU_NUMERICS_INT8 && w->cols % IR_RUN == 0) {
        quantise(g, x, &s, &key.operand[1]);
        key.operands = 4;
    }
    uint32_t y = ir_node_add(g, &key, NULL);
    if (g->current != RDU_SECTION_LAYER)
        return y;
    ir_key_init(&key, IR_EXTERNAL, RDU_SECTION_LAYER, key.shape);
    key.which = IR_EXT_DELTA;
    key.slot = slot;
    key.operand[0] = y;
    key.operand[1] = x;
    key.operands = 2;
    return ir_node_add(g, &key, NULL);
}

/* Element by element over one or two matrices of the same rows. */
static uint32_t pointwise(struct rdu_graph *g, const struct ir_hint *h, const uint32_t *x,
                          uint32_t count)
{
    const char *who = ir_oper_name(h->oper);
    const struct ir_shape *a = matrix(g, x[0], who);
    const struct ir_shape *b = a && count > 1 ? matrix(g, x[1], who) : a;
    if (b == NULL)
        return 0;
    if (!ir_shape_same_rows(a, b)) {
        ir_fail(g, "%s of unlike shapes: %u and %u columns, or unlike rows", who, ir_shape_width(a),
                ir_shape_width(b));
        return 0;
    }
    return oper(g, flat(a), h, x, count);
}

uint32_t rdu_add(struct rdu_graph *g, uint32_t a, uint32_t b)
{
    struct ir_hint h = hint_of(IR_OPER_ADD);
    const uint32_t x[2] = {a, b};
    return pointwise(g, &h, x, 2);
}

uint32_t rdu_add_bias(struct rdu_graph *g, uint32_t x, uint32_t slot)
{
    const struct ir_shape *s = matrix(g, x, "rdu_add_bias");
    if (s == NULL || !is_vector(g, slot, ir_shape_width(s), "rdu_add_bias"))
        return 0;
    struct ir_hint h = hint_of(IR_OPER_ADD_BIAS);
    h.slot = slot;
    return pointwise(g, &h, &x, 1);
}

uint32_t rdu_scale(struct rdu_graph *g, uint32_t x, float factor)
{
    struct ir_hint h = hint_of(IR_OPER_SCALE);
    h.f = factor;
    return pointwise(g, &h, &x, 1);
}

uint32_t rdu_softcap(struct rdu_graph *g, uint32_t x, float cap)
{
    struct ir_hint h = hint_of(IR_OPER_SOFTCAP);
    h.f = cap;
    if (!(cap > 0.0f))
        ir_fail(g, "rdu_softcap: the cap must be above 0");
    return pointwise(g, &h, &x, 1);
}

uint32_t rdu_silu_mul(struct rdu_graph *g, uint32_t gate, uint32_t up)
{
    struct ir_hint h = hint_of(IR_OPER_SILU_MUL);
    const uint32_t x[2] = {gate, up};
    return pointwise(g, &h, x, 2);
}

uint32_t rdu_gelu_mul(struct rdu_graph *g, uint32_t gate, uint32_t up)
{
    struct ir_hint h = hint_of(IR_OPER_GELU_MUL);
    const uint32_t x[2] = {gate, up};
    return pointwise(g, &h, x, 2);
}

uint32_t rdu_gelu(struct rdu_graph *g, uint32_t x)
{
    struct ir_hint h = hint_of(IR_OPER_GELU);
    return pointwise(g, &h, &x, 1);
}

uint32_t rdu_center(struct rdu_graph *g, uint32_t x)
{
    struct ir_hint h = hint_of(IR_OPER_CENTER);
    return pointwise(g, &h, &x, 1);
}

static bool rope_fits(struct rdu_graph *g, const struct ir_shape *x, const struct ir_hint *h,
                      const struct ir_shape *cosine, const struct ir_shape *sine)
{
    if (x->dim[0] != RDU_DIM_TOKENS || (uint64_t)h->heads * h->head_dim != ir_shape_width(x))
        ir_fail(g, "rdu_rope: x must be [n_tokens, %u * %u], it has %u columns", h->heads,
                h->head_dim, ir_shape_width(x));
    else if (h->rot == 0 || h->rot % 2 != 0 || h->rot > h->head_dim || h->head_dim % 2 != 0)
        ir_fail(g, "rdu_rope: rot %u must be even and at most head_dim %u, which must be even",
                h->rot, h->head_dim);
    else if (h->style != RDU_ROPE_PAIRS && h->style != RDU_ROPE_HALVES)
        ir_fail(g, "rdu_rope: unknown style %u", h->style);
    else if (ir_shape_width(cosine) != h->rot / 2 || !ir_shape_same_rows(cosine, sine) ||
             cosine->dim[0] <= 0)
        ir_fail(g, "rdu_rope: the tables must be two constants of %u columns", h->rot / 2);
    return !ir_failed(g);
}

uint32_t rdu_rope(struct rdu_graph *g, uint32_t x, uint32_t cos_table, uint32_t sin_table,
                  uint32_t heads, uint32_t head_dim, uint32_t rot, enum rdu_rope style)
{
    const struct ir_shape *xs = matrix(g, x, "rdu_rope");
    const struct ir_shape *cs = xs ? matrix(g, cos_table, "rdu_rope") : NULL;
    const struct ir_shape *ss = cs ? matrix(g, sin_table, "rdu_rope") : NULL;
    if (ss == NULL)
        return 0;
    struct ir_hint h = hint_of(IR_OPER_ROPE);
    h.heads = heads;
    h.head_dim = head_dim;
    h.rot = rot;
    h.style = (uint32_t)style;
    h.table_rows = (uint32_t)cs->dim[0];
    if (!rope_fits(g, xs, &h, cs, ss))
        return 0;
    struct ir_shape shape =
        ir_shape3(IR_ELEM_F32, RDU_DIM_TOKENS, (int32_t)heads, (int32_t)head_dim);
    const uint32_t operand[4] = {x, cos_table, sin_table, ir_node_input(g, IR_INPUT_POS)};
    return oper(g, shape, &h, operand, 4);
}

static bool attention_fits(struct rdu_graph *g, const struct ir_shape *q, const struct ir_shape *k,
                           const struct ir_shape *v, const struct rdu_attention_options *o)
{
    uint64_t kv_width = (uint64_t)o->kv_heads * o->head_dim;
    if (g->current != RDU_SECTION_LAYER)
        ir_fail(g, "rdu_attention belongs in the layer section: KV pages are per layer");
    else if (o->kv_heads == 0 || o->heads % o->kv_heads != 0 || o->heads == 0 || o->head_dim == 0)
        ir_fail(g, "rdu_attention: %u heads do not share %u kv heads", o->heads, o->kv_heads);
    else if (q->dim[0] != RDU_DIM_TOKENS || !ir_shape_same_rows(k, v) || k->dim[0] != q->dim[0] ||
             ir_shape_width(q) != (uint64_t)o->heads * o->head_dim || ir_shape_width(k) != kv_width)
        ir_fail(g, "rdu_attention: q has %u, k %u and v %u columns for %u and %u heads of %u",
                ir_shape_width(q), ir_shape_width(k), ir_shape_width(v), o->heads, o->kv_heads,
                o->head_dim);
    else if (g->kv_heads != 0 && (g->kv_heads != o->kv_heads || g->head_dim != o->head_dim))
        ir_fail(g, "rdu_attention: %u kv heads of %u after %u of %u: one KV layout per program",
                o->kv_heads, o->head_dim, g->kv_heads, g->head_dim);
    else if (!(o->softcap >= 0.0f))
        ir_fail(g, "rdu_attention: the softcap must be 0 (none) or above");
    return !ir_failed(g);
}

uint32_t rdu_attention(struct rdu_graph *g, uint32_t q, uint32_t k, uint32_t v,
                       const struct rdu_attention_options *opt)
{
    const struct ir_shape *qs = matrix(g, q, "rdu_attention");
    const struct ir_shape *ks = qs ? matrix(g, k, "rdu_attention") : NULL;
    const struct ir_shape *vs = ks ? matrix(g, v, "rdu_attention") : NULL;
    if (vs == NULL || !attention_fits(g, qs, ks, vs, opt))
        return 0;
    struct ir_shape q_flat = flat(qs);
    g->kv_heads = opt->kv_heads;
    g->head_dim = opt->head_dim;
    struct ir_key key;
    ir_key_init(
        &key, IR_EXTERNAL, RDU_SECTION_LAYER,
        ir_shape3(IR_ELEM_VOID, RDU_DIM_TOKENS, (int32_t)opt->kv_heads, (int32_t)opt->head_dim));
    uint32_t pos = ir_node_input(g, IR_INPUT_POS);
    key.which = IR_EXT_KV_APPEND;
    key.operand[0] = k;
    key.operand[1] = v;
    key.operand[2] = pos;
    key.operands = 3;
    key.kv_heads = opt->kv_heads;
    key.head_dim = opt->head_dim;
    key.effect = IR_WRITES_KV;
    uint32_t appended = ir_node_add(g, &key, NULL);
    key.which = IR_EXT_ATTENTION;
    key.shape = q_flat;
    key.operand[0] = q;
    key.operand[1] = appended;
    key.operand[2] = opt->bidirectional ? ir_node_input(g, IR_INPUT_ENDS) : pos;
    key.heads = opt->heads;
    key.windowed = opt->windowed;
    key.scale = opt->scale;
    key.softcap = opt->softcap;
    key.effect = IR_READS_KV;
    return ir_node_add(g, &key, NULL);
}

/* From the rows of all tokens to those of the wanted outputs: `count` operands, x first. */
static uint32_t to_outs(struct rdu_graph *g, enum ir_oper which, const uint32_t *operand, uint32_t count,
                        const char *who)
{
    const struct ir_shape *s = matrix(g, operand[0], who);
    if (s == NULL)
        return 0;
    if (g->current != RDU_SECTION_HEAD || s->dim[0] != RDU_DIM_TOKENS) {
        ir_fail(g, "%s takes a [n_tokens, w] value of the head section", who);
        return 0;
    }
    struct ir_hint h = hint_of(which);
    return oper(g, ir_shape2(IR_ELEM_F32, RDU_DIM_OUTS, (int32_t)ir_shape_width(s)), &h, operand, count);
}

uint32_t rdu_take_outs(struct rdu_graph *g, uint32_t x)
{
    const uint32_t operand[2] = {x, ir_node_input(g, IR_INPUT_OUTS)};
    return to_outs(g, IR_OPER_TAKE_OUTS, operand, 2, "rdu_take_outs");
}

uint32_t rdu_mean_pool(struct rdu_graph *g, uint32_t x)
{
    const uint32_t operand[3] = {x, ir_node_input(g, IR_INPUT_OUTS), ir_node_input(g, IR_INPUT_POS)};
    return to_outs(g, IR_OPER_MEAN_POOL, operand, 3, "rdu_mean_pool");
}
