/* A program as one C unit: a function per section (the layer's is called once per layer), launches
 * in the plan's order with every width, stride and offset a constant. Row-wise launches are emitted
 * from the bodies of their Loops, several Loops of a launch in one walk over the rows; products go
 * straight to the leaves; what has state of its own (KV, attention, embedding, adapters) is left to
 * the node. */
#include <stdlib.h>
#include <string.h>

#include "rdu/emit/emit.h"
#include "rdu/emit/text.h"

struct unit {
    const struct rdu_program *p;
    const struct rdu_graph *g;
    uint32_t section;
    struct buf *out;
    struct err *e;
};

void emit_prelude(struct buf *out)
{
    buf_puts(out, emit_text_abi);
    buf_puts(out, emit_text_math);
    buf_puts(out, emit_text_prelude);
}

/* ---- buffers --------------------------------------------------------------------------------- */

static const struct rdu_section_plan *plan_of(const struct unit *u)
{
    return &u->p->section[u->section];
}

static bool is_local(const struct unit *u, uint32_t id)
{
    return id < 256 && (plan_of(u)->local_bits[id / 64] >> (id % 64) & 1);
}

static const char *rows_of(const struct unit *u, uint32_t id)
{
    if (id == RDU_BUF_X)
        return "T";
    return id == RDU_BUF_LOGITS || u->p->bufs[id].per_out ? "O" : "T";
}

static uint32_t width_of(const struct unit *u, uint32_t id)
{
    if (id == RDU_BUF_X)
        return u->p->width;
    return id == RDU_BUF_LOGITS ? u->p->vocab : u->p->bufs[id].width;
}

static uint32_t q_stride_of(const struct rdu_buf *b)
{
    return (b->width + 63u) & ~63u;
}

static uint32_t b_stride_of(const struct rdu_buf *b)
{
    return ((b->width + 31u) / 32 + 15u) & ~15u;
}

/* Pointers of one buffer as variables b<id>, or q<id>, d<id>, s<id>. */
static void declare(const struct unit *u, uint32_t id)
{
    if (id >= u->p->bufs_count)
        return;
    const struct rdu_buf *b = &u->p->bufs[id];
    buf_printf(u->out, "char *const a%u = %s + (uint64_t)%zu * T;\n", id,
               is_local(u, id) ? "(r->small ? r->local : r->shared)" : "r->shared", b->row_offset);
    if (b->kind == RDU_BUF_F32) {
        buf_printf(u->out, "float *const b%u = (float *)a%u;\n(void)b%u;\n", id, id, id);
        return;
    }
    buf_printf(u->out, "int8_t *const q%u = (int8_t *)a%u;\n", id, id);
    buf_printf(u->out, "float *const d%u = (float *)(a%u + (uint64_t)%s * %u);\n", id, id,
               rows_of(u, id), q_stride_of(b));
    buf_printf(u->out, "float *const s%u = d%u + (uint64_t)%s * %u;\n(void)q%u;\n(void)s%u;\n", id,
               id, rows_of(u, id), b_stride_of(b), id, id);
}

/* Each buffer once: in and out may name the same. */
static void declare_all(const struct unit *u, const struct rdu_launch *l)
{
    uint32_t ids[7];
    memcpy(ids, l->in, sizeof(l->in));
    memcpy(ids + 3, l->out, sizeof(l->out));
    for (uint32_t i = 0; i < 7; i++) {
        bool seen = false;
        for (uint32_t k = 0; k < i; k++)
            seen |= ids[k] == ids[i];
        if (!seen)
            declare(u, ids[i]);
    }
}

static struct emit_tensor tensor_of(const struct unit *u, uint32_t id)
{
    struct emit_tensor t = {.elem = IR_ELEM_F32, .dim2 = 1};
    if (id == RDU_BUF_X) {
        snprintf(t.base, sizeof(t.base), "r->x");
        snprintf(t.stride, sizeof(t.stride), "%uu", (u->p->width + 15u) & ~15u);
    } else if (id == RDU_BUF_LOGITS) {
        snprintf(t.base, sizeof(t.base), "r->logits");
        snprintf(t.stride, sizeof(t.stride), "r->logits_stride");
    } else {
        snprintf(t.base, sizeof(t.base), "b%u", id);
        snprintf(t.stride, sizeof(t.stride), "%zuu", rdu_buf_stride(&u->p->bufs[id]));
    }
    return t;
}

/* The integers ('q'), scales ('d') or sums ('s') of an int8 buffer. */
static struct emit_tensor part_of(const struct unit *u, uint32_t id, char part)
{
    const struct rdu_buf *b = &u->p->bufs[id];
    struct emit_tensor t = {.elem = part == 'q' ? IR_ELEM_I8 : IR_ELEM_F32,
                            .dim2 = part == 'q' ? IR_RUN : 1};
    snprintf(t.base, sizeof(t.base), "%c%u", part, id);
    snprintf(t.stride, sizeof(t.stride), "%uu", part == 'q' ? q_stride_of(b) : b_stride_of(b));
    return t;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static const struct ir_node *node_of(const struct unit *u, uint32_t id)
{
    return &u->g->nodes[id];
}

static void set_dim2(const struct unit *u, uint32_t node, struct emit_tensor *t)
{
    const struct ir_shape *s = &node_of(u, node)->key.shape;
    t->dim2 = s->rank > 2 ? (uint32_t)s->dim[2] : 1;
}

/* Operands of a Loop: values in the launch's buffers, in their order, inputs and tables. */
static void bind(const struct unit *u, uint32_t node, const uint32_t *buffers,
                 struct emit_tensor *operand)
{
    const struct ir_key *key = &node_of(u, node)->key;
    for (uint32_t k = 0; k < key->operands; k++) {
        const struct ir_key *from = &node_of(u, key->operand[k])->key;
        struct emit_tensor *t = &operand[k];
        if (from->kind == IR_TABLE) {
            *t = (struct emit_tensor){.elem = IR_ELEM_F32};
            snprintf(t->base, sizeof(t->base), "r->tables[%u]", from->which);
            snprintf(t->stride, sizeof(t->stride), "%uu", u->g->tables[from->which].cols);
        } else if (from->kind == IR_INPUT && from->which != IR_INPUT_X) {
            static const char *const name[] = {"", "r->token_ids", "(const int32_t *)r->pos",
                                               "(const int32_t *)r->out"};
            *t = (struct emit_tensor){.elem = IR_ELEM_I32};
            snprintf(t->base, sizeof(t->base), "(%s)", name[from->which]);
            snprintf(t->stride, sizeof(t->stride), "1u");
        } else {
            *t = tensor_of(u, *buffers++);
        }
        set_dim2(u, key->operand[k], t);
    }
}

static void vectors(const struct unit *u, uint32_t node)
{
    const struct ir_body *b = &node_of(u, node)->body;
    for (uint32_t i = 0; i < b->count; i++) {
        bool first = b->ops[i].code == IR_VECTOR;
        for (uint32_t k = 0; first && k < i; k++)
            first = b->ops[k].code != IR_VECTOR || b->ops[k].imm != b->ops[i].imm;
        if (first)
            buf_printf(u->out, "const float *const w%d = (const float *)r->weights[%d].data;\n",
                       b->ops[i].imm, b->ops[i].imm);
    }
}

/* The row i0 of a Loop; range of its second dimension, NULL = all. */
static void row(const struct unit *u, uint32_t node, const struct emit_tensor *operand,
                struct emit_tensor out, const char *from, const char *to)
{
    const struct ir_node *n = node_of(u, node);
    struct emit_loop l = {.body = &n->body,
                          .shape = &n->key.shape,
                          .operand = operand,
                          .out = out,
                          .tokens = "T",
                          .outs = "O",
                          .from = from,
                          .to = to};
    if (l.out.elem == IR_ELEM_F32)
        set_dim2(u, node, &l.out);
    emit_row(&l, u->out);
}

/* The three Loops of rule 4 on row i0 of x. */
static void quantise_row(const struct unit *u, uint32_t x, struct emit_tensor x_tensor, uint32_t q8,
                         const char *from, const char *to)
{
    for (uint32_t q = 0; q < u->g->count; q++) {
        const struct ir_node *n = node_of(u, q);
        if (n->key.section != u->section || !ir_loop_is(n, IR_OPER_QUANT_Q) ||
            n->key.operand[0] != x)
            continue;
        set_dim2(u, x, &x_tensor);
        struct emit_tensor of_q[2] = {x_tensor, part_of(u, q8, 'd')};
        row(u, n->key.operand[1], of_q, part_of(u, q8, 'd'), from, to);
        row(u, q, of_q, part_of(u, q8, 'q'), from, to);
        struct emit_tensor of_s[2] = {part_of(u, q8, 'q'), part_of(u, q8, 'd')};
        for (uint32_t s = q + 1; s < u->g->count; s++) {
            if (ir_loop_is(node_of(u, s), IR_OPER_QUANT_S) && node_of(u, s)->key.operand[0] == q)
                row(u, s, of_s, part_of(u, q8, 's'), from, to);
        }
        return;
    }
}

static bool is_candidate(const struct unit *u, const struct rdu_launch *l)
{
    bool row_wise = l->kernel == RDU_KERNEL_NORM || l->kernel == RDU_KERNEL_QUANTIZE ||
                    l->kernel == RDU_KERNEL_TAKE_OUTS;
    return row_wise && (l->in[0] == RDU_BUF_X || is_local(u, l->in[0]));
}

static void row_wise(const struct unit *u, const struct rdu_launch *l)
{
    bool quantises = l->kernel == RDU_KERNEL_QUANTIZE;
    uint32_t first = quantises ? l->in[0] : l->out[0];
    struct emit_tensor operand[IR_OPERANDS];
    declare_all(u, l);
    buf_printf(u->out, "sy_rows(r, %s, %s, &from, &to);\n", rows_of(u, first),
               is_candidate(u, l) ? "r->small" : "0");
    if (!quantises)
        vectors(u, l->node);
    buf_puts(u->out, "for (int32_t i0 = (int32_t)from; i0 < (int32_t)to; i0++) {\n");
    if (quantises) {
        const struct ir_key *q = &node_of(u, l->node)->key;
        quantise_row(u, q->operand[0], tensor_of(u, l->in[0]), l->out[1], NULL, NULL);
    } else {
        bind(u, l->node, l->in, operand);
        row(u, l->node, operand, tensor_of(u, l->out[0]), NULL, NULL);
        if (l->out[1] != RDU_BUF_NONE)
            quantise_row(u, l->node, tensor_of(u, l->out[0]), l->out[1], NULL, NULL);
    }
    buf_puts(u->out, "}\n");
}

/* A value copied to where it must be: times one is the same bits. */
static void copy_rows(const struct unit *u, const struct rdu_launch *l)
{
    struct emit_tensor from = tensor_of(u, l->in[0]), to = tensor_of(u, l->out[0]);
    declare_all(u, l);
    buf_printf(u->out, "sy_rows(r, %s, 0, &from, &to);\n", rows_of(u, l->out[0]));
    buf_puts(u->out, "for (uint32_t t = from; t < to; t++)\n");
    buf_printf(
        u->out,
        "__builtin_memmove(%s + t * (uint64_t)%s, %s + t * (uint64_t)%s, %u * sizeof(float));\n",
        to.base, to.stride, from.base, from.stride, width_of(u, l->out[0]));
}

/* ---- products -------------------------------------------------------------------------------- */

/* Products that meet adapters or weights in runs take the node's way. */
static void plain_or_node(const struct unit *u, const struct rdu_launch *l, uint32_t idx)
{
    buf_puts(u->out, "if (r->adapted");
    for (uint32_t i = 0; i < l->slots; i++)
        buf_printf(u->out, " || r->weights[%u].chunk", l->slot[i]);
    buf_printf(u->out, ") {\nr->launch(r->host, %u);\n} else {\nr->count(r->host, %u);\n", idx,
               idx);
}

static void q8_operand(const struct unit *u, uint32_t id)
{
    if (id == RDU_BUF_NONE) {
        buf_puts(u->out, "const struct sy_q8 q = {0};\n");
        return;
    }
    const struct rdu_buf *b = &u->p->bufs[id];
    buf_printf(u->out, "struct sy_q8 q = {q%u, d%u, s%u, %u, %u};\n", id, id, id, q_stride_of(b),
               b_stride_of(b));
}

static void product(const struct unit *u, const struct rdu_launch *l, uint32_t idx)
{
    struct emit_tensor x = tensor_of(u, l->in[0]);
    plain_or_node(u, l, idx);
    declare_all(u, l);
    q8_operand(u, l->in[1]);
    for (uint32_t i = 0; i < l->slots; i++) {
        struct emit_tensor y = tensor_of(u, l->out[i]);
        const struct rdu_slot_info *w = ir_slot(u->g, u->section, l->slot[i]);
        buf_printf(u->out, "sy_groups(r, %u, 1, &from, &to);\n", w->rows);
        buf_printf(u->out, "sy_mm(r, &r->weights[%u], %u, from, to, %s, %s, &q, %s, %s, %s, %d);\n",
                   l->slot[i], w->cols, x.base, x.stride, rows_of(u, l->out[i]), y.base, y.stride,
                   l->add);
    }
    buf_puts(u->out, "}\n");
}

/* Tokens in tiles, so that gate and up are in cache when the activation reads them. */
#define GATE_TILE 32

static void gate_tile(const struct unit *u, const struct rdu_launch *l)
{
    const struct rdu_slot_info *w = ir_slot(u->g, u->section, l->slot[0]);
    struct emit_tensor x = tensor_of(u, l->in[0]);
    if (l->in[1] != RDU_BUF_NONE)
        buf_puts(u->out, "struct sy_q8 part = {q.q + t * q.q_stride, q.d + t * q.b_stride, q.s + t "
                         "* q.b_stride, "
                         "q.q_stride, q.b_stride};\n");
    else
        buf_puts(u->out, "const struct sy_q8 part = q;\n");
    for (uint32_t i = 0; i < 2; i++) {
        struct emit_tensor y = tensor_of(u, l->out[2 + i]);
        buf_printf(
            u->out,
            "sy_mm(r, &r->weights[%u], %u, from, to, %s + t * (uint64_t)%s, %s, &part, n, %s + t * "
            "(uint64_t)%s, %s, 0);\n",
            l->slot[i], w->cols, x.base, x.stride, x.stride, y.base, y.stride, y.stride);
    }
}

static void gate_up(const struct unit *u, const struct rdu_launch *l, uint32_t idx)
{
    uint32_t width = width_of(u, l->out[0]);
    struct emit_tensor operand[IR_OPERANDS];
    plain_or_node(u, l, idx);
    declare_all(u, l);
    q8_operand(u, l->in[1]);
    buf_printf(u->out, "sy_groups(r, %u, 4, &from, &to);\n", width);
    buf_printf(u->out, "const uint32_t c0 = from * 8, c1 = to * 8 < %u ? to * 8 : %u;\n", width,
               width);
    buf_printf(u->out, "for (uint32_t t = 0; from < to && t < %s; t += %d) {\n",
               rows_of(u, l->out[0]), GATE_TILE);
    buf_printf(u->out, "const uint32_t n = %s - t < %d ? %s - t : %d;\n", rows_of(u, l->out[0]),
               GATE_TILE, rows_of(u, l->out[0]), GATE_TILE);
    gate_tile(u, l);
    buf_puts(u->out, "for (int32_t i0 = (int32_t)t; i0 < (int32_t)(t + n); i0++) {\n");
    bind(u, l->node, l->out + 2, operand);
    row(u, l->node, operand, tensor_of(u, l->out[0]), "c0", "c1");
    if (l->out[1] != RDU_BUF_NONE)
        quantise_row(u, l->node, tensor_of(u, l->out[0]), l->out[1], "(c0 / 32)", "(c1 / 32)");
    buf_puts(u->out, "}\n}\n}\n");
}

/* ---- launches -------------------------------------------------------------------------------- */

static bool can_emit_row(const struct unit *u, const struct rdu_launch *l)
{
    const struct ir_node *n = node_of(u, l->node);
    for (uint32_t k = 0; k < n->key.operands; k++) {
        const struct ir_key *from = &node_of(u, n->key.operand[k])->key;
        if (from->kind == IR_INPUT && from->which > IR_INPUT_OUTS)
            return false;
    }
    return n->key.kind == IR_LOOP && n->key.shape.rank >= 2 && emit_is_plain(&n->body);
}

static enum err_code launch(const struct unit *u, const struct rdu_launch *l, uint32_t idx)
{
    switch (l->kernel) {
    case RDU_KERNEL_NORM:
    case RDU_KERNEL_QUANTIZE:
    case RDU_KERNEL_ACT:
    case RDU_KERNEL_ADD:
    case RDU_KERNEL_ADD_BIAS:
    case RDU_KERNEL_SOFTCAP:
    case RDU_KERNEL_TAKE_OUTS:
    case RDU_KERNEL_LOOP:
        if (!can_emit_row(u, l))
            return err_set(u->e, ERR_UNSUPPORTED,
                           "launch %s reads weights or KV in a way no leaf does", l->name);
        row_wise(u, l);
        return ERR_OK;
    case RDU_KERNEL_SCALE:
        if (node_of(u, l->node)->key.kind == IR_LOOP && l->nodes > 0)
            row_wise(u, l);
        else
            copy_rows(u, l);
        return ERR_OK;
    case RDU_KERNEL_MATMUL:
    case RDU_KERNEL_HEAD:
        product(u, l, idx);
        return ERR_OK;
    case RDU_KERNEL_GATE_UP:
        gate_up(u, l, idx);
        return ERR_OK;
    case RDU_KERNEL_EMBED:
    case RDU_KERNEL_ROPE:
    case RDU_KERNEL_ROPE_APPEND:
    case RDU_KERNEL_APPEND:
    case RDU_KERNEL_ATTENTION:
    case RDU_KERNEL_CENTER:
    case RDU_KERNEL_MEAN_POOL:
    case RDU_KERNELS:
        break;
    }
    buf_printf(u->out, "r->launch(r->host, %u);\n", idx);
    return ERR_OK;
}

static bool writes_x(const struct rdu_launch *l)
{
    for (int i = 0; i < 4; i++) {
        if (l->out[i] == RDU_BUF_X)
            return true;
    }
    return false;
}

static enum err_code section(const struct unit *u)
{
    static const char *const name[RDU_SECTIONS] = {"embed", "layer", "head"};
    const struct rdu_section_plan *plan = plan_of(u);
    enum err_code rc = ERR_OK;
    buf_printf(u->out, "\nstatic void %s(struct sy_run *r)\n{\n", name[u->section]);
    buf_puts(u->out, "const uint32_t T = r->tokens, O = r->outs;\nuint32_t from, to;\n"
                     "(void)T;\n(void)O;\n(void)from;\n(void)to;\n");
    for (uint32_t i = 0; i < plan->count && rc == ERR_OK; i++) {
        const struct rdu_launch *l = &plan->launches[i];
        buf_printf(u->out, "{ /* %u %s */\nif (r->ahead)\nr->ahead(r->host, %u);\n", i,
                   rdu_kernel_name(l->kernel), i);
        rc = launch(u, l, i);
        bool ends = i + 1 == plan->count || writes_x(&plan->launches[i + 1]);
        buf_printf(u->out, "}\nif (r->threads > 1%s)\nr->barrier(r->host);\n",
                   is_candidate(u, l) && !ends ? " && !r->small" : "");
    }
    buf_puts(u->out, "}\n");
    return rc;
}

enum err_code emit_program(const struct rdu_program *p, struct buf *out, struct err *e)
{
    if (p->bufs_count > 256)
        return err_set(e, ERR_UNSUPPORTED, "%u buffers, native code takes 256", p->bufs_count);
    buf_printf(out, "/* emitter %d */\n", EMIT_VERSION);
    emit_prelude(out);
    enum err_code rc = ERR_OK;
    for (uint32_t s = 0; s < RDU_SECTIONS && rc == ERR_OK; s++) {
        struct unit u = {.p = p, .g = p->graph, .section = s, .out = out, .e = e};
        rc = section(&u);
    }
    buf_puts(out, "\n__attribute__((visibility(\"default\"))) const struct sy_unit sy_unit = "
                  "{SY_ABI, {embed, "
                  "layer, head}};\n");
    return rc;
}
