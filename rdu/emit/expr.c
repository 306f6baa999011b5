/* An expression as one C function: each pass is one loop over the elements, its reductions 16 lanes
 * wide. */
#include <stdlib.h>
#include <string.h>

#include "rdu/emit/emit.h"
#include "rdu/expr/expr.h"

static const char *c_type(uint32_t type)
{
    return type == IR_TYPE_F32 ? "float" : "int32_t";
}

/* The name of a value inside the loop over `i` (columns) or outside (scalars). */
static void name_of(const struct rdu_expr *x, uint32_t id, bool made_here, char ret[96])
{
    const struct expr_op *op = &x->ops[id];
    if (op->code == EXPR_FIELD)
        snprintf(ret, 96, "((const %s *)in[%d])[%s]", c_type(op->type), op->imm,
                 op->column ? "i" : "0");
    else if (x->stored[id] != IR_NONE && !made_here)
        snprintf(ret, 96, "((const %s *)(stored + %u * stride))[i]", c_type(op->type),
                 x->stored[id]);
    else
        snprintf(ret, 96, "v%u", id);
}

static bool is_in(const uint32_t *list, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++) {
        if (list[i] == id)
            return true;
    }
    return false;
}

static void emit_value(const struct rdu_expr *x, const struct expr_pass *pass, uint32_t id,
                       struct buf *out)
{
    const struct expr_op *op = &x->ops[id];
    char a[3][96] = {"0", "0", "0"};
    for (uint32_t k = 0; k < expr_args(op); k++)
        name_of(x, op->arg[k], is_in(pass->steps, pass->steps_count, op->arg[k]), a[k]);
    buf_printf(out, "const %s v%u = ", c_type(op->type), id);
    if (op->code == IR_CONST) {
        emit_const(op->type, op->imm, out);
    } else if (op->code == EXPR_SIZE) {
        buf_puts(out, "(float)n");
    } else {
        char *text = emit_scalar(op->code, x->ops[op->arg[0]].type, a[0], a[1], a[2]);
        buf_puts(out, text);
        free(text);
    }
    buf_puts(out, ";\n");
}

/* One element: the steps, the stores, and the reductions into lane `lane`. */
static void emit_element(const struct rdu_expr *x, const struct expr_pass *pass, bool last,
                         const char *lane, struct buf *out)
{
    char name[96];
    for (uint32_t k = 0; k < pass->steps_count; k++) {
        uint32_t id = pass->steps[k];
        emit_value(x, pass, id, out);
        if (x->stored[id] != IR_NONE)
            buf_printf(out, "((%s *)(stored + %u * stride))[i] = v%u;\n", c_type(x->ops[id].type),
                       x->stored[id], id);
    }
    for (uint32_t k = 0; k < pass->sums_count; k++) {
        uint32_t id = pass->sums[k], arg = x->ops[id].arg[0];
        name_of(x, arg, is_in(pass->steps, pass->steps_count, arg), name);
        if (x->ops[id].code == EXPR_MAX)
            buf_printf(out, "{ const float c = %s; p%u[%s] = c > p%u[%s] ? c : p%u[%s]; }\n", name,
                       id, lane, id, lane, id, lane);
        else
            buf_printf(out, "p%u[%s] = p%u[%s] + %s;\n", id, lane, id, lane, name);
    }
    if (last) {
        name_of(x, x->result, is_in(pass->steps, pass->steps_count, x->result), name);
        buf_printf(out, "((%s *)ret)[i] = %s;\n", c_type(x->ops[x->result].type), name);
    }
}

static void emit_pass(const struct rdu_expr *x, uint32_t p, struct buf *out)
{
    const struct expr_pass *pass = &x->pass[p];
    bool last = p + 1 == x->passes;
    for (uint32_t k = 0; k < pass->scalars_count; k++) {
        if (x->ops[pass->scalars[k]].code != EXPR_FIELD)
            emit_value(x, pass, pass->scalars[k], out);
    }
    if (pass->steps_count + pass->sums_count == 0 && !last)
        return;
    for (uint32_t k = 0; k < pass->sums_count; k++)
        buf_printf(out, "float p%u[16];\nfor (int j = 0; j < 16; j++)\np%u[j] = %s;\n",
                   pass->sums[k], pass->sums[k],
                   x->ops[pass->sums[k]].code == EXPR_MAX ? "-__builtin_inff()" : "0.0f");
    buf_puts(out, "{\nuint64_t base = 0;\nfor (; base + 16 <= n; base += 16) {\nSY_IVDEP\n"
                  "for (int j = 0; j < 16; j++) {\nconst uint64_t i = base + (uint64_t)j;\n");
    emit_element(x, pass, last, "j", out);
    buf_puts(out, "}\n}\nfor (uint64_t i = base; i < n; i++) {\n");
    emit_element(x, pass, last, "i - base", out);
    buf_puts(out, "}\n}\n");
    for (uint32_t k = 0; k < pass->sums_count; k++)
        buf_printf(out, "const float v%u = sy_tree_%s(p%u);\n", pass->sums[k],
                   x->ops[pass->sums[k]].code == EXPR_MAX ? "max" : "sum", pass->sums[k]);
}

void emit_expr(const struct rdu_expr *x, struct buf *out)
{
    buf_printf(out, "/* emitter %d */\n", EMIT_VERSION);
    emit_prelude(out);
    buf_puts(out, "\n__attribute__((visibility(\"default\"))) void sy_expr(const void *const *in, "
                  "uint64_t n, void "
                  "*ret, float *stored, uint64_t stride)\n{\n");
    for (uint32_t p = 0; p < x->passes; p++)
        emit_pass(x, p, out);
    buf_puts(out, "}\n");
}
