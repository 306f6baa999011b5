/* Expressions between parsing and running. Private to rdu/. A program is one list of operations in
 * the IR's codes, hash-consed and folded while it is parsed; values are ids into the list.
 * Reductions cut it into passes over the elements: what a pass needs of an earlier one is a scalar,
 * or a column that is stored because making it again would cost more (plan.c). */
#ifndef SWITCHYARD_RDU_EXPR_H
#define SWITCHYARD_RDU_EXPR_H

#include <stdatomic.h>

#include "rdu/ir/ir.h"

#define EXPR_OPS_MAX 512
#define EXPR_DEPTH_MAX 64
#define EXPR_LETS_MAX 64
#define EXPR_PASSES_MAX 16

/* Beyond the IR's codes. */
enum {
    EXPR_FIELD = IR_CODES, /* imm: which */
    EXPR_SUM,              /* arg[0] over all elements: rule 1 */
    EXPR_MAX,              /* 16 partial maxima as rule 1's sums; -inf without elements */
    EXPR_SIZE,             /* number of elements, as f32 */
};

struct expr_op {
    uint32_t code, type; /* enum ir_code or above; enum ir_type */
    uint32_t arg[3];     /* ids below this op's own; IR_NONE where unused */
    int32_t imm;         /* CONST: the bits */
    bool column;
    uint32_t pass; /* first in which it can be computed */
};

/* One walk over the elements: `steps` are the column operations in order, `sums` the reductions
 * they end in. Scalars are computed before. */
struct expr_pass {
    uint32_t *scalars, *steps, *sums;
    uint32_t scalars_count, steps_count, sums_count;
};

struct rdu_expr {
    struct rdu_expr_spec spec;
    struct expr_op ops[EXPR_OPS_MAX];
    uint32_t count, result;
    bool uses[RDU_EXPR_FIELDS_MAX];
    struct expr_pass pass[EXPR_PASSES_MAX];
    uint32_t passes;
    uint32_t stored[EXPR_OPS_MAX]; /* slot of a column kept between passes, IR_NONE = not kept */
    uint32_t stored_count;
    _Atomic(void *) native; /* compiled form, NULL = interpreted */
};

/* An operation, or the id of an equal one; folded if its arguments are constants. IR_NONE: the list
 * is full. */
uint32_t expr_emit(struct rdu_expr *x, const struct expr_op *op);
uint32_t expr_const(struct rdu_expr *x, enum ir_type type, int32_t bits);
uint32_t expr_f32(struct rdu_expr *x, float v);
enum err_code expr_parse(struct rdu_expr *x, const char *text, size_t len,
                         struct err *e) BASE_NODISCARD;
/* Passes and stored columns; ERR_INVALID if reductions are nested too deep. */
enum err_code expr_plan(struct rdu_expr *x, struct err *e) BASE_NODISCARD;
void expr_plan_done(struct rdu_expr *x);
const char *expr_code_name(uint32_t code);
uint32_t expr_args(const struct expr_op *op);

#endif
