/* Scalar SSA bodies: a flat list in which an op's arguments come before it and a reduce's ops
 * follow it up to `end`. Ops are value-numbered as they are made, so a body has no two equal ops in
 * sight of each other and two bodies built alike are equal byte for byte. */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/ir.h"

static const struct {
    const char *name;
    uint32_t args;
} codes[IR_CODES] = {
#define IR_ROW(name, args) {#name, args},
    IR_OPS(IR_ROW)
#undef IR_ROW
};

const char *ir_code_name(uint32_t code)
{
    return code < IR_CODES ? codes[code].name : "?";
}

uint32_t ir_code_args(uint32_t code)
{
    return code < IR_CODES ? codes[code].args : 0;
}

void ir_body_init(struct ir_body *b)
{
    memset(b, 0, sizeof(*b));
    b->result = IR_NONE;
}

void ir_body_done(struct ir_body *b)
{
    free(b->ops);
    memset(b, 0, sizeof(*b));
}

bool ir_body_equal(const struct ir_body *a, const struct ir_body *b)
{
    return a->count == b->count && a->result == b->result &&
           (a->count == 0 || memcmp(a->ops, b->ops, a->count * sizeof(*a->ops)) == 0);
}

uint64_t ir_body_hash(const struct ir_body *b)
{
    return b->count > 0 ? hash64_of(b->ops, b->count * sizeof(*b->ops), b->result) : 0;
}

void ir_body_copy(struct ir_body *dst, const struct ir_body *src)
{
    *dst = *src;
    dst->ops = NULL;
    dst->cap = src->count;
    if (src->count > 0) {
        dst->ops = mem_array(src->count, sizeof(*dst->ops));
        memcpy(dst->ops, src->ops, src->count * sizeof(*dst->ops));
    }
}

static uint32_t parent_now(const struct ir_body *b)
{
    return b->depth > 0 ? b->open[b->depth - 1] : IR_NONE;
}

/* Append; the caller has filled everything but `parent`. */
static uint32_t append(struct ir_body *b, struct ir_op *op)
{
    if (b->count >= IR_OPS_MAX)
        b->failed = true;
    if (b->failed)
        return 0;
    if (b->count == b->cap) {
        b->cap = b->cap > 0 ? b->cap * 2 : 16;
        b->ops = mem_grow(b->ops, b->cap, sizeof(*b->ops));
    }
    op->parent = parent_now(b);
    b->ops[b->count] = *op;
    return b->count++;
}

static bool in_sight(const struct ir_body *b, uint32_t id)
{
    uint32_t parent = b->ops[id].parent;
    if (parent == IR_NONE)
        return true;
    for (uint32_t i = 0; i < b->depth; i++) {
        if (b->open[i] == parent)
            return true;
    }
    return false;
}

static bool same_op(const struct ir_op *a, const struct ir_op *b)
{
    return a->code == b->code && a->type == b->type && a->imm == b->imm &&
           memcmp(a->arg, b->arg, sizeof(a->arg)) == 0;
}

static bool is_store(uint32_t code)
{
    return code == IR_KV_PUT_K || code == IR_KV_PUT_V;
}

uint32_t ir_emit(struct ir_body *b, enum ir_code code, enum ir_type type, int32_t imm,
                 const uint32_t *arg, uint32_t args)
{
    struct ir_op op;
    memset(&op, 0, sizeof(op));
    op.code = code;
    op.type = type;
    op.imm = imm;
    for (uint32_t i = 0; i < BASE_COUNT(op.arg); i++)
        op.arg[i] = i < args ? arg[i] : IR_NONE;
    if (!is_store(code) && !b->failed) {
        for (uint32_t i = b->count; i-- > 0;) {
            if (same_op(&b->ops[i], &op) && in_sight(b, i))
                return i;
        }
    }
    return append(b, &op);
}

static enum ir_type type_of(const struct ir_body *b, uint32_t id)
{
    return id < b->count ? (enum ir_type)b->ops[id].type : IR_TYPE_NONE;
}

uint32_t ir_f32(struct ir_body *b, float v)
{
    int32_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return ir_emit(b, IR_CONST, IR_TYPE_F32, bits, NULL, 0);
}

uint32_t ir_i32(struct ir_body *b, int32_t v)
{
    return ir_emit(b, IR_CONST, IR_TYPE_I32, v, NULL, 0);
}

uint32_t ir_index(struct ir_body *b, uint32_t dim)
{
    return ir_emit(b, IR_INDEX, IR_TYPE_I32, (int32_t)dim, NULL, 0);
}

uint32_t ir_dim(struct ir_body *b, int32_t dim)
{
    return dim >= 0 ? ir_i32(b, dim) : ir_emit(b, IR_DIM, IR_TYPE_I32, dim, NULL, 0);
}

uint32_t ir_op1(struct ir_body *b, enum ir_code code, uint32_t a)
{
    enum ir_type type = type_of(b, a);
    if (code == IR_TO_F32)
        type = IR_TYPE_F32;
    else if (code == IR_TO_I32)
        type = IR_TYPE_I32;
    return ir_emit(b, code, type, 0, &a, 1);
}

uint32_t ir_op2(struct ir_body *b, enum ir_code code, uint32_t a, uint32_t c)
{
    const uint32_t arg[2] = {a, c};
    bool compares = code == IR_LT || code == IR_LE || code == IR_EQ;
    return ir_emit(b, code, compares ? IR_TYPE_BOOL : type_of(b, a), 0, arg, 2);
}

uint32_t ir_fma(struct ir_body *b, uint32_t a, uint32_t c, uint32_t d)
{
    const uint32_t arg[3] = {a, c, d};
    return ir_emit(b, IR_FMA, IR_TYPE_F32, 0, arg, 3);
}

uint32_t ir_select(struct ir_body *b, uint32_t cond, uint32_t yes, uint32_t no)
{
    const uint32_t arg[3] = {cond, yes, no};
    return ir_emit(b, IR_SELECT, type_of(b, yes), 0, arg, 3);
}

uint32_t ir_clamp(struct ir_body *b, uint32_t i, int32_t size)
{
    return ir_emit(b, IR_CLAMP, IR_TYPE_I32, size, &i, 1);
}

uint32_t ir_load1(struct ir_body *b, uint32_t operand, enum ir_type type, uint32_t i)
{
    return ir_emit(b, IR_LOAD, type, (int32_t)operand, &i, 1);
}

uint32_t ir_load2(struct ir_body *b, uint32_t operand, enum ir_type type, uint32_t i, uint32_t j)
{
    const uint32_t arg[2] = {i, j};
    return ir_emit(b, IR_LOAD, type, (int32_t)operand, arg, 2);
}

uint32_t ir_load3(struct ir_body *b, uint32_t operand, enum ir_type type, uint32_t i, uint32_t j,
                  uint32_t k)
{
    const uint32_t arg[3] = {i, j, k};
    return ir_emit(b, IR_LOAD, type, (int32_t)operand, arg, 3);
}

uint32_t ir_weight(struct ir_body *b, enum ir_code code, int32_t slot, uint32_t row, uint32_t col)
{
    const uint32_t arg[2] = {row, col};
    return ir_emit(b, code, code == IR_WEIGHT_Q ? IR_TYPE_I32 : IR_TYPE_F32, slot, arg, 2);
}

uint32_t ir_reduce_begin(struct ir_body *b, const struct ir_reduce_spec *spec)
{
    struct ir_op op;
    memset(&op, 0, sizeof(op));
    op.code = IR_REDUCE;
    op.type = IR_TYPE_NONE;
    op.imm = spec->count;
    op.reduce = spec->kind;
    op.carried = spec->carried;
    for (uint32_t i = 0; i < BASE_COUNT(op.arg); i++)
        op.arg[i] = i < spec->carried && i < IR_CARRIED ? spec->init[i] : IR_NONE;
    op.arg[4] = spec->count_value;
    if (b->depth >= IR_REDUCE_DEPTH || spec->carried > IR_CARRIED) {
        b->failed = true;
        return 0;
    }
    uint32_t id = append(b, &op);
    if (!b->failed)
        b->open[b->depth++] = id;
    return id;
}

uint32_t ir_reduce_over(struct ir_body *b, enum ir_reduce kind, int32_t count, uint32_t init)
{
    struct ir_reduce_spec spec = {
        .kind = kind, .count = count, .count_value = IR_NONE, .init = {init}, .carried = 1};
    return ir_reduce_begin(b, &spec);
}

uint32_t ir_reduce_index(struct ir_body *b, uint32_t reduce)
{
    return ir_emit(b, IR_RINDEX, IR_TYPE_I32, 0, &reduce, 1);
}

uint32_t ir_reduce_carried(struct ir_body *b, uint32_t reduce, uint32_t which)
{
    if (b->failed || which >= IR_CARRIED)
        return 0;
    enum ir_type type = type_of(b, b->ops[reduce].arg[which]);
    return ir_emit(b, IR_CARRIED_VALUE, type, (int32_t)which, &reduce, 1);
}

void ir_reduce_end(struct ir_body *b, uint32_t reduce, const uint32_t *yield)
{
    if (b->failed || b->depth == 0 || b->open[b->depth - 1] != reduce) {
        b->failed = true;
        return;
    }
    struct ir_op *op = &b->ops[reduce];
    for (uint32_t i = 0; i < op->carried; i++)
        op->yield[i] = yield[i];
    op->end = b->count;
    b->depth--;
}

uint32_t ir_reduce_result(struct ir_body *b, uint32_t reduce, uint32_t which)
{
    if (b->failed || which >= IR_CARRIED)
        return 0;
    enum ir_type type = type_of(b, b->ops[reduce].arg[which]);
    return ir_emit(b, IR_RESULT, type, (int32_t)which, &reduce, 1);
}

uint32_t ir_op_args(const struct ir_op *op, uint32_t ret[5])
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < BASE_COUNT(op->arg); i++) {
        if (op->arg[i] != IR_NONE)
            ret[count++] = op->arg[i];
    }
    return count;
}
