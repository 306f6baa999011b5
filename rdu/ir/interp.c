/* The interpreter from the outside: nodes of a section in order, each Loop as it is, each External
 * by its definition. Values live on the heap for the time they are needed: this is the oracle, not
 * a server. */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/interp.h"
#include "rdu/kernels/kernels.h"

/* ---- preparation ----------------------------------------------------------------------------- */

static void lower_define(struct rdu_graph *g, const struct ir_node *n, struct ir_exec *x)
{
    for (uint32_t v = 0; v < ir_define_variants(g, n); v++) {
        struct ir_define d;
        ir_define(g, n, v, &d);
        x->loops[v] = mem_array(d.count, sizeof(*x->loops[v]));
        x->count[v] = d.count;
        for (uint32_t i = 0; i < d.count; i++) {
            struct ir_body simple;
            ir_body_simplify(&d.loop[i].body, &simple, NULL);
            ir_lower(&simple, &d.loop[i].shape, &x->loops[v][i]);
            ir_body_done(&simple);
        }
        ir_define_done(&d);
    }
}

void ir_exec_prepare(struct rdu_graph *g)
{
    ir_exec_free(g);
    g->exec = mem_array(g->count, sizeof(*g->exec));
    g->exec_count = g->count;
    for (uint32_t i = 0; i < g->count; i++) {
        const struct ir_node *n = &g->nodes[i];
        if (n->key.kind == IR_LOOP) {
            g->exec[i].loops[0] = mem_alloc(sizeof(struct ir_exec_loop));
            g->exec[i].count[0] = 1;
            ir_lower(&n->body, &n->key.shape, g->exec[i].loops[0]);
        } else if (n->key.kind == IR_EXTERNAL) {
            lower_define(g, n, &g->exec[i]);
        }
    }
}

void ir_exec_free(struct rdu_graph *g)
{
    for (uint32_t i = 0; g->exec && i < g->exec_count; i++) {
        for (int v = 0; v < IR_MATMULS; v++) {
            for (uint32_t k = 0; k < g->exec[i].count[v]; k++)
                ir_lower_done(&g->exec[i].loops[v][k]);
            free(g->exec[i].loops[v]);
        }
    }
    free(g->exec);
    g->exec = NULL;
}

/* ---- a run ----------------------------------------------------------------------------------- */

struct interp {
    struct ir_env env;
    struct ir_tensor *value; /* [nodes] */
    uint32_t *uses;          /* [nodes] readers still to come */
};

static size_t x_stride(uint32_t width)
{
    return (width + 15u) & ~(size_t)15u;
}

static uint32_t context_blocks(const struct rdu_args *a)
{
    uint32_t end = 0;
    for (uint32_t i = 0; a->pos && i < a->n_tokens; i++)
        end = BASE_MAX(end, a->pos[i] + 1);
    return (end + RDU_KV_BLOCK - 1) / RDU_KV_BLOCK;
}

static struct ir_env env_open(const struct rdu_graph *g, const struct rdu_args *args,
                              uint32_t section, uint32_t layer)
{
    struct ir_env e = {.graph = g,
                       .args = args,
                       .section = section,
                       .layer = layer,
                       .kv_heads = g->kv_heads,
                       .head_dim = g->head_dim,
                       .n_tokens = args->n_tokens};
    e.ctx_blocks = context_blocks(args);
    e.tiles = ir_tiles_open();
    return e;
}

static struct ir_tensor tensor_new(const struct ir_env *e, const struct ir_shape *s)
{
    size_t rows = ir_env_dim(e, s->dim[0]), mid = s->rank > 1 ? ir_env_dim(e, s->dim[1]) : 1;
    size_t last = s->rank > 2 ? ir_env_dim(e, s->dim[2]) : 1;
    struct ir_tensor t = {.row_stride = mid * last, .dim2 = (uint32_t)last, .elem = s->elem};
    t.data = t.owned =
        mem_array(BASE_MAX(rows * mid * last, 1u), BASE_MAX(ir_elem_bytes(s->elem), 1u));
    return t;
}

static struct ir_tensor tensor_of(const void *data, size_t row_stride, uint32_t elem)
{
    struct ir_tensor t = {.data = (void *)(uintptr_t)data, .row_stride = row_stride, .elem = elem};
    t.dim2 = 1;
    return t;
}

static struct ir_tensor input_of(const struct ir_env *e, const struct ir_node *n)
{
    switch ((enum ir_input)n->key.which) {
    case IR_INPUT_X:
        return tensor_of(e->args->x, x_stride(ir_shape_width(&n->key.shape)), IR_ELEM_F32);
    case IR_INPUT_TOKENS:
        return tensor_of(e->args->tokens, 1, IR_ELEM_I32);
    case IR_INPUT_OUTS:
        return tensor_of(e->args->outs, 1, IR_ELEM_I32);
    case IR_INPUT_ENDS:
        return tensor_of(e->args->ends, 1, IR_ELEM_I32);
    case IR_INPUT_POS:
        break;
    }
    return tensor_of(e->args->pos, 1, IR_ELEM_I32);
}

static struct ir_tensor table_of(const struct rdu_graph *g, const struct ir_node *n)
{
    const struct ir_table *t = &g->tables[n->key.which];
    return tensor_of(t->data, t->cols, IR_ELEM_F32);
}

/* Three-dimensional values keep the size of their last dimension, whatever buffer they are in. */
static void set_dim2(const struct ir_env *e, const struct ir_shape *s, struct ir_tensor *t)
{
    t->dim2 = s->rank > 2 ? ir_env_dim(e, s->dim[2]) : 1;
}

/* The Loops of a definition; the last one's value goes to *out. */
static void run_loops(struct ir_env *e, const struct ir_exec_loop *loops, uint32_t count,
                      const struct ir_tensor *out)
{
    struct ir_tensor temp[IR_DEFINE_LOOPS];
    memset(temp, 0, sizeof(temp));
    for (uint32_t i = 0; i < count; i++) {
        bool last = i + 1 == count;
        if (!last) {
            temp[i] = tensor_new(e, &loops[i].shape);
            e->operand[IR_OPERANDS + i] = &temp[i];
        }
        ir_run_loop(&loops[i], e, last ? out : &temp[i]);
    }
    for (uint32_t i = 0; i + 1 < count; i++)
        free(temp[i].owned);
}

static uint32_t variant_of(const struct ir_env *e, const struct ir_node *n)
{
    if (ir_define_variants(e->graph, n) == 1)
        return IR_MATMUL_F32;
    enum rdu_type type = ir_env_weight(e, (int32_t)n->key.slot).type;
    if (!rdu_type_has_q8(type))
        return IR_MATMUL_F32;
    if (type == RDU_Q2_K)
        return IR_MATMUL_INT8_MIN16;
    return rdu_type_has_min(type) ? IR_MATMUL_INT8_MIN : IR_MATMUL_INT8;
}

/* Rows [from, ...) of t. */
static struct ir_tensor tensor_rows(const struct ir_tensor *t, uint32_t from)
{
    struct ir_tensor r = *t;
    r.data = (char *)t->data + from * t->row_stride * ir_elem_bytes(t->elem);
    r.owned = NULL;
    return r;
}

static void run_delta(struct ir_env *e, const struct ir_node *n, const struct ir_exec *x,
                      const struct ir_tensor *out)
{
    const struct rdu_slot_info *slot = ir_slot(e->graph, n->key.section, n->key.slot);
    const struct ir_tensor *y = e->operand[0], *in = e->operand[1];
    size_t row_bytes = ir_shape_width(&n->key.shape) * sizeof(float);
    for (uint32_t t = 0; t < e->args->n_tokens; t++)
        memcpy((float *)out->data + t * out->row_stride, (float *)y->data + t * y->row_stride,
               row_bytes);
    struct ir_env group = *e;
    size_t idx = (size_t)e->layer * e->graph->slots[1].count + n->key.slot;
    for (uint32_t gi = 0; gi < e->args->groups_count; gi++) {
        const struct rdu_token_group *g = &e->args->groups[gi];
        struct ir_tensor rows = tensor_rows(out, g->token_from),
                         x_rows = tensor_rows(in, g->token_from);
        group.token_from = g->token_from;
        group.n_tokens = g->token_count;
        group.operand[0] = &rows; /* each element is read before it is written, by itself alone */
        group.operand[1] = &x_rows;
        group.delta_rows = slot->rows;
        group.delta_cols = slot->cols;
        for (uint32_t i = 0; i < g->adapters_count; i++) {
            group.delta = &g->deltas[i][idx];
            if (group.delta->a)
                run_loops(&group, x->loops[0], x->count[0], &rows);
        }
    }
}

static void run_node(struct ir_env *e, const struct ir_node *n, const struct ir_exec *x,
                     const struct ir_tensor *out)
{
    if (n->key.kind == IR_EXTERNAL && n->key.which == IR_EXT_DELTA) {
        run_delta(e, n, x, out);
        return;
    }
    uint32_t variant = n->key.kind == IR_EXTERNAL ? variant_of(e, n) : 0;
    run_loops(e, x->loops[variant], x->count[variant], out);
}

static void release(struct interp *it, uint32_t id)
{
    if (--it->uses[id] == 0) {
        free(it->value[id].owned);
        it->value[id].owned = NULL;
    }
}

static void eval(struct interp *it, uint32_t id)
{
    const struct rdu_graph *g = it->env.graph;
    const struct ir_node *n = &g->nodes[id];
    if (n->key.kind == IR_INPUT) {
        it->value[id] = input_of(&it->env, n);
        return;
    }
    if (n->key.kind == IR_TABLE) {
        it->value[id] = table_of(g, n);
        return;
    }
    it->value[id] = tensor_new(&it->env, &n->key.shape);
    for (uint32_t k = 0; k < n->key.operands; k++)
        it->env.operand[k] = &it->value[n->key.operand[k]];
    run_node(&it->env, n, &g->exec[id], &it->value[id]);
    for (uint32_t k = 0; k < n->key.operands; k++)
        release(it, n->key.operand[k]);
}

/* The section's result to where the caller wants it; the padding of x and logits rows is 0. */
static void deliver(const struct interp *it, const struct rdu_graph *g, uint32_t section)
{
    const struct rdu_args *a = it->env.args;
    const struct ir_tensor *t = &it->value[g->section[section].result];
    uint32_t width = ir_shape_width(&g->nodes[g->section[section].result].key.shape);
    bool head = section == RDU_SECTION_HEAD;
    float *to = head ? a->logits : a->x;
    size_t stride = head ? a->logits_stride : x_stride(width);
    uint32_t rows = head ? a->n_outs : a->n_tokens;
    for (uint32_t i = 0; i < rows; i++)
        memmove(to + i * stride, (const float *)t->data + i * t->row_stride, width * sizeof(float));
}

static void count_uses(const struct rdu_graph *g, uint32_t section, uint32_t *uses)
{
    for (uint32_t i = 0; i < g->count; i++) {
        const struct ir_key *key = &g->nodes[i].key;
        if (key->kind == IR_TABLE || key->section != section)
            continue;
        for (uint32_t k = 0; k < key->operands; k++)
            uses[key->operand[k]]++;
    }
    uses[g->section[section].result]++;
}

void rdu_interp_section(const struct rdu_program *p, const struct rdu_args *args,
                        enum rdu_section section, uint32_t layer)
{
    const struct rdu_graph *g = p->graph;
    struct interp it = {.env = env_open(g, args, section, layer)};
    it.value = mem_array(g->count, sizeof(*it.value));
    it.uses = mem_array(g->count, sizeof(*it.uses));
    count_uses(g, section, it.uses);
    for (uint32_t i = 0; i < g->count; i++) {
        const struct ir_key *key = &g->nodes[i].key;
        bool wanted = it.uses[i] > 0 || key->effect & IR_WRITES_KV;
        if (wanted && (key->kind == IR_TABLE || key->section == (uint32_t)section))
            eval(&it, i);
    }
    deliver(&it, g, section);
    for (uint32_t i = 0; i < g->count; i++)
        free(it.value[i].owned);
    free(it.value);
    free(it.uses);
    ir_tiles_close(&it.env.tiles);
}

/* ---- one Loop on planned buffers ------------------------------------------------------------- */

static struct ir_tensor buffer_of(const struct rdu_program *p, const struct rdu_args *args,
                                  uint32_t id, char *arena)
{
    if (id == RDU_BUF_X)
        return tensor_of(args->x, x_stride(p->width), IR_ELEM_F32);
    if (id == RDU_BUF_LOGITS)
        return tensor_of(args->logits, args->logits_stride, IR_ELEM_F32);
    return tensor_of(rdu_buf_base(p, arena, id, args->n_tokens), rdu_buf_stride(&p->bufs[id]),
                     IR_ELEM_F32);
}

void rdu_interp_launch(const struct rdu_program *p, const struct rdu_launch *l,
                       const struct rdu_args *args, uint32_t layer, char *arena)
{
    const struct rdu_graph *g = p->graph;
    const struct ir_node *n = &g->nodes[l->node];
    struct ir_env e = env_open(g, args, n->key.section, layer);
    struct ir_tensor in[IR_OPERANDS];
    uint32_t next = 0;
    for (uint32_t k = 0; k < n->key.operands; k++) {
        const struct ir_node *from = &g->nodes[n->key.operand[k]];
        if (from->key.kind == IR_TABLE)
            in[k] = table_of(g, from);
        else if (from->key.kind == IR_INPUT && from->key.which != IR_INPUT_X)
            in[k] = input_of(&e, from);
        else
            in[k] = buffer_of(p, args, l->in[next++], arena);
        set_dim2(&e, &from->key.shape, &in[k]);
        e.operand[k] = &in[k];
    }
    struct ir_tensor out = buffer_of(p, args, l->out[0], arena);
    ir_run_loop(g->exec[l->node].loops[0], &e, &out);
    ir_tiles_close(&e.tiles);
}
