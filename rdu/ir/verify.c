/* Checks of a whole graph, made when a program is opened and again after each rewriting pass: a
 * graph that passes cannot make the interpreter read outside of its operands. */
#include <string.h>

#include "rdu/ir/ir.h"

static const char *const section_name[RDU_SECTIONS] = {"embed", "layer", "head"};

static enum err_code check_operands(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_key *key = &g->nodes[id].key;
    if (key->operands > IR_OPERANDS || key->kind > IR_EXTERNAL || key->section >= RDU_SECTIONS)
        return err_set(e, ERR_INVALID, "graph %s: node %%%u is malformed", g->name, id);
    for (uint32_t k = 0; k < key->operands; k++) {
        uint32_t from = key->operand[k];
        if (from >= id)
            return err_set(e, ERR_INVALID,
                           "graph %s: node %%%u uses %%%u, which is not computed before it",
                           g->name, id, from);
        if (g->nodes[from].key.kind != IR_TABLE && g->nodes[from].key.section != key->section)
            return err_set(e, ERR_INVALID, "graph %s: node %%%u uses %%%u of another section",
                           g->name, id, from);
    }
    return ERR_OK;
}

static enum err_code check_loop(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_node *n = &g->nodes[id];
    struct ir_shape operand[IR_OPERANDS];
    char what[64];
    for (uint32_t k = 0; k < n->key.operands; k++)
        operand[k] = g->nodes[n->key.operand[k]].key.shape;
    snprintf(what, sizeof(what), "%s loop %%%u", ir_oper_name(n->key.hint.oper), id);
    struct ir_body_scope scope = {.graph = g,
                                  .section = n->key.section,
                                  .operand = operand,
                                  .operands = n->key.operands,
                                  .what = what};
    return ir_verify_body(&n->body, &n->key.shape, &scope, e);
}

/* The definition of an External, Loop by Loop: earlier Loops are operands of later ones. */
static enum err_code check_define(const struct rdu_graph *g, uint32_t id, uint32_t variant,
                                  struct err *e)
{
    const struct ir_node *n = &g->nodes[id];
    struct ir_shape operand[IR_OPERANDS + IR_DEFINE_LOOPS];
    struct ir_define d;
    enum err_code rc = ERR_OK;
    memset(operand, 0, sizeof(operand));
    for (uint32_t k = 0; k < n->key.operands; k++)
        operand[k] = g->nodes[n->key.operand[k]].key.shape;
    ir_define(g, n, variant, &d);
    for (uint32_t i = 0; i < d.count && rc == ERR_OK; i++) {
        char what[64];
        snprintf(what, sizeof(what), "definition of %%%u, loop %u", id, i);
        struct ir_body_scope scope = {.graph = g,
                                      .section = n->key.section,
                                      .operand = operand,
                                      .operands = IR_OPERANDS + i,
                                      .effect = n->key.effect,
                                      .kv_heads = n->key.kv_heads,
                                      .head_dim = n->key.head_dim,
                                      .what = what};
        rc = ir_verify_body(&d.loop[i].body, &d.loop[i].shape, &scope, e);
        operand[IR_OPERANDS + i] = d.loop[i].shape;
    }
    ir_define_done(&d);
    return rc;
}

static enum err_code misfit(const struct rdu_graph *g, uint32_t id, const char *what, struct err *e)
{
    return err_set(e, ERR_INVALID, "graph %s: node %%%u: %s", g->name, id, what);
}

static bool is_matrix(const struct rdu_graph *g, uint32_t id, int32_t rows, uint64_t width)
{
    const struct ir_shape *s = &g->nodes[id].key.shape;
    return s->elem == IR_ELEM_F32 && s->dim[0] == rows && ir_shape_width(s) == width;
}

static enum err_code check_matmul(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_key *key = &g->nodes[id].key;
    const struct rdu_slot_info *w = ir_slot(g, key->section, key->slot);
    if (w == NULL || (key->operands != 1 && key->operands != 4))
        return misfit(g, id, "a matmul of no slot or of the wrong number of operands", e);
    if (!is_matrix(g, key->operand[0], key->shape.dim[0], w->cols) ||
        !is_matrix(g, id, key->shape.dim[0], w->rows))
        return misfit(g, id, "the shapes of x, weight and result do not fit", e);
    if (key->operands == 1)
        return ERR_OK;
    const struct ir_shape *q = &g->nodes[key->operand[1]].key.shape;
    uint32_t blocks = w->cols / IR_RUN;
    if (w->cols % IR_RUN != 0 || q->elem != IR_ELEM_I8 || q->rank != 3 ||
        q->dim[0] != key->shape.dim[0] || q->dim[1] != (int32_t)blocks || q->dim[2] != IR_RUN ||
        !is_matrix(g, key->operand[2], key->shape.dim[0], blocks) ||
        !is_matrix(g, key->operand[3], key->shape.dim[0], blocks))
        return misfit(g, id, "the int8 activations do not fit the weight", e);
    return ERR_OK;
}

static enum err_code check_attention(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_key *key = &g->nodes[id].key;
    if (key->section != RDU_SECTION_LAYER || key->kv_heads != g->kv_heads ||
        key->head_dim != g->head_dim || key->kv_heads == 0 || key->operands != 3)
        return misfit(g, id, "KV belongs to the layer section, in one layout", e);
    uint64_t kv_width = (uint64_t)key->kv_heads * key->head_dim;
    if (key->which == IR_EXT_KV_APPEND) {
        if (key->effect != IR_WRITES_KV)
            return misfit(g, id, "a KV append must declare that it writes", e);
        if (!is_matrix(g, key->operand[0], RDU_DIM_TOKENS, kv_width) ||
            !is_matrix(g, key->operand[1], RDU_DIM_TOKENS, kv_width))
            return misfit(g, id, "k and v do not fit the KV layout", e);
        return ERR_OK;
    }
    const struct ir_key *append = &g->nodes[key->operand[1]].key;
    if (append->kind != IR_EXTERNAL || append->which != IR_EXT_KV_APPEND)
        return misfit(g, id, "attention reads KV before the append of its layer", e);
    if (key->effect != IR_READS_KV)
        return misfit(g, id, "attention must declare that it reads KV", e);
    uint64_t width = (uint64_t)key->heads * key->head_dim;
    if (key->heads == 0 || key->heads % key->kv_heads != 0 ||
        !is_matrix(g, key->operand[0], RDU_DIM_TOKENS, width) ||
        !is_matrix(g, id, RDU_DIM_TOKENS, width))
        return misfit(g, id, "q and the result do not fit the heads", e);
    return ERR_OK;
}

static enum err_code check_delta(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_key *key = &g->nodes[id].key;
    const struct rdu_slot_info *w = ir_slot(g, key->section, key->slot);
    if (w == NULL || key->operands != 2 || key->section != RDU_SECTION_LAYER)
        return misfit(g, id, "a delta of no layer slot", e);
    const struct ir_key *from = &g->nodes[key->operand[0]].key;
    if (from->kind != IR_EXTERNAL || from->which != IR_EXT_MATMUL || from->slot != key->slot ||
        from->operand[0] != key->operand[1] || !is_matrix(g, id, RDU_DIM_TOKENS, w->rows))
        return misfit(g, id, "a delta must follow the matmul of its slot and x", e);
    return ERR_OK;
}

static enum err_code check_external(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_key *key = &g->nodes[id].key;
    enum err_code rc;
    switch (key->which) {
    case IR_EXT_MATMUL:
        rc = check_matmul(g, id, e);
        break;
    case IR_EXT_DELTA:
        rc = check_delta(g, id, e);
        break;
    case IR_EXT_KV_APPEND:
    case IR_EXT_ATTENTION:
        rc = check_attention(g, id, e);
        break;
    case IR_EXT_COPY:
        rc = key->operands == 1 && key->shape.rank == 2 &&
                     ir_shape_same_rows(&key->shape, &g->nodes[key->operand[0]].key.shape)
                 ? ERR_OK
                 : misfit(g, id, "a copy into another shape", e);
        break;
    default:
        rc = misfit(g, id, "an unknown external", e);
    }
    for (uint32_t v = 0; rc == ERR_OK && v < ir_define_variants(g, &g->nodes[id]); v++)
        rc = check_define(g, id, v, e);
    return rc;
}

static enum err_code check_node(const struct rdu_graph *g, uint32_t id, struct err *e)
{
    const struct ir_key *key = &g->nodes[id].key;
    enum err_code rc = check_operands(g, id, e);
    if (rc != ERR_OK)
        return rc;
    if (key->kind == IR_LOOP)
        return key->effect == IR_PURE ? check_loop(g, id, e)
                                      : misfit(g, id, "only an external may have an effect", e);
    if (key->kind == IR_EXTERNAL)
        return check_external(g, id, e);
    if (key->kind == IR_TABLE && key->which >= g->tables_count)
        return misfit(g, id, "a table that does not exist", e);
    return ERR_OK;
}

/* One append per layer, and in layers nobody but its delta sees a bare matmul. */
static enum err_code check_order(const struct rdu_graph *g, struct err *e)
{
    uint32_t append = IR_NONE;
    for (uint32_t i = 0; i < g->count; i++) {
        const struct ir_key *key = &g->nodes[i].key;
        if (key->effect & IR_WRITES_KV) {
            if (append != IR_NONE)
                return misfit(
                    g, i, "a second KV append in the layer: its positions would be written twice",
                    e);
            append = i;
        }
        for (uint32_t k = 0; k < key->operands; k++) {
            const struct ir_key *from = &g->nodes[key->operand[k]].key;
            bool bare = from->kind == IR_EXTERNAL && from->which == IR_EXT_MATMUL &&
                        from->section == RDU_SECTION_LAYER;
            if (bare && !(key->kind == IR_EXTERNAL && key->which == IR_EXT_DELTA))
                return misfit(g, i, "uses a layer's matmul before its adapter deltas", e);
        }
    }
    return ERR_OK;
}

static enum err_code check_section(const struct rdu_graph *g, uint32_t s, struct err *e)
{
    const struct ir_section *sec = &g->section[s];
    if (!sec->begun || !sec->ended)
        return err_set(e, ERR_INVALID, "graph %s: section %s is missing or not ended", g->name,
                       section_name[s]);
    if (sec->result >= g->count || g->nodes[sec->result].key.section != s ||
        g->nodes[sec->result].key.kind == IR_TABLE)
        return err_set(e, ERR_INVALID, "graph %s: the result of section %s is not its own value",
                       g->name, section_name[s]);
    uint32_t width = g->section[RDU_SECTION_LAYER].width;
    if (s == RDU_SECTION_HEAD) {
        if (sec->width != width)
            return err_set(e, ERR_INVALID,
                           "graph %s: x is %u wide in the layers and %u in the head", g->name,
                           width, sec->width);
        const struct ir_shape *r = &g->nodes[sec->result].key.shape;
        if (!is_matrix(g, sec->result, RDU_DIM_OUTS, ir_shape_width(r)) || ir_shape_width(r) == 0)
            return err_set(e, ERR_INVALID,
                           "graph %s: the head must end with [n_outs, vocab]: use "
                           "rdu_take_outs",
                           g->name);
        return ERR_OK;
    }
    if (!is_matrix(g, sec->result, RDU_DIM_TOKENS, width))
        return err_set(e, ERR_INVALID, "graph %s: section %s must end with x [n_tokens, %u]",
                       g->name, section_name[s], width);
    return ERR_OK;
}

/* The sizes of attention that the kernels and the KV pages are made for. */
static enum err_code check_one_x(const struct rdu_graph *g, struct err *e)
{
    for (uint32_t i = 0; i < g->count; i++) {
        const struct ir_key *key = &g->nodes[i].key;
        if (key->kind == IR_INPUT && key->which == IR_INPUT_X &&
            i != g->section[key->section].input)
            return misfit(g, i, "a second x in a section", e);
    }
    return ERR_OK;
}

enum err_code ir_verify(const struct rdu_graph *g, struct err *e)
{
    if (ir_failed(g)) {
        if (e)
            *e = g->err;
        return g->err.code;
    }
    if (g->current >= 0)
        return err_set(e, ERR_INVALID, "graph %s: section %s was not ended", g->name,
                       section_name[g->current]);
    enum err_code rc = ERR_OK;
    for (uint32_t i = 0; i < g->count && rc == ERR_OK; i++)
        rc = check_node(g, i, e);
    for (uint32_t s = 0; s < RDU_SECTIONS && rc == ERR_OK; s++)
        rc = check_section(g, s, e);
    if (rc == ERR_OK)
        rc = check_one_x(g, e);
    return rc == ERR_OK ? check_order(g, e) : rc;
}
