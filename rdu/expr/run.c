/* Running an expression: blocks of IR_LANES elements through the steps of a pass, with the
 * interpreter's own arithmetic; and, to be measured against, one operation after the other over
 * whole columns. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/emit/abi.h"
#include "rdu/expr/expr.h"
#include "rdu/ir/interp.h"

struct rdu_expr_scratch {
    size_t n;
    uint32_t stored_count;
    int32_t *stored;                 /* [stored_count, n rounded up to 16] */
    int32_t (*block)[IR_LANES];      /* [ops] */
    int32_t value[EXPR_OPS_MAX];     /* scalars */
    float partial[EXPR_OPS_MAX][16]; /* of reductions */
};

static size_t stored_stride(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

struct rdu_expr_scratch *rdu_expr_scratch_open(const struct rdu_expr *x, size_t n)
{
    struct rdu_expr_scratch *s = mem_alloc(sizeof(*s));
    s->n = n;
    s->stored_count = x->stored_count;
    s->stored = mem_array(BASE_MAX(stored_stride(n) * x->stored_count, 16u), sizeof(*s->stored));
    s->block = mem_array(x->count, sizeof(*s->block));
    return s;
}

void rdu_expr_scratch_close(struct rdu_expr_scratch **s)
{
    if (*s == NULL)
        return;
    free((*s)->stored);
    free((*s)->block);
    free(*s);
    *s = NULL;
}

struct run {
    const struct rdu_expr *x;
    const void *const *inputs;
    struct rdu_expr_scratch *s;
    const struct ir_ops *ops;
    size_t n;
    int32_t *ret;
};

/* ---- operands -------------------------------------------------------------------------------- */

static const int32_t *scalar_at(const struct run *r, uint32_t id)
{
    const struct expr_op *op = &r->x->ops[id];
    return op->code == EXPR_FIELD ? r->inputs[op->imm] : &r->s->value[id];
}

/* Where the block of a column that starts at element `at` is; `pass` tells stored from made again.
 */
static int32_t *column_at(const struct run *r, uint32_t id, size_t at)
{
    if (r->x->stored[id] != IR_NONE)
        return r->s->stored + r->x->stored[id] * stored_stride(r->s->n) + at;
    if (id == r->x->result)
        return r->ret + at;
    return r->s->block[id];
}

static const int32_t *operand(const struct run *r, uint32_t id, size_t at)
{
    const struct expr_op *op = &r->x->ops[id];
    if (!op->column)
        return scalar_at(r, id);
    if (op->code == EXPR_FIELD)
        return (const int32_t *)r->inputs[op->imm] + at;
    return column_at(r, id, at);
}

static ir_ops_fn *function_of(const struct rdu_expr *x, const struct ir_ops *ops,
                              const struct expr_op *op)
{
    uint32_t variant = 0;
    for (uint32_t k = 0; op->column && k < expr_args(op); k++)
        variant |= x->ops[op->arg[k]].column ? 0u : 1u << k;
    return ops->fn[op->code][x->ops[op->arg[0]].type & 3u][variant & 7u];
}

static void apply(const struct run *r, uint32_t id, int32_t *to, size_t at, uint32_t n)
{
    const struct expr_op *op = &r->x->ops[id];
    const int32_t *arg[3] = {NULL, NULL, NULL};
    uint32_t args = expr_args(op);
    for (uint32_t k = 0; k < args; k++)
        arg[k] = operand(r, op->arg[k], at);
    function_of(r->x, r->ops, op)(to, arg[0], args > 1 ? arg[1] : arg[0],
                                  args > 2 ? arg[2] : arg[0], n);
}

/* ---- scalars and reductions ------------------------------------------------------------------ */

static void run_scalar(const struct run *r, uint32_t id)
{
    const struct expr_op *op = &r->x->ops[id];
    float size = (float)r->n;
    if (op->code == IR_CONST)
        r->s->value[id] = op->imm;
    else if (op->code == EXPR_SIZE)
        memcpy(&r->s->value[id], &size, sizeof(size));
    else if (op->code != EXPR_FIELD)
        apply(r, id, &r->s->value[id], 0, 1);
}

static void start_sum(const struct run *r, uint32_t id)
{
    for (uint32_t j = 0; j < 16; j++)
        r->s->partial[id][j] = r->x->ops[id].code == EXPR_MAX ? -INFINITY : 0.0f;
}

static void add_block(const struct run *r, uint32_t id, size_t at, uint32_t n)
{
    const struct expr_op *op = &r->x->ops[id];
    int32_t all[IR_LANES];
    const int32_t *from = operand(r, op->arg[0], at);
    if (!r->x->ops[op->arg[0]].column) {
        r->ops->fill(all, from, n);
        from = all;
    }
    (op->code == EXPR_MAX ? r->ops->max16 : r->ops->sum16)(r->s->partial[id], (const float *)from,
                                                           n);
}

static void end_sum(const struct run *r, uint32_t id)
{
    float *p = r->s->partial[id];
    for (uint32_t half = 8; half > 0; half /= 2) {
        for (uint32_t j = 0; j < half; j++) {
            float other = p[j + half];
            p[j] = r->x->ops[id].code == EXPR_MAX ? (other > p[j] ? other : p[j]) : p[j] + other;
        }
    }
    memcpy(&r->s->value[id], &p[0], sizeof(float));
}

/* ---- passes ---------------------------------------------------------------------------------- */

static void run_pass(const struct run *r, const struct expr_pass *pass)
{
    for (uint32_t i = 0; i < pass->scalars_count; i++)
        run_scalar(r, pass->scalars[i]);
    for (uint32_t i = 0; i < pass->sums_count; i++)
        start_sum(r, pass->sums[i]);
    for (size_t at = 0; at < r->n && pass->steps_count + pass->sums_count > 0; at += IR_LANES) {
        uint32_t n = (uint32_t)BASE_MIN(r->n - at, (size_t)IR_LANES);
        for (uint32_t i = 0; i < pass->steps_count; i++)
            apply(r, pass->steps[i], column_at(r, pass->steps[i], at), at, n);
        for (uint32_t i = 0; i < pass->sums_count; i++)
            add_block(r, pass->sums[i], at, n);
    }
    for (uint32_t i = 0; i < pass->sums_count; i++)
        end_sum(r, pass->sums[i]);
}

/* A result that no step of the last pass wrote: a scalar, a field, a stored column. */
static void deliver(const struct run *r)
{
    const struct expr_op *op = &r->x->ops[r->x->result];
    if (!op->column) {
        int32_t v = *scalar_at(r, r->x->result);
        for (size_t i = 0; i < r->n; i++)
            r->ret[i] = v;
    } else if (op->code == EXPR_FIELD || r->x->stored[r->x->result] != IR_NONE) {
        memmove(r->ret, operand(r, r->x->result, 0), r->n * sizeof(*r->ret));
    }
}

void rdu_expr_run(const struct rdu_expr *x, const void *const *inputs, size_t n, void *ret,
                  struct rdu_expr_scratch *s)
{
    sy_expr_fn *native =
        (sy_expr_fn *)(uintptr_t)atomic_load(&((struct rdu_expr *)(uintptr_t)x)->native);
    if (native) {
        native(inputs, n, ret, (float *)s->stored, stored_stride(s->n));
        return;
    }
    struct run r = {.x = x, .inputs = inputs, .s = s, .ops = ir_ops(), .n = n, .ret = ret};
    for (uint32_t p = 0; p < x->passes; p++)
        run_pass(&r, &x->pass[p]);
    deliver(&r);
}

/* ---- one operation at a time ----------------------------------------------------------------- */

/* Every operation of the list in its order, whole columns between them. */
void rdu_expr_run_unfused(const struct rdu_expr *x, const void *const *inputs, size_t n, void *ret)
{
    int32_t **column = mem_array(x->count, sizeof(*column));
    const int32_t **at = mem_array(x->count, sizeof(*at));
    const struct ir_ops *ops = ir_ops();
    for (uint32_t i = 0; i <= x->result; i++) {
        const struct expr_op *op = &x->ops[i];
        at[i] = op->code == EXPR_FIELD ? inputs[op->imm] : NULL;
        if (op->code == EXPR_FIELD)
            continue;
        size_t elems = op->column ? n : 1;
        at[i] = column[i] = mem_array(BASE_MAX(elems, 1u), sizeof(int32_t));
        float size = (float)n;
        if (op->code == IR_CONST) {
            column[i][0] = op->imm;
        } else if (op->code == EXPR_SIZE) {
            memcpy(column[i], &size, sizeof(size));
        } else if (op->code == EXPR_SUM || op->code == EXPR_MAX) {
            struct rdu_expr_scratch *s = mem_alloc(sizeof(*s));
            struct run r = {.x = x, .s = s, .ops = ops, .n = n};
            bool wide = x->ops[op->arg[0]].column;
            int32_t all[IR_LANES];
            start_sum(&r, i);
            for (size_t from = 0; from < n; from += IR_LANES) {
                uint32_t count = (uint32_t)BASE_MIN(n - from, (size_t)IR_LANES);
                if (!wide)
                    ops->fill(all, at[op->arg[0]], count);
                (op->code == EXPR_MAX ? ops->max16 : ops->sum16)(
                    s->partial[i], (const float *)(wide ? at[op->arg[0]] + from : all), count);
            }
            end_sum(&r, i);
            column[i][0] = s->value[i];
            free(s);
        } else {
            uint32_t args = expr_args(op);
            const int32_t *arg[3] = {at[op->arg[0]], at[op->arg[args > 1 ? 1 : 0]],
                                     at[op->arg[args > 2 ? 2 : 0]]};
            function_of(x, ops, op)(column[i], arg[0], arg[1], arg[2], (uint32_t)elems);
        }
    }
    for (size_t i = 0; i < n; i++)
        ((int32_t *)ret)[i] = at[x->result][x->ops[x->result].column ? i : 0];
    for (uint32_t i = 0; i < x->count; i++)
        free(column[i]);
    free(column);
    free(at);
}
