/* One Loop body as C for one row of its domain. Values are single-assignment variables named after
 * their ids; what does not depend on the last dimension is computed before the loop over it.
 * Reductions keep the order the rules fix: 16 partial sums are 16 lanes, so a compiler may use
 * vectors without changing a bit. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/emit/emit.h"

struct emit {
    const struct emit_loop *l;
    const struct ir_body *b;
    struct buf *out;
    bool *lane; /* [ops] depends on the last index */
};

/* ---- scalars --------------------------------------------------------------------------------- */

void emit_const(uint32_t type, int32_t bits, struct buf *out)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    if (type != IR_TYPE_F32)
        buf_printf(out, bits == INT32_MIN ? "INT32_MIN" : "%d", bits);
    else if (isfinite(f))
        buf_printf(out, "(%af)", (double)f);
    else
        buf_printf(out, "rdu_float_of_bits(0x%08xu)", (uint32_t)bits);
}

static char *infix(const char *a, const char *op, const char *b)
{
    return mem_format("(%s %s %s)", a, op, b);
}

static char *wrap(const char *a, const char *op, const char *b)
{
    return mem_format("(int32_t)((uint32_t)%s %s (uint32_t)%s)", a, op, b);
}

char *emit_scalar(uint32_t code, uint32_t arg_type, const char *a, const char *b, const char *c)
{
    bool f = arg_type == IR_TYPE_F32;
    switch (code) {
    case IR_ADD:
        return f ? infix(a, "+", b) : wrap(a, "+", b);
    case IR_SUB:
        return f ? infix(a, "-", b) : wrap(a, "-", b);
    case IR_MUL:
        return f ? infix(a, "*", b) : wrap(a, "*", b);
    case IR_DIV:
        return f ? infix(a, "/", b) : mem_format("sy_div(%s, %s)", a, b);
    case IR_MOD:
        return mem_format("sy_mod(%s, %s)", a, b);
    case IR_MAX:
        return mem_format("(%s > %s ? %s : %s)", b, a, b, a);
    case IR_MIN:
        return mem_format("(%s < %s ? %s : %s)", b, a, b, a);
    case IR_FMA:
        return mem_format("__builtin_fmaf(%s, %s, %s)", a, b, c);
    case IR_NEG:
        return f ? mem_format("(-%s)", a) : mem_format("(int32_t)(0u - (uint32_t)%s)", a);
    case IR_ABS:
        return f ? mem_format("__builtin_fabsf(%s)", a)
                 : mem_format("(%s < 0 ? (int32_t)(0u - (uint32_t)%s) : %s)", a, a, a);
    case IR_SQRT:
        return mem_format("__builtin_sqrtf(%s)", a);
    case IR_EXP:
        return mem_format("rdu_expf(%s)", a);
    case IR_TANH:
        return mem_format("rdu_tanhf(%s)", a);
    case IR_LOG:
        return mem_format("rdu_logf(%s)", a);
    case IR_RINT:
        return mem_format("__builtin_rintf(%s)", a);
    case IR_TO_F32:
        return mem_format("(float)%s", a);
    case IR_TO_I32:
        return mem_format("sy_to_i32(%s)", a);
    case IR_LT:
        return mem_format("(int32_t)(%s < %s)", a, b);
    case IR_LE:
        return mem_format("(int32_t)(%s <= %s)", a, b);
    case IR_EQ:
        return mem_format("(int32_t)(%s == %s)", a, b);
    case IR_AND:
        return infix(a, "&", b);
    case IR_OR:
        return infix(a, "|", b);
    case IR_NOT:
        return mem_format("(int32_t)!%s", a);
    case IR_SELECT:
        return mem_format("(%s ? %s : %s)", a, b, c);
    default:
        return NULL;
    }
}

/* ---- what can be emitted --------------------------------------------------------------------- */

bool emit_is_plain(const struct ir_body *b)
{
    for (uint32_t i = 0; i < b->count; i++) {
        const struct ir_op *op = &b->ops[i];
        switch (op->code) {
        case IR_WINDOW:
        case IR_DELTA_SCALE:
        case IR_WEIGHT_F32:
        case IR_WEIGHT_Q:
        case IR_WEIGHT_D:
        case IR_WEIGHT_M:
        case IR_KV_K:
        case IR_KV_V:
        case IR_KV_PUT_K:
        case IR_KV_PUT_V:
            return false;
        case IR_DIM:
        case IR_CLAMP:
            if (op->imm < 0 && op->imm != RDU_DIM_TOKENS && op->imm != RDU_DIM_OUTS)
                return false;
            break;
        case IR_REDUCE:
            if (op->imm < 0 && op->imm != RDU_DIM_TOKENS && op->imm != RDU_DIM_OUTS)
                return false;
            break;
        default:
            break;
        }
    }
    return b->result != IR_NONE;
}

/* ---- names ----------------------------------------------------------------------------------- */

static void name_of(const struct emit *m, uint32_t id, char ret[40])
{
    const struct ir_op *op = &m->b->ops[id];
    if (op->code == IR_INDEX)
        snprintf(ret, 40, "i%d", op->imm);
    else if (op->code == IR_RINDEX)
        snprintf(ret, 40, "r%u", op->arg[0]);
    else if (op->code == IR_CARRIED_VALUE || op->code == IR_RESULT)
        snprintf(ret, 40, "c%u_%d", op->arg[0], op->imm);
    else
        snprintf(ret, 40, "v%u", id);
}

static const char *c_type(uint32_t type)
{
    return type == IR_TYPE_F32 ? "float" : "int32_t";
}

static void size_of(const struct emit *m, int32_t dim, char ret[64])
{
    if (dim == RDU_DIM_TOKENS)
        snprintf(ret, 64, "%s", m->l->tokens);
    else if (dim == RDU_DIM_OUTS)
        snprintf(ret, 64, "%s", m->l->outs);
    else
        snprintf(ret, 64, "%d", dim);
}

/* ---- operations ------------------------------------------------------------------------------ */

static void emit_ops(struct emit *m, uint32_t parent, uint32_t from, uint32_t to, int lane);

static void emit_load(struct emit *m, uint32_t id)
{
    const struct ir_op *op = &m->b->ops[id];
    const struct emit_tensor *t = &m->l->operand[op->imm];
    char a[3][40];
    uint32_t args = 0;
    for (; args < 3 && op->arg[args] != IR_NONE; args++)
        name_of(m, op->arg[args], a[args]);
    buf_printf(m->out, "const %s v%u = %s[", c_type(op->type), id, t->base);
    if (args == 1)
        buf_printf(m->out, "(uint32_t)%s", a[0]);
    else if (args == 2)
        buf_printf(m->out, "(uint64_t)(uint32_t)%s * %s + (uint32_t)%s", a[0], t->stride, a[1]);
    else
        buf_printf(m->out,
                   "(uint64_t)(uint32_t)%s * %s + (uint64_t)(uint32_t)%s * %uu + (uint32_t)%s",
                   a[0], t->stride, a[1], t->dim2, a[2]);
    buf_puts(m->out, "];\n");
}

static void emit_plain(struct emit *m, uint32_t id)
{
    const struct ir_op *op = &m->b->ops[id];
    char a[3][40] = {"0", "0", "0"}, size[64];
    for (uint32_t k = 0; k < 3 && op->arg[k] != IR_NONE; k++)
        name_of(m, op->arg[k], a[k]);
    if (op->code == IR_LOAD) {
        emit_load(m, id);
        return;
    }
    buf_printf(m->out, "const %s v%u = ", c_type(op->type), id);
    if (op->code == IR_CONST) {
        emit_const(op->type, op->imm, m->out);
    } else if (op->code == IR_DIM) {
        size_of(m, op->imm, size);
        buf_printf(m->out, "(int32_t)%s", size);
    } else if (op->code == IR_CLAMP) {
        size_of(m, op->imm, size);
        buf_printf(m->out, "sy_clamp(%s, %s)", a[0], size);
    } else if (op->code == IR_VECTOR) {
        buf_printf(m->out, "w%d[(uint32_t)%s]", op->imm, a[0]);
    } else {
        char *text = emit_scalar(op->code, m->b->ops[op->arg[0]].type, a[0], a[1], a[2]);
        buf_puts(m->out, text);
        free(text);
    }
    buf_puts(m->out, ";\n");
}

static void count_of(const struct emit *m, uint32_t id, char ret[64])
{
    const struct ir_op *op = &m->b->ops[id];
    if (op->arg[4] == IR_NONE) {
        size_of(m, op->imm, ret);
        return;
    }
    char name[40];
    name_of(m, op->arg[4], name);
    snprintf(ret, 64, "(%.24s > 0 ? %.24s : 0)", name, name);
}

static void emit_seq(struct emit *m, uint32_t id, const char *count)
{
    const struct ir_op *op = &m->b->ops[id];
    char name[40];
    for (uint32_t k = 0; k < op->carried; k++) {
        name_of(m, op->arg[k], name);
        buf_printf(m->out, "%s c%u_%u = %s;\n", c_type(m->b->ops[op->arg[k]].type), id, k, name);
    }
    buf_printf(m->out, "for (int32_t r%u = 0; r%u < (int32_t)%s; r%u++) {\n", id, id, count, id);
    emit_ops(m, id, id + 1, op->end, -1);
    for (uint32_t k = 0; k < op->carried; k++) {
        name_of(m, op->yield[k], name);
        buf_printf(m->out, "const %s n%u_%u = %s;\n", c_type(m->b->ops[op->arg[k]].type), id, k,
                   name);
    }
    for (uint32_t k = 0; k < op->carried; k++) {
        if (op->reduce == IR_REDUCE_MAX)
            buf_printf(m->out, "c%u_%u = n%u_%u > c%u_%u ? n%u_%u : c%u_%u;\n", id, k, id, k, id, k,
                       id, k, id, k);
        else
            buf_printf(m->out, "c%u_%u = n%u_%u;\n", id, k, id, k);
    }
    buf_puts(m->out, "}\n");
}

/* The body of one element in lane `lane` of the partials p<id>. */
static void emit_lane(struct emit *m, uint32_t id, const char *lane)
{
    const struct ir_op *op = &m->b->ops[id];
    char name[40];
    buf_printf(m->out, "float c%u_0 = p%u[%s];\n(void)c%u_0;\n", id, id, lane, id);
    emit_ops(m, id, id + 1, op->end, -1);
    name_of(m, op->yield[0], name);
    if (op->reduce == IR_REDUCE_MAX)
        buf_printf(m->out, "p%u[%s] = %s > c%u_0 ? %s : c%u_0;\n", id, lane, name, id, name, id);
    else
        buf_printf(m->out, "p%u[%s] = %s;\n", id, lane, name);
}

/* Element i into lane i % 16. `whole`: the count is a multiple of 16. */
static void emit_lanes(struct emit *m, uint32_t id, const char *count, bool whole)
{
    const struct ir_op *op = &m->b->ops[id];
    char name[40] = "0.0f";
    if (op->reduce == IR_REDUCE_MAX)
        name_of(m, op->arg[0], name);
    buf_printf(m->out, "float p%u[16];\nfor (int j = 0; j < 16; j++)\np%u[j] = %s;\n", id, id,
               name);
    buf_printf(m->out, "int32_t g%u = 0;\nfor (; g%u + 16 <= (int32_t)%s; g%u += 16) {\n", id, id,
               count, id);
    buf_printf(
        m->out,
        "for (int32_t j%u = 0; j%u < 16; j%u++) {\nconst int32_t r%u = g%u + j%u;\n(void)r%u;\n",
        id, id, id, id, id, id, id);
    snprintf(name, sizeof(name), "j%u", id);
    emit_lane(m, id, name);
    buf_puts(m->out, "}\n}\n");
    if (!whole) {
        buf_printf(m->out, "for (int32_t r%u = g%u; r%u < (int32_t)%s; r%u++) {\n", id, id, id,
                   count, id);
        snprintf(name, sizeof(name), "r%u - g%u", id, id);
        emit_lane(m, id, name);
        buf_puts(m->out, "}\n");
    }
    buf_printf(m->out, "const float c%u_0 = sy_tree_%s(p%u);\n(void)c%u_0;\n", id,
               op->reduce == IR_REDUCE_MAX ? "max" : "sum", id, id);
}

/* A maximum may be taken in lanes where no zero has a sign: then every order gives the same bits.
 */
static bool max_in_lanes(const struct emit *m, const struct ir_op *op)
{
    return op->arg[4] == IR_NONE && op->imm > 0 && op->imm % 16 == 0 &&
           m->b->ops[op->arg[0]].type == IR_TYPE_F32 && m->b->ops[op->yield[0]].code == IR_ABS;
}

static void emit_reduce(struct emit *m, uint32_t id)
{
    const struct ir_op *op = &m->b->ops[id];
    char count[64];
    count_of(m, id, count);
    if (op->reduce == IR_REDUCE_SUM16)
        emit_lanes(m, id, count, op->arg[4] == IR_NONE && op->imm > 0 && op->imm % 16 == 0);
    else if (op->reduce == IR_REDUCE_MAX && max_in_lanes(m, op))
        emit_lanes(m, id, count, true);
    else
        emit_seq(m, id, count);
}

/* Ops [from, to) of `parent`; at top level only uniform (lane 0) or only lane ones (1). */
static void emit_ops(struct emit *m, uint32_t parent, uint32_t from, uint32_t to, int lane)
{
    for (uint32_t i = from; i < to; i++) {
        const struct ir_op *op = &m->b->ops[i];
        if (op->parent != parent || (lane >= 0 && m->lane[i] != (lane == 1)))
            continue;
        if (op->code == IR_REDUCE)
            emit_reduce(m, i);
        else if (op->code != IR_INDEX && op->code != IR_RINDEX && op->code != IR_CARRIED_VALUE &&
                 op->code != IR_RESULT)
            emit_plain(m, i);
    }
}

/* ---- the row --------------------------------------------------------------------------------- */

/* An op is a lane one if anything it reads is; a reduce also if anything inside it is. */
static void find_lanes(struct emit *m, uint32_t last)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < m->b->count; i++) {
            const struct ir_op *op = &m->b->ops[i];
            uint32_t arg[5], args = ir_op_args(op, arg);
            bool lane = m->lane[i] || (op->code == IR_INDEX && (uint32_t)op->imm == last);
            for (uint32_t k = 0; k < args; k++)
                lane |= m->lane[arg[k]];
            for (uint32_t k = i + 1; op->code == IR_REDUCE && k < op->end; k++)
                lane |= m->lane[k];
            for (uint32_t k = 0; op->code == IR_REDUCE && k < op->carried; k++)
                lane |= m->lane[op->yield[k]];
            changed |= lane != m->lane[i];
            m->lane[i] = lane;
        }
    }
}

static void emit_store(struct emit *m, uint32_t rank)
{
    const struct emit_tensor *t = &m->l->out;
    char name[40];
    name_of(m, m->b->result, name);
    buf_printf(m->out, "%s[(uint64_t)i0 * %s + ", t->base, t->stride);
    buf_printf(m->out, rank == 3 ? "(uint32_t)i1 * %uu + (uint32_t)i2" : "(uint32_t)i1", t->dim2);
    buf_printf(m->out, "] = %s%s;\n", t->elem == IR_ELEM_I8 ? "(int8_t)" : "", name);
}

static void emit_for(const struct emit *m, uint32_t dim, const char *size)
{
    bool part = dim == 1 && m->l->from;
    buf_printf(m->out, "for (int32_t i%u = (int32_t)%s; i%u < (int32_t)%s; i%u++) {\n", dim,
               part ? m->l->from : "0", dim, part ? m->l->to : size, dim);
}

void emit_row(const struct emit_loop *l, struct buf *out)
{
    struct emit m = {.l = l, .b = l->body, .out = out};
    uint32_t rank = l->shape->rank, last = rank - 1;
    char size[64];
    m.lane = mem_array(BASE_MAX(l->body->count, 1u), sizeof(*m.lane));
    find_lanes(&m, last);
    buf_puts(out, "{\n");
    if (rank == 3) {
        size_of(&m, l->shape->dim[1], size);
        emit_for(&m, 1, size);
        buf_puts(out, "(void)i1;\n");
    }
    emit_ops(&m, IR_NONE, 0, l->body->count, 0);
    size_of(&m, l->shape->dim[last], size);
    buf_puts(out, "SY_IVDEP\n");
    emit_for(&m, last, size);
    emit_ops(&m, IR_NONE, 0, l->body->count, 1);
    emit_store(&m, rank);
    buf_puts(out, rank == 3 ? "}\n}\n}\n" : "}\n}\n");
    free(m.lane);
}
