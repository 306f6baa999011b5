/* Simplification and motion inside one body. A new body is emitted from the result backwards: what
 * is not reached is dropped, what does not depend on a reduce is emitted before the reduce opens,
 * constants are folded with the interpreter's own operations. Only rewrites that keep every bit are
 * made; an identity such as x + 0 is none (it turns -0 into 0). */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/ir.h"

struct pass {
    const struct ir_body *from;
    struct ir_body *to;
    int64_t *home; /* [ops] innermost reduce an op depends on, -1 = none */
    bool *live;
    uint32_t *moved; /* [ops] id in `to`, IR_NONE = not yet */
    struct ir_simplify_counts counts;
};

/* ---- what depends on which reduce ------------------------------------------------------------ */

static int64_t deepest_arg(const struct pass *p, const struct ir_op *op)
{
    uint32_t arg[5], count = ir_op_args(op, arg);
    int64_t home = -1;
    for (uint32_t i = 0; i < count; i++)
        home = BASE_MAX(home, p->home[arg[i]]);
    return home;
}

/* Deepest home of the values the op uses, of those outside of reduce r. */
static int64_t deepest_outside(const struct pass *p, const struct ir_op *op, uint32_t r,
                               int64_t home)
{
    uint32_t arg[5], count = ir_op_args(op, arg);
    for (uint32_t i = 0; i < count; i++) {
        if (arg[i] != r && p->home[arg[i]] < (int64_t)r)
            home = BASE_MAX(home, p->home[arg[i]]);
    }
    for (uint32_t k = 0; op->code == IR_REDUCE && k < op->carried; k++) {
        if (p->home[op->yield[k]] < (int64_t)r)
            home = BASE_MAX(home, p->home[op->yield[k]]);
    }
    return home;
}

/* A reduce as a whole depends on what its ops depend on outside of it. An inner reduce has the
 * larger id, so "deeper" is "larger" along one chain of nesting. */
static int64_t home_of_reduce(const struct pass *p, uint32_t r)
{
    const struct ir_op *op = &p->from->ops[r];
    int64_t home = deepest_outside(p, op, r, -1);
    for (uint32_t i = r + 1; i < op->end; i++)
        home = deepest_outside(p, &p->from->ops[i], r, home);
    return home;
}

static void find_homes(struct pass *p, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        const struct ir_op *op = &p->from->ops[i];
        if (op->code == IR_REDUCE) {
            find_homes(p, i + 1, op->end);
            p->home[i] = home_of_reduce(p, i);
            i = op->end - 1;
        } else if (op->code == IR_RINDEX || op->code == IR_CARRIED_VALUE) {
            p->home[i] = op->arg[0];
        } else {
            p->home[i] = deepest_arg(p, op);
        }
    }
}

/* ---- what is needed -------------------------------------------------------------------------- */

static void mark(struct pass *p, uint32_t id)
{
    if (p->live[id])
        return;
    p->live[id] = true;
    const struct ir_op *op = &p->from->ops[id];
    uint32_t arg[5], count = ir_op_args(op, arg);
    for (uint32_t i = 0; i < count; i++)
        mark(p, arg[i]);
    for (uint32_t k = 0; op->code == IR_REDUCE && k < op->carried; k++)
        mark(p, op->yield[k]);
}

static bool stores(const struct ir_op *op)
{
    return op->code == IR_KV_PUT_K || op->code == IR_KV_PUT_V;
}

/* ---- rewrites -------------------------------------------------------------------------------- */

static bool constant(const struct ir_body *b, uint32_t id, int32_t *ret_bits)
{
    if (b->ops[id].code != IR_CONST)
        return false;
    *ret_bits = b->ops[id].imm;
    return true;
}

static bool is_f32(const struct ir_body *b, uint32_t id, float v)
{
    int32_t bits, want;
    memcpy(&want, &v, sizeof(want));
    return b->ops[id].type == IR_TYPE_F32 && constant(b, id, &bits) && bits == want;
}

static bool is_i32(const struct ir_body *b, uint32_t id, int32_t v)
{
    int32_t bits;
    return b->ops[id].type == IR_TYPE_I32 && constant(b, id, &bits) && bits == v;
}

/* An f32 constant 2^k whose reciprocal is normal: dividing by it is multiplying by that, exactly.
 */
static bool power_of_two(const struct ir_body *b, uint32_t id, float *ret_inverse)
{
    int32_t bits;
    if (b->ops[id].type != IR_TYPE_F32 || !constant(b, id, &bits))
        return false;
    int32_t exponent = bits >> 23;
    if ((bits & 0x7fffff) != 0 || exponent <= 0 || exponent >= 254)
        return false;
    int32_t inverse = (254 - exponent) << 23;
    memcpy(ret_inverse, &inverse, sizeof(inverse));
    return exponent < 254 && 254 - exponent > 0;
}

static uint32_t rewrite_int(struct ir_body *b, const struct ir_op *op)
{
    uint32_t x = op->arg[0], y = op->arg[1];
    switch (op->code) {
    case IR_ADD:
        return is_i32(b, y, 0) ? x : is_i32(b, x, 0) ? y : IR_NONE;
    case IR_SUB:
        return is_i32(b, y, 0) ? x : IR_NONE;
    case IR_MUL:
        if (is_i32(b, x, 0) || is_i32(b, y, 0))
            return ir_i32(b, 0);
        return is_i32(b, y, 1) ? x : is_i32(b, x, 1) ? y : IR_NONE;
    case IR_DIV:
        return is_i32(b, y, 1) ? x : IR_NONE;
    case IR_MOD:
        return is_i32(b, y, 1) ? ir_i32(b, 0) : IR_NONE;
    case IR_MAX:
    case IR_MIN:
        return x == y ? x : IR_NONE;
    default:
        return IR_NONE;
    }
}

static uint32_t rewrite_float(struct ir_body *b, const struct ir_op *op)
{
    uint32_t x = op->arg[0], y = op->arg[1];
    float inverse;
    switch (op->code) {
    case IR_MUL:
        return is_f32(b, y, 1.0f) ? x : is_f32(b, x, 1.0f) ? y : IR_NONE;
    case IR_DIV:
        if (is_f32(b, y, 1.0f))
            return x;
        return power_of_two(b, y, &inverse) ? ir_op2(b, IR_MUL, x, ir_f32(b, inverse)) : IR_NONE;
    case IR_ADD:
        return is_f32(b, y, -0.0f) ? x : is_f32(b, x, -0.0f) ? y : IR_NONE;
    case IR_SUB:
        return is_f32(b, y, 0.0f) ? x : IR_NONE;
    case IR_FMA:
        if (is_f32(b, x, 1.0f))
            return ir_op2(b, IR_ADD, y, op->arg[2]);
        if (is_f32(b, y, 1.0f))
            return ir_op2(b, IR_ADD, x, op->arg[2]);
        return is_f32(b, op->arg[2], -0.0f) ? ir_op2(b, IR_MUL, x, y) : IR_NONE;
    case IR_MAX:
    case IR_MIN:
        return x == y ? x : IR_NONE;
    default:
        return IR_NONE;
    }
}

static uint32_t rewrite_bool(struct ir_body *b, const struct ir_op *op)
{
    uint32_t x = op->arg[0], y = op->arg[1];
    int32_t v;
    if (op->code == IR_SELECT) {
        if (constant(b, x, &v))
            return v ? y : op->arg[2];
        return y == op->arg[2] ? y : IR_NONE;
    }
    if (op->code != IR_AND && op->code != IR_OR)
        return IR_NONE;
    bool keep = op->code == IR_AND; /* the constant that changes nothing */
    if (constant(b, x, &v))
        return (v != 0) == keep ? y : x;
    if (constant(b, y, &v))
        return (v != 0) == keep ? x : y;
    return x == y ? x : IR_NONE;
}

static uint32_t rewrite_twice(const struct ir_body *b, const struct ir_op *op)
{
    const struct ir_op *inner = &b->ops[op->arg[0]];
    if (inner->code != op->code)
        return IR_NONE;
    if (op->code == IR_NEG || op->code == IR_NOT)
        return inner->arg[0];
    if (op->code == IR_ABS || op->code == IR_RINT ||
        (op->code == IR_CLAMP && op->imm == inner->imm))
        return op->arg[0];
    return IR_NONE;
}

static uint32_t fold(struct ir_body *b, const struct ir_op *op)
{
    int32_t bits[3] = {0, 0, 0}, ret = 0;
    uint32_t args = ir_code_args(op->code);
    if (args == 0 || args > 3)
        return IR_NONE;
    for (uint32_t i = 0; i < args; i++) {
        if (!constant(b, op->arg[i], &bits[i]))
            return IR_NONE;
    }
    if (op->code == IR_CLAMP && op->imm > 0)
        return ir_i32(b, bits[0] < 0 ? 0 : BASE_MIN(bits[0], op->imm - 1));
    if (!ir_fold(op, bits, &ret, (enum ir_type)b->ops[op->arg[0]].type))
        return IR_NONE;
    return ir_emit(b, IR_CONST, (enum ir_type)op->type, ret, NULL, 0);
}

/* A value that `op` (arguments already in b) always equals, made if need be; IR_NONE = none known.
 */
static uint32_t rewrite(struct ir_body *b, const struct ir_op *op)
{
    if (ir_code_args(op->code) == 0 || op->code == IR_RINDEX || op->code == IR_CARRIED_VALUE ||
        op->code == IR_RESULT || op->code == IR_LOAD)
        return IR_NONE;
    uint32_t to = fold(b, op), type = b->ops[op->arg[0]].type;
    if (to != IR_NONE)
        return to;
    if (ir_code_args(op->code) == 1)
        return rewrite_twice(b, op);
    if (type == IR_TYPE_BOOL)
        return rewrite_bool(b, op);
    return type == IR_TYPE_I32 ? rewrite_int(b, op) : rewrite_float(b, op);
}

/* Equal whatever the order: one order, so that equal values get one number. */
static void sort_args(struct ir_op *op, uint32_t type)
{
    bool any_order = op->code == IR_ADD || op->code == IR_MUL || op->code == IR_AND ||
                     op->code == IR_OR || op->code == IR_EQ || op->code == IR_FMA ||
                     (type == IR_TYPE_I32 && (op->code == IR_MAX || op->code == IR_MIN));
    if (any_order && op->arg[0] > op->arg[1]) {
        uint32_t first = op->arg[0];
        op->arg[0] = op->arg[1];
        op->arg[1] = first;
    }
}

/* ---- emission -------------------------------------------------------------------------------- */

static uint32_t emit(struct pass *p, uint32_t id);

static void emit_outside(struct pass *p, uint32_t id, uint32_t r)
{
    if (p->home[id] < (int64_t)r && p->from->ops[id].code != IR_REDUCE)
        emit(p, id);
}

/* Everything live that the ops of reduce r use and that does not depend on r comes before it. */
static void emit_invariants(struct pass *p, uint32_t r)
{
    const struct ir_op *op = &p->from->ops[r];
    for (uint32_t i = r + 1; i < op->end; i++) {
        if (!p->live[i])
            continue;
        const struct ir_op *inner = &p->from->ops[i];
        uint32_t arg[5], count = ir_op_args(inner, arg);
        for (uint32_t a = 0; a < count; a++)
            emit_outside(p, arg[a], r);
        emit_outside(p, i, r);
        for (uint32_t k = 0; inner->code == IR_REDUCE && k < inner->carried; k++)
            emit_outside(p, inner->yield[k], r);
    }
    for (uint32_t k = 0; k < op->carried; k++)
        emit_outside(p, op->yield[k], r);
}

static uint32_t emit_reduce(struct pass *p, uint32_t id)
{
    const struct ir_op *op = &p->from->ops[id];
    struct ir_reduce_spec spec = {.kind = (enum ir_reduce)op->reduce,
                                  .count = op->imm,
                                  .count_value = IR_NONE,
                                  .carried = op->carried};
    for (uint32_t k = 0; k < op->carried; k++)
        spec.init[k] = emit(p, op->arg[k]);
    if (op->arg[4] != IR_NONE)
        spec.count_value = emit(p, op->arg[4]);
    emit_invariants(p, id);
    uint32_t r = ir_reduce_begin(p->to, &spec);
    p->moved[id] = r;
    uint32_t yield[IR_CARRIED] = {0};
    for (uint32_t k = 0; k < op->carried; k++)
        yield[k] = emit(p, op->yield[k]);
    ir_reduce_end(p->to, r, yield);
    return r;
}

static uint32_t emit_plain(struct pass *p, uint32_t id)
{
    struct ir_op op = p->from->ops[id];
    uint32_t args = 0;
    for (uint32_t i = 0; i < BASE_COUNT(op.arg); i++) {
        if (op.arg[i] == IR_NONE)
            continue;
        op.arg[i] = emit(p, op.arg[i]);
        args = i + 1;
    }
    uint32_t to = p->to->failed ? 0 : rewrite(p->to, &op);
    if (to != IR_NONE) {
        p->counts.folded++;
        return to;
    }
    if (args > 0 && !p->to->failed)
        sort_args(&op, p->to->ops[op.arg[0]].type);
    return ir_emit(p->to, (enum ir_code)op.code, (enum ir_type)op.type, op.imm, op.arg, args);
}

static uint32_t emit(struct pass *p, uint32_t id)
{
    if (p->moved[id] != IR_NONE)
        return p->moved[id];
    const struct ir_op *op = &p->from->ops[id];
    uint32_t to = op->code == IR_REDUCE ? emit_reduce(p, id) : emit_plain(p, id);
    p->moved[id] = to;
    int64_t parent = op->parent == IR_NONE ? -1 : (int64_t)op->parent;
    if (p->home[id] < parent && op->code != IR_CONST && op->code != IR_INDEX)
        p->counts.moved++;
    return to;
}

static void run_pass(const struct ir_body *b, struct ir_body *ret,
                     struct ir_simplify_counts *counts)
{
    uint32_t n = BASE_MAX(b->count, 1u);
    struct pass p = {.from = b, .to = ret};
    ir_body_init(ret);
    p.home = mem_array(n, sizeof(*p.home));
    p.live = mem_array(n, sizeof(*p.live));
    p.moved = mem_array(n, sizeof(*p.moved));
    memset(p.moved, 0xff, n * sizeof(*p.moved));
    find_homes(&p, 0, b->count);
    if (b->result != IR_NONE)
        mark(&p, b->result);
    for (uint32_t i = 0; i < b->count; i++) {
        if (stores(&b->ops[i]))
            mark(&p, i);
    }
    for (uint32_t i = 0; i < b->count; i++)
        p.counts.removed += !p.live[i];
    for (uint32_t i = 0; i < b->count; i++) {
        if (stores(&b->ops[i]))
            emit(&p, i);
    }
    if (b->result != IR_NONE)
        ret->result = emit(&p, b->result);
    *counts = p.counts;
    free(p.home);
    free(p.live);
    free(p.moved);
}

void ir_body_simplify(const struct ir_body *b, struct ir_body *ret,
                      struct ir_simplify_counts *counts)
{
    struct ir_simplify_counts now, sum = {0};
    run_pass(b, ret, &now);
    for (;;) {
        sum.folded += now.folded;
        sum.moved += now.moved;
        sum.removed += now.removed;
        if (now.folded == 0)
            break;
        /* A rewrite leaves arguments nobody needs now, and may make another one possible. */
        struct ir_body before = *ret;
        run_pass(&before, ret, &now);
        ir_body_done(&before);
    }
    if (counts) {
        counts->folded += sum.folded;
        counts->moved += sum.moved;
        counts->removed += sum.removed;
    }
}

/* ---- recognising ----------------------------------------------------------------------------- */

bool ir_loop_is(const struct ir_node *n, enum ir_oper oper)
{
    if (n->key.kind != IR_LOOP || n->key.hint.oper != (uint32_t)oper)
        return false;
    struct ir_body plain, simple;
    ir_body_init(&plain);
    if (!ir_oper_body(&n->key.hint, &n->key.shape, &plain))
        return false;
    ir_body_simplify(&plain, &simple, NULL);
    bool same = ir_body_equal(&plain, &n->body) || ir_body_equal(&simple, &n->body);
    ir_body_done(&plain);
    ir_body_done(&simple);
    return same;
}

static void copy_body(const struct ir_shape *s, uint32_t operand, struct ir_body *ret)
{
    struct ir_body b;
    ir_body_init(&b);
    uint32_t col = ir_index(&b, s->rank - 1);
    if (s->rank == 3)
        col = ir_op2(&b, IR_ADD, ir_op2(&b, IR_MUL, ir_index(&b, 1), ir_i32(&b, s->dim[2])), col);
    b.result = ir_load2(&b, operand, IR_TYPE_F32, ir_index(&b, 0), col);
    ir_body_simplify(&b, ret, NULL);
    ir_body_done(&b);
}

bool ir_loop_is_copy(const struct ir_node *n, const struct ir_shape *operand_shapes,
                     uint32_t *ret_operand)
{
    const struct ir_body *b = &n->body;
    if (n->key.kind != IR_LOOP || b->result == IR_NONE || b->ops[b->result].code != IR_LOAD ||
        n->key.shape.rank < 2)
        return false;
    uint32_t operand = (uint32_t)b->ops[b->result].imm;
    if (!ir_shape_same_rows(&n->key.shape, &operand_shapes[operand]))
        return false;
    struct ir_body copy;
    copy_body(&n->key.shape, operand, &copy);
    bool same = ir_body_equal(&copy, b);
    ir_body_done(&copy);
    *ret_operand = operand;
    return same;
}
