/* Lowering a body to steps: which values are the same for all lanes of a block, how far
 * neighbouring lanes of an index are apart (contiguous loads become copies), where each value
 * lives, and which carried values may be updated in place. */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/interp.h"

struct lower {
    const struct ir_body *b;
    const struct ir_shape *shape;
    struct ir_exec_loop *out;
    struct ir_reg *reg;                 /* [ops] */
    bool *lane;                         /* [ops] */
    struct ir_reg (*carry)[IR_CARRIED]; /* [ops], reduces only */
    bool (*lane_carry)[IR_CARRIED];
    bool *in_place; /* [ops]: a yielded value that lives in its carry register */
};

/* ---- uniform or lane ------------------------------------------------------------------------- */

static bool any_lane(const struct lower *l, const struct ir_op *op)
{
    uint32_t arg[5], count = ir_op_args(op, arg);
    for (uint32_t i = 0; i < count; i++) {
        if (l->lane[arg[i]])
            return true;
    }
    return false;
}

static bool is_lane(const struct lower *l, uint32_t id)
{
    const struct ir_op *op = &l->b->ops[id];
    switch (op->code) {
    case IR_INDEX:
        return (uint32_t)op->imm == l->shape->rank - 1;
    case IR_RINDEX:
    case IR_REDUCE:
        return false;
    case IR_CARRIED_VALUE:
    case IR_RESULT:
        return l->lane_carry[op->arg[0]][op->imm];
    default:
        return any_lane(l, op);
    }
}

/* A carried value is a lane value if it ever becomes one: a fixed point, reached in a few rounds.
 */
static void find_lanes(struct lower *l)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < l->b->count; i++) {
            const struct ir_op *op = &l->b->ops[i];
            bool now = is_lane(l, i);
            changed |= now != l->lane[i];
            l->lane[i] = now;
            if (op->code != IR_REDUCE)
                continue;
            for (uint32_t k = 0; k < op->carried; k++) {
                bool lane = l->lane[op->arg[k]] || l->lane[op->yield[k]];
                changed |= lane && !l->lane_carry[i][k];
                l->lane_carry[i][k] |= lane;
            }
        }
    }
}

/* ---- strides of indices ---------------------------------------------------------------------- */

static bool const_value(const struct ir_body *b, uint32_t id, int32_t *ret)
{
    if (b->ops[id].code != IR_CONST || b->ops[id].type != IR_TYPE_I32)
        return false;
    *ret = b->ops[id].imm;
    return true;
}

static int32_t stride_of(const struct lower *l, uint32_t id)
{
    const struct ir_op *op = &l->b->ops[id];
    if (!l->lane[id])
        return 0;
    if (op->code == IR_INDEX)
        return 1;
    if (op->code != IR_ADD && op->code != IR_SUB && op->code != IR_MUL)
        return IR_STRIDE_ANY;
    int32_t a = l->reg[op->arg[0]].stride, b = l->reg[op->arg[1]].stride, factor, ret;
    if (a == IR_STRIDE_ANY || b == IR_STRIDE_ANY || op->type != IR_TYPE_I32)
        return IR_STRIDE_ANY;
    bool overflow;
    if (op->code == IR_ADD)
        overflow = __builtin_add_overflow(a, b, &ret);
    else if (op->code == IR_SUB)
        overflow = __builtin_sub_overflow(a, b, &ret);
    else if (const_value(l->b, op->arg[1], &factor))
        overflow = __builtin_mul_overflow(a, factor, &ret);
    else if (const_value(l->b, op->arg[0], &factor))
        overflow = __builtin_mul_overflow(b, factor, &ret);
    else
        return IR_STRIDE_ANY;
    return overflow ? IR_STRIDE_ANY : ret;
}

/* ---- registers ------------------------------------------------------------------------------- */

static struct ir_reg new_reg(struct lower *l, bool lane)
{
    struct ir_reg r = {.at = l->out->regs, .lane = lane, .stride = lane ? IR_STRIDE_ANY : 0};
    /* Uniform registers are kept apart by a cache line's worth of nothing: simple, and small
     * anyway. */
    l->out->regs += lane ? IR_LANES : 16;
    return r;
}

/* May the op that yields carried value k of reduce r write the carry register itself? Only if
 * nothing reads the old value after it: later ops of the region, or another yield. */
static bool can_update_in_place(const struct lower *l, uint32_t r, uint32_t k)
{
    const struct ir_op *reduce = &l->b->ops[r];
    uint32_t y = reduce->yield[k];
    const struct ir_op *op = &l->b->ops[y];
    if (reduce->reduce != IR_REDUCE_SEQ || op->parent != r || l->lane[y] != l->lane_carry[r][k])
        return false;
    if (op->code == IR_CONST || op->code == IR_INDEX || op->code == IR_RINDEX ||
        op->code == IR_CARRIED_VALUE || op->code == IR_RESULT)
        return false;
    for (uint32_t i = 0; i < reduce->carried; i++) {
        const struct ir_op *other = &l->b->ops[reduce->yield[i]];
        if (i != k && (reduce->yield[i] == y || (other->code == IR_CARRIED_VALUE &&
                                                 other->arg[0] == r && other->imm == (int32_t)k)))
            return false;
    }
    for (uint32_t i = y + 1; i < reduce->end; i++) {
        uint32_t arg[5], count = ir_op_args(&l->b->ops[i], arg);
        for (uint32_t a = 0; a < count; a++) {
            const struct ir_op *from = &l->b->ops[arg[a]];
            if (from->code == IR_CARRIED_VALUE && from->arg[0] == r && from->imm == (int32_t)k)
                return false;
        }
        const struct ir_op *inner = &l->b->ops[i];
        for (uint32_t a = 0; inner->code == IR_REDUCE && a < inner->carried; a++) {
            const struct ir_op *from = &l->b->ops[inner->yield[a]];
            if (from->code == IR_CARRIED_VALUE && from->arg[0] == r && from->imm == (int32_t)k)
                return false;
        }
    }
    return true;
}

static void place_reduce(struct lower *l, uint32_t r)
{
    const struct ir_op *op = &l->b->ops[r];
    for (uint32_t k = 0; k < op->carried; k++) {
        l->carry[r][k] = new_reg(l, l->lane_carry[r][k]);
        if (can_update_in_place(l, r, k)) {
            l->in_place[op->yield[k]] = true;
            l->reg[op->yield[k]] = l->carry[r][k];
        }
    }
}

static void add_const(struct lower *l, uint32_t at, int32_t bits)
{
    struct ir_exec_loop *o = l->out;
    o->consts = mem_grow(o->consts, o->consts_count + 1, sizeof(*o->consts));
    o->consts[o->consts_count].at = at;
    o->consts[o->consts_count++].bits = bits;
}

/* All uses of one domain index share a register, wherever they stand. */
static void place_index(struct lower *l, uint32_t id)
{
    uint32_t dim = (uint32_t)l->b->ops[id].imm;
    l->reg[id] = new_reg(l, l->lane[id]);
    if (l->out->index[dim] != IR_NONE)
        l->reg[id].at = l->out->index[dim];
    l->reg[id].stride = stride_of(l, id);
    l->out->index[dim] = l->reg[id].at;
}

static void place_values(struct lower *l)
{
    for (uint32_t i = 0; i < l->b->count; i++) {
        const struct ir_op *op = &l->b->ops[i];
        if (op->code == IR_REDUCE) {
            l->reg[i] = new_reg(l, false); /* its index */
            place_reduce(l, i);
        } else if (op->code == IR_INDEX) {
            place_index(l, i);
        } else if (op->code == IR_RINDEX) {
            l->reg[i] = l->reg[op->arg[0]];
        } else if (op->code == IR_CARRIED_VALUE || op->code == IR_RESULT) {
            l->reg[i] = l->carry[op->arg[0]][op->imm];
        } else if (op->type != IR_TYPE_NONE && !l->in_place[i]) {
            l->reg[i] = new_reg(l, l->lane[i]);
            l->reg[i].stride = op->type == IR_TYPE_I32 ? stride_of(l, i) : IR_STRIDE_ANY;
        }
        if (op->code == IR_CONST)
            add_const(l, l->reg[i].at, op->imm);
    }
}

/* ---- steps ----------------------------------------------------------------------------------- */

static bool makes_step(const struct ir_op *op)
{
    return op->code != IR_CONST && op->code != IR_INDEX && op->code != IR_RINDEX &&
           op->code != IR_CARRIED_VALUE && op->code != IR_RESULT;
}

static enum ir_step_kind kind_of(uint32_t code)
{
    switch (code) {
    case IR_CLAMP:
        return STEP_CLAMP;
    case IR_DIM:
        return STEP_DIM;
    case IR_WINDOW:
    case IR_DELTA_SCALE:
        return STEP_ARG;
    case IR_LOAD:
        return STEP_LOAD;
    case IR_WEIGHT_F32:
    case IR_WEIGHT_Q:
    case IR_WEIGHT_D:
    case IR_WEIGHT_M:
        return STEP_WEIGHT;
    case IR_VECTOR:
        return STEP_VECTOR;
    case IR_KV_K:
    case IR_KV_V:
        return STEP_KV;
    case IR_KV_PUT_K:
    case IR_KV_PUT_V:
        return STEP_KV_PUT;
    case IR_REDUCE:
        return STEP_REDUCE;
    default:
        return STEP_OP;
    }
}

static ir_ops_fn *op_fn(const struct lower *l, const struct ir_op *op)
{
    uint32_t variant = 0, arg[5], count = ir_op_args(op, arg);
    uint32_t type = l->b->ops[op->arg[0]].type;
    bool lane = any_lane(l, op);
    for (uint32_t i = 0; lane && i < count; i++)
        variant |= l->lane[arg[i]] ? 0u : 1u << i;
    return ir_ops()->fn[op->code][type & 3u][variant & 7u];
}

static void reduce_step(const struct lower *l, uint32_t id, struct ir_step *s)
{
    const struct ir_op *op = &l->b->ops[id];
    s->reduce = op->reduce;
    s->carried = op->carried;
    s->index = l->reg[id].at;
    s->type = l->b->ops[op->arg[0]].type; /* of a max */
    for (uint32_t k = 0; k < op->carried; k++) {
        s->carry[k] = l->carry[id][k];
        s->yield[k] = l->reg[op->yield[k]];
        s->in_place[k] = l->in_place[op->yield[k]] && s->yield[k].at == s->carry[k].at;
    }
}

static void emit_op(struct lower *l, uint32_t id);

/* Emit the ops [from, to) that belong to `parent`; at top level only lane ones or only uniform
 * ones. */
static void emit_region(struct lower *l, uint32_t parent, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++) {
        if (l->b->ops[i].parent == parent && makes_step(&l->b->ops[i]))
            emit_op(l, i);
    }
}

static void emit_op(struct lower *l, uint32_t id)
{
    const struct ir_op *op = &l->b->ops[id];
    struct ir_exec_loop *o = l->out;
    uint32_t at = o->steps_count++;
    struct ir_step *s = &o->steps[at];
    memset(s, 0, sizeof(*s));
    s->kind = kind_of(op->code);
    s->code = op->code;
    s->type = op->type;
    s->imm = op->imm;
    s->dst = l->reg[id];
    for (uint32_t i = 0; i < BASE_COUNT(s->arg); i++) {
        s->arg[i].at = IR_NONE;
        if (op->arg[i] == IR_NONE)
            continue;
        s->arg[i] = l->reg[op->arg[i]];
        s->args = i + 1;
    }
    if (s->kind == STEP_OP)
        s->fn = op_fn(l, op);
    if (s->kind != STEP_REDUCE)
        return;
    reduce_step(l, id, s);
    emit_region(l, id, id + 1, op->end);
    o->steps[at].end = o->steps_count;
}

/* A reduce is a lane one if anything it carries or computes is: then it must run for each block. */
static bool reduce_has_lanes(const struct lower *l, uint32_t r)
{
    for (uint32_t k = 0; k < l->b->ops[r].carried; k++) {
        if (l->lane_carry[r][k])
            return true;
    }
    for (uint32_t i = r; i < l->b->ops[r].end; i++) {
        if (l->lane[i])
            return true;
    }
    return false;
}

/* Uniform values that come out of such a reduce are computed after it, for each block as well. */
static void find_per_block(const struct lower *l, bool *per_block)
{
    for (uint32_t i = 0; i < l->b->count; i++) {
        const struct ir_op *op = &l->b->ops[i];
        uint32_t arg[5], count = ir_op_args(op, arg);
        per_block[i] = l->lane[i] ||
                       (op->code == IR_REDUCE ? reduce_has_lanes(l, i) : op->type == IR_TYPE_NONE);
        for (uint32_t k = 0; k < count; k++)
            per_block[i] |= per_block[arg[k]];
        if (op->code != IR_REDUCE)
            continue;
        for (uint32_t k = 0; k < op->carried; k++)
            per_block[i] |= op->yield[k] < i && per_block[op->yield[k]];
        for (uint32_t inner = i + 1; inner < op->end; inner++) {
            for (uint32_t k = 0; l->b->ops[inner].code == IR_REDUCE && k < l->b->ops[inner].carried;
                 k++) {
                uint32_t y = l->b->ops[inner].yield[k];
                per_block[i] |= y < i && per_block[y];
            }
            count = ir_op_args(&l->b->ops[inner], arg);
            for (uint32_t k = 0; k < count; k++)
                per_block[i] |= arg[k] < i && per_block[arg[k]];
        }
    }
}

static void emit_all(struct lower *l)
{
    bool *per_block = mem_array(BASE_MAX(l->b->count, 1u), sizeof(*per_block));
    find_per_block(l, per_block);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < l->b->count; i++) {
            const struct ir_op *op = &l->b->ops[i];
            if (op->parent == IR_NONE && makes_step(op) && per_block[i] == (pass == 1))
                emit_op(l, i);
        }
        if (pass == 0)
            l->out->prologue = l->out->steps_count;
    }
    free(per_block);
}

static bool lanes_are_weight_rows(const struct ir_exec_loop *o)
{
    for (uint32_t i = 0; i < o->steps_count; i++) {
        if (o->steps[i].kind == STEP_WEIGHT && o->steps[i].arg[0].stride == 1)
            return o->shape.rank == 2;
    }
    return false;
}

void ir_lower(const struct ir_body *b, const struct ir_shape *shape, struct ir_exec_loop *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->shape = *shape;
    struct lower l = {.b = b, .shape = shape, .out = ret};
    uint32_t n = BASE_MAX(b->count, 1u);
    l.reg = mem_array(n, sizeof(*l.reg));
    l.lane = mem_array(n, sizeof(*l.lane));
    l.carry = mem_array(n, sizeof(*l.carry));
    l.lane_carry = mem_array(n, sizeof(*l.lane_carry));
    l.in_place = mem_array(n, sizeof(*l.in_place));
    ret->steps = mem_array(n, sizeof(*ret->steps));
    for (int i = 0; i < IR_DIMS; i++)
        ret->index[i] = IR_NONE;
    find_lanes(&l);
    place_values(&l);
    emit_all(&l);
    ret->result.at = IR_NONE;
    if (b->result != IR_NONE)
        ret->result = l.reg[b->result];
    ret->by_weight_rows = lanes_are_weight_rows(ret);
    free(l.reg);
    free(l.lane);
    free(l.carry);
    free(l.lane_carry);
    free(l.in_place);
}

void ir_lower_done(struct ir_exec_loop *l)
{
    free(l->steps);
    free(l->consts);
}

/* ---- one op on constants --------------------------------------------------------------------- */

bool ir_fold(const struct ir_op *op, const int32_t *bits, int32_t *ret_bits, enum ir_type arg_type)
{
    if (op->code >= IR_CODES)
        return false;
    ir_ops_fn *fn = ir_ops()->fn[op->code][arg_type & 3u][0];
    if (fn == NULL || kind_of(op->code) != STEP_OP)
        return false;
    fn(ret_bits, &bits[0], &bits[1], &bits[2], 1);
    return true;
}
