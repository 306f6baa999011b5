/* From a list of operations to passes over the elements. A reduction ends the pass its argument is
 * known in; all of one pass are computed side by side in one walk, whatever feeds them in the same
 * walk. A column needed by several passes is made again in each, unless that takes a division or a
 * transcendental: then it is stored. */
#include <stdlib.h>
#include <string.h>

#include "rdu/expr/expr.h"

const char *expr_code_name(uint32_t code)
{
    static const char *const name[] = {"field", "sum", "max_of", "size"};
    return code < IR_CODES ? ir_code_name(code) : name[BASE_MIN(code - EXPR_FIELD, 3u)];
}

uint32_t expr_args(const struct expr_op *op)
{
    uint32_t n = 0;
    while (n < BASE_COUNT(op->arg) && op->arg[n] != IR_NONE)
        n++;
    return n;
}

static bool is_reduction(const struct expr_op *op)
{
    return op->code == EXPR_SUM || op->code == EXPR_MAX;
}

/* ---- the list -------------------------------------------------------------------------------- */

static bool fold(struct rdu_expr *x, struct expr_op *op)
{
    int32_t bits[3] = {0, 0, 0}, folded;
    uint32_t args = expr_args(op);
    for (uint32_t i = 0; i < args; i++) {
        if (x->ops[op->arg[i]].code != IR_CONST)
            return false;
        bits[i] = x->ops[op->arg[i]].imm;
    }
    struct ir_op scalar = {.code = op->code};
    if (args == 0 || op->code >= IR_CODES ||
        !ir_fold(&scalar, bits, &folded, (enum ir_type)x->ops[op->arg[0]].type))
        return false;
    *op = (struct expr_op){
        .code = IR_CONST, .type = op->type, .imm = folded, .arg = {IR_NONE, IR_NONE, IR_NONE}};
    return true;
}

uint32_t expr_emit(struct rdu_expr *x, const struct expr_op *from)
{
    struct expr_op op = *from;
    fold(x, &op);
    for (uint32_t i = 0; i < expr_args(&op); i++) {
        const struct expr_op *arg = &x->ops[op.arg[i]];
        op.column |= arg->column && !is_reduction(&op);
        op.pass = BASE_MAX(op.pass, arg->pass + is_reduction(&op));
    }
    for (uint32_t i = 0; i < x->count; i++) {
        const struct expr_op *o = &x->ops[i];
        if (o->code == op.code && o->type == op.type && o->imm == op.imm &&
            memcmp(o->arg, op.arg, sizeof(op.arg)) == 0)
            return i;
    }
    if (x->count == EXPR_OPS_MAX)
        return IR_NONE;
    x->ops[x->count] = op;
    return x->count++;
}

uint32_t expr_const(struct rdu_expr *x, enum ir_type type, int32_t bits)
{
    struct expr_op op = {
        .code = IR_CONST, .type = type, .imm = bits, .arg = {IR_NONE, IR_NONE, IR_NONE}};
    uint32_t id = expr_emit(x, &op);
    return id == IR_NONE ? 0 : id; /* a full list is reported by the operation that comes next */
}

uint32_t expr_f32(struct rdu_expr *x, float v)
{
    int32_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return expr_const(x, IR_TYPE_F32, bits);
}

/* ---- passes ---------------------------------------------------------------------------------- */

static bool is_heavy(uint32_t code)
{
    return code == IR_EXP || code == IR_LOG || code == IR_TANH || code == IR_DIV ||
           code == IR_SQRT || code == IR_MOD;
}

/* want[id]: bit p = pass p computes it (columns) or it is needed at all (scalars). Users have
 * higher ids than what they use, so one walk downwards settles everything. */
static void find_wanted(struct rdu_expr *x, uint32_t *want)
{
    bool heavy[EXPR_OPS_MAX];
    for (uint32_t i = 0; i < x->count; i++) {
        heavy[i] = is_heavy(x->ops[i].code);
        for (uint32_t k = 0; k < expr_args(&x->ops[i]); k++)
            heavy[i] |= x->ops[x->ops[i].arg[k]].column && heavy[x->ops[i].arg[k]];
    }
    want[x->result] = 1u << x->ops[x->result].pass;
    for (uint32_t i = x->count; i-- > 0;) {
        const struct expr_op *op = &x->ops[i];
        uint32_t mask = want[i];
        if (mask == 0)
            continue;
        if (op->column && op->code != EXPR_FIELD && heavy[i] && (mask & (mask - 1)) != 0) {
            x->stored[i] = x->stored_count++;
            mask &= ~(mask - 1);
            want[i] = mask;
        }
        for (uint32_t k = 0; k < expr_args(op); k++) {
            const struct expr_op *arg = &x->ops[op->arg[k]];
            want[op->arg[k]] |= is_reduction(op) ? 1u << arg->pass : (arg->column ? mask : 1u);
        }
    }
}

static void add(uint32_t *list, uint32_t *count, uint32_t id)
{
    list[(*count)++] = id;
}

static void fill_pass(struct rdu_expr *x, const uint32_t *want, uint32_t p)
{
    struct expr_pass *pass = &x->pass[p];
    pass->scalars = mem_array(x->count, sizeof(uint32_t));
    pass->steps = mem_array(x->count, sizeof(uint32_t));
    pass->sums = mem_array(x->count, sizeof(uint32_t));
    for (uint32_t i = 0; i < x->count; i++) {
        const struct expr_op *op = &x->ops[i];
        if (want[i] == 0)
            continue;
        if (is_reduction(op)) {
            if (x->ops[op->arg[0]].pass == p)
                add(pass->sums, &pass->sums_count, i);
        } else if (op->column) {
            if (op->code != EXPR_FIELD && want[i] >> p & 1u)
                add(pass->steps, &pass->steps_count, i);
        } else if (op->pass == p) {
            add(pass->scalars, &pass->scalars_count, i);
        }
    }
}

enum err_code expr_plan(struct rdu_expr *x, struct err *e)
{
    uint32_t want[EXPR_OPS_MAX] = {0};
    x->passes = x->ops[x->result].pass + 1;
    if (x->passes > EXPR_PASSES_MAX)
        return err_set(e, ERR_INVALID,
                       "line 1, column 1: reductions of reductions %u deep, at most %d are",
                       x->passes - 1, EXPR_PASSES_MAX - 1);
    memset(x->stored, 0xff, sizeof(x->stored));
    find_wanted(x, want);
    for (uint32_t p = 0; p < x->passes; p++)
        fill_pass(x, want, p);
    return ERR_OK;
}

void expr_plan_done(struct rdu_expr *x)
{
    for (uint32_t p = 0; p < EXPR_PASSES_MAX; p++) {
        free(x->pass[p].scalars);
        free(x->pass[p].steps);
        free(x->pass[p].sums);
    }
}

/* ---- open, close, print ---------------------------------------------------------------------- */

enum err_code rdu_expr_open(const char *text, size_t len, const struct rdu_expr_spec *spec,
                            struct rdu_expr **ret, struct err *e)
{
    if (len > RDU_EXPR_TEXT_MAX)
        return err_set(e, ERR_INVALID,
                       "line 1, column 1: an expression of %zu bytes, at most %d are read", len,
                       RDU_EXPR_TEXT_MAX);
    if (spec->fields_count > RDU_EXPR_FIELDS_MAX)
        return err_set(e, ERR_INTERNAL, "%u expression fields", spec->fields_count);
    struct rdu_expr *x = mem_alloc(sizeof(*x));
    x->spec = *spec;
    enum err_code code = expr_parse(x, text, len, e);
    if (code == ERR_OK)
        code = expr_plan(x, e);
    if (code != ERR_OK) {
        rdu_expr_close(&x);
        return code;
    }
    *ret = x;
    return ERR_OK;
}

void rdu_expr_close(struct rdu_expr **x)
{
    if (*x == NULL)
        return;
    expr_plan_done(*x);
    free(*x);
    *x = NULL;
}

bool rdu_expr_uses(const struct rdu_expr *x, uint32_t field_idx)
{
    return field_idx < x->spec.fields_count && x->uses[field_idx];
}

static void print_op(const struct rdu_expr *x, uint32_t id, struct buf *out)
{
    const struct expr_op *op = &x->ops[id];
    static const char *const type[] = {"none", "f32", "i32", "bool"};
    buf_printf(out, "  %%%u %s%s = %s", id, type[op->type & 3u], op->column ? "[n]" : "",
               expr_code_name(op->code));
    float f;
    memcpy(&f, &op->imm, sizeof(f));
    if (op->code == EXPR_FIELD)
        buf_printf(out, " %s", x->spec.fields[op->imm].name);
    else if (op->code == IR_CONST && op->type == IR_TYPE_F32)
        buf_printf(out, " %.9g", (double)f);
    else if (op->code == IR_CONST)
        buf_printf(out, " %d", op->imm);
    for (uint32_t k = 0; k < expr_args(op); k++)
        buf_printf(out, " %%%u", op->arg[k]);
    buf_puts(out, x->stored[id] != IR_NONE ? "; stored\n" : "\n");
}

void rdu_expr_print(const struct rdu_expr *x, struct buf *out)
{
    buf_printf(out, "expression: %u operations, %u pass%s over the elements, %u stored column%s\n",
               x->count, x->passes, x->passes == 1 ? "" : "es", x->stored_count,
               x->stored_count == 1 ? "" : "s");
    for (uint32_t p = 0; p < x->passes; p++) {
        const struct expr_pass *pass = &x->pass[p];
        buf_printf(out, " pass %u\n", p);
        for (uint32_t i = 0; i < pass->scalars_count; i++)
            print_op(x, pass->scalars[i], out);
        for (uint32_t i = 0; i < pass->steps_count; i++)
            print_op(x, pass->steps[i], out);
        for (uint32_t i = 0; i < pass->sums_count; i++)
            print_op(x, pass->sums[i], out);
    }
    buf_printf(out, " result %%%u\n", x->result);
}
