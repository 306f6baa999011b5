/* Graphs as text: one line per node, loop bodies indented below it. What it prints is what the
 * passes see; nothing parses it back. */
#include <string.h>

#include "rdu/ir/ir.h"

static const char *const section_name[RDU_SECTIONS] = {"embed", "layer", "head"};
static const char *const elem_name[] = {"void", "f32", "i32", "i8"};

void ir_dim_print(int32_t dim, struct buf *out)
{
    static const char *const name[] = {"tokens", "outs", "ctx", "blocks", "rank"};
    if (dim < 0 && -dim <= (int32_t)BASE_COUNT(name))
        buf_puts(out, name[-dim - 1]);
    else
        buf_printf(out, "%d", dim);
}

static void print_shape(const struct ir_shape *s, struct buf *out)
{
    buf_puts(out, "[");
    for (uint32_t i = 0; i < s->rank && i < IR_DIMS; i++) {
        if (i > 0)
            buf_puts(out, ", ");
        ir_dim_print(s->dim[i], out);
    }
    buf_printf(out, "] %s", elem_name[s->elem & 3u]);
}

static void print_const(const struct ir_op *op, struct buf *out)
{
    float f;
    memcpy(&f, &op->imm, sizeof(f));
    if (op->type == IR_TYPE_F32)
        buf_printf(out, "%.9g", (double)f);
    else if (op->type == IR_TYPE_BOOL)
        buf_puts(out, op->imm ? "true" : "false");
    else
        buf_printf(out, "%d", op->imm);
}

/* What `imm` means for the op, in front of its arguments. */
static void print_imm(const struct ir_op *op, struct buf *out)
{
    switch (op->code) {
    case IR_INDEX:
        buf_printf(out, " i%d", op->imm);
        break;
    case IR_DIM:
        buf_puts(out, " ");
        ir_dim_print(op->imm, out);
        break;
    case IR_CLAMP:
        buf_puts(out, " below ");
        ir_dim_print(op->imm, out);
        break;
    case IR_LOAD:
        if (op->imm < IR_OPERANDS)
            buf_printf(out, " operand %d", op->imm);
        else
            buf_printf(out, " loop %d", op->imm - IR_OPERANDS);
        break;
    case IR_WEIGHT_F32:
    case IR_WEIGHT_Q:
    case IR_WEIGHT_D:
    case IR_WEIGHT_M:
    case IR_VECTOR:
        if (op->imm == IR_SLOT_A || op->imm == IR_SLOT_B)
            buf_puts(out, op->imm == IR_SLOT_A ? " A" : " B");
        else
            buf_printf(out, " slot %d", op->imm);
        break;
    case IR_CARRIED_VALUE:
    case IR_RESULT:
        buf_printf(out, " #%d of", op->imm);
        break;
    default:
        break;
    }
}

static void print_op(const struct ir_body *b, uint32_t id, struct buf *out)
{
    static const char *const reduce[] = {"seq", "sum16", "max"};
    const struct ir_op *op = &b->ops[id];
    if (op->code == IR_CONST) {
        print_const(op, out);
        return;
    }
    buf_puts(out, ir_code_name(op->code));
    print_imm(op, out);
    if (op->code == IR_REDUCE) {
        buf_printf(out, " %s over ", reduce[op->reduce % 3]);
        if (op->arg[4] != IR_NONE)
            buf_printf(out, "v%u", op->arg[4]);
        else
            ir_dim_print(op->imm, out);
        for (uint32_t k = 0; k < op->carried && k < IR_CARRIED; k++)
            buf_printf(out, "%s v%u -> v%u", k ? "," : ", carry", op->arg[k], op->yield[k]);
        return;
    }
    uint32_t arg[5], count = ir_op_args(op, arg);
    for (uint32_t i = 0; i < count; i++)
        buf_printf(out, "%s v%u", i ? "," : "", arg[i]);
}

void ir_body_print(const struct ir_body *b, const char *indent, struct buf *out)
{
    for (uint32_t i = 0; i < b->count; i++) {
        buf_puts(out, indent);
        for (uint32_t p = b->ops[i].parent; p != IR_NONE; p = b->ops[p].parent)
            buf_puts(out, "  ");
        buf_printf(out, "v%u = ", i);
        print_op(b, i, out);
        buf_puts(out, "\n");
    }
    if (b->result != IR_NONE)
        buf_printf(out, "%svalue v%u\n", indent, b->result);
}

static void print_external(const struct rdu_graph *g, const struct ir_key *key, struct buf *out)
{
    static const char *const name[] = {"matmul", "delta", "kv_append", "attention", "copy"};
    buf_puts(out, key->which < BASE_COUNT(name) ? name[key->which] : "?");
    const struct rdu_slot_info *s = ir_slot(g, key->section, key->slot);
    if (s)
        buf_printf(out, " %s [%u, %u]", s->name, s->rows, s->cols);
    if (key->which == IR_EXT_ATTENTION)
        buf_printf(out, " %u heads, %u kv heads of %u, scale %.9g, softcap %.9g%s", key->heads,
                   key->kv_heads, key->head_dim, (double)key->scale, (double)key->softcap,
                   key->windowed ? ", windowed" : "");
    if (key->effect)
        buf_puts(out, key->effect == IR_READS_KV ? ", reads KV" : ", writes KV");
}

void ir_node_print(const struct rdu_graph *g, uint32_t id, struct buf *out)
{
    static const char *const input[] = {"x", "tokens", "positions", "outs"};
    const struct ir_node *n = &g->nodes[id];
    const struct ir_key *key = &n->key;
    buf_printf(out, "  %%%u = ", id);
    if (key->kind == IR_INPUT)
        buf_printf(out, "input %s", input[key->which & 3u]);
    else if (key->kind == IR_TABLE)
        buf_printf(out, "table %s", g->tables[key->which].name);
    else if (key->kind == IR_LOOP)
        buf_printf(out, "loop %s", ir_oper_name(key->hint.oper));
    else
        print_external(g, key, out);
    buf_puts(out, " : ");
    print_shape(&key->shape, out);
    for (uint32_t k = 0; k < key->operands; k++)
        buf_printf(out, "%s%%%u", k ? ", " : " (", key->operand[k]);
    buf_puts(out, key->operands ? ")\n" : "\n");
    if (key->kind == IR_LOOP)
        ir_body_print(&n->body, "      ", out);
}

void rdu_graph_print(const struct rdu_graph *g, struct buf *out)
{
    buf_printf(out, "graph %s, %s numerics\n", g->name,
               g->numerics == RDU_NUMERICS_INT8 ? "int8" : "f32");
    if (ir_failed(g))
        buf_printf(out, "  broken: %s\n", g->err.msg);
    for (uint32_t i = 0; i < g->count; i++) {
        if (g->nodes[i].key.kind == IR_TABLE)
            ir_node_print(g, i, out);
    }
    for (uint32_t s = 0; s < RDU_SECTIONS; s++) {
        if (!g->section[s].begun)
            continue;
        buf_printf(out, "section %s%s\n", section_name[s],
                   s == RDU_SECTION_LAYER ? ", for each row of the argument table" : "");
        for (uint32_t i = 0; i < g->count; i++) {
            if (g->nodes[i].key.kind != IR_TABLE && g->nodes[i].key.section == s)
                ir_node_print(g, i, out);
        }
        if (g->section[s].ended)
            buf_printf(out, "  result %%%u\n", g->section[s].result);
    }
}
