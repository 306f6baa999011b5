/* Checks of one body: structure, types, and every index inside what it indexes. Ranges are
 * intervals whose upper end may be a symbolic size; what is read from data has no range, so a
 * gathered index must go through CLAMP, which for valid arguments changes nothing. */
#include <stdlib.h>
#include <string.h>

#include "rdu/ir/ir.h"

/* lo <= v and v <= hi, or v <= size(sym) + hi if sym is not 0. */
struct range {
    int64_t lo, hi;
    int32_t sym;
};
struct check {
    const struct ir_body *b;
    const struct ir_shape *shape;
    const struct ir_body_scope *scope;
    struct range *range; /* [ops], i32 values */
    bool *varies;        /* [ops], may differ from lane to lane of the last dimension */
    uint32_t at;         /* op being checked */
    uint32_t open[IR_REDUCE_DEPTH], depth; /* reduces it is inside of */
    struct err *e;
    enum err_code rc;
};

static const struct range anything = {INT32_MIN, INT32_MAX, 0};

static void bad(struct check *c, const char *what)
{
    if (c->rc != ERR_OK)
        return;
    const char *name = c->at < c->b->count ? ir_code_name(c->b->ops[c->at].code) : "result";
    c->rc = err_set(c->e, ERR_INVALID, "graph %s: %s, op %u (%s): %s", c->scope->graph->name,
                    c->scope->what, c->at, name, what);
}

/* ---- ranges ---------------------------------------------------------------------------------- */

static struct range below(int32_t size)
{
    struct range r = {0, -1, size};
    if (size >= 0) {
        r.hi = (int64_t)size - 1;
        r.sym = 0;
    }
    return r;
}

static bool wraps(struct range r)
{
    return r.lo < INT32_MIN || r.hi > INT32_MAX || r.hi < INT32_MIN;
}

static struct range range_mul(struct range a, struct range b)
{
    if (b.sym != 0 || (a.sym != 0 && b.lo != b.hi)) {
        struct range swap = a;
        a = b;
        b = swap;
    }
    if (a.lo < 0 || b.lo < 0 || b.sym != 0)
        return anything;
    if (a.sym == 0) {
        struct range r = {a.lo * b.lo, a.hi * b.hi, 0};
        return r;
    }
    if (a.sym == IR_DIM_CTX_BLOCKS && b.lo == RDU_KV_BLOCK && b.hi == RDU_KV_BLOCK) {
        struct range r = {a.lo * RDU_KV_BLOCK, a.hi * RDU_KV_BLOCK, RDU_DIM_CTX};
        return r;
    }
    return anything;
}

static struct range range_div(struct range a, struct range b)
{
    if (a.lo < 0 || b.lo != b.hi || b.lo <= 0 || b.sym != 0)
        return anything;
    struct range r = {a.lo / b.lo, a.hi / b.lo, 0};
    if (a.sym == 0)
        return r;
    if (a.sym != RDU_DIM_CTX || b.lo != RDU_KV_BLOCK || a.hi >= 0)
        return anything;
    r.hi = (a.hi - (RDU_KV_BLOCK - 1)) / RDU_KV_BLOCK; /* towards minus infinity */
    r.sym = IR_DIM_CTX_BLOCKS;
    return r;
}

static struct range range_min(struct range a, struct range b)
{
    struct range r = {BASE_MIN(a.lo, b.lo), BASE_MIN(a.hi, b.hi), a.sym};
    if (a.sym != b.sym) { /* either bound holds: keep the constant one */
        r.sym = 0;
        r.hi = a.sym == 0 ? a.hi : b.hi;
        if (a.sym != 0 && b.sym != 0)
            return anything;
    }
    return r;
}

static struct range range_either(struct range a, struct range b, bool max)
{
    struct range r = {max ? BASE_MAX(a.lo, b.lo) : BASE_MIN(a.lo, b.lo), BASE_MAX(a.hi, b.hi),
                      a.sym};
    return a.sym == b.sym ? r : anything;
}

static struct range range_two(uint32_t code, struct range a, struct range b)
{
    struct range r = anything;
    switch (code) {
    case IR_ADD:
        if (a.sym == 0 || b.sym == 0)
            r = (struct range){a.lo + b.lo, a.hi + b.hi, a.sym != 0 ? a.sym : b.sym};
        break;
    case IR_SUB:
        r = (struct range){b.sym == 0 ? a.lo - b.hi : INT32_MIN, a.hi - b.lo, a.sym};
        break;
    case IR_MUL:
        r = range_mul(a, b);
        break;
    case IR_DIV:
        r = range_div(a, b);
        break;
    case IR_MOD:
        if (a.lo >= 0 && b.lo == b.hi && b.lo > 0 && b.sym == 0)
            r = (struct range){0, b.lo - 1, 0};
        break;
    case IR_MIN:
        r = range_min(a, b);
        break;
    case IR_MAX:
        r = range_either(a, b, true);
        break;
    default:
        break;
    }
    return wraps(r) ? anything : r;
}

static struct range range_of(const struct check *c, const struct ir_op *op)
{
    const struct range *r = c->range;
    switch (op->code) {
    case IR_CONST:
        return (struct range){op->imm, op->imm, 0};
    case IR_INDEX:
        return below(c->shape->dim[op->imm]);
    case IR_RINDEX: {
        const struct ir_op *reduce = &c->b->ops[op->arg[0]];
        if (reduce->arg[4] == IR_NONE)
            return below(reduce->imm);
        struct range n = r[reduce->arg[4]];
        return (struct range){0, n.hi - 1, n.sym};
    }
    case IR_DIM:
        return (struct range){0, 0, op->imm};
    case IR_CLAMP:
        return below(op->imm);
    case IR_SELECT:
        return range_either(r[op->arg[1]], r[op->arg[2]], false);
    case IR_LOAD:
        if (c->scope->operand[op->imm].elem == IR_ELEM_I8)
            return (struct range){-128, 127, 0};
        return anything;
    default:
        return ir_code_args(op->code) == 2 && op->arg[1] != IR_NONE
                   ? range_two(op->code, r[op->arg[0]], r[op->arg[1]])
                   : anything;
    }
}

static void in_range(struct check *c, uint32_t value, int32_t size, const char *what)
{
    struct range r = c->range[value];
    bool below_size = size >= 0 ? r.sym == 0 && r.hi < size : r.sym == size && r.hi < 0;
    if (r.lo < 0 || !below_size)
        bad(c, what);
}

/* ---- types ----------------------------------------------------------------------------------- */

static enum ir_type type_of(const struct check *c, uint32_t id)
{
    return (enum ir_type)c->b->ops[id].type;
}

static bool all_of(const struct check *c, const struct ir_op *op, enum ir_type type)
{
    for (uint32_t i = 0; i < ir_code_args(op->code); i++) {
        if (type_of(c, op->arg[i]) != type)
            return false;
    }
    return true;
}

static void check_arithmetic(struct check *c, const struct ir_op *op)
{
    enum ir_type a = type_of(c, op->arg[0]);
    bool number = a == IR_TYPE_F32 || a == IR_TYPE_I32, ok = false;
    switch (op->code) {
    case IR_ADD:
    case IR_SUB:
    case IR_MUL:
    case IR_DIV:
    case IR_MAX:
    case IR_MIN:
    case IR_NEG:
    case IR_ABS:
        ok = number && all_of(c, op, a) && op->type == a;
        break;
    case IR_MOD:
    case IR_CLAMP:
        ok = all_of(c, op, IR_TYPE_I32) && op->type == IR_TYPE_I32;
        break;
    case IR_FMA:
    case IR_SQRT:
    case IR_EXP:
    case IR_TANH:
    case IR_LOG:
    case IR_RINT:
        ok = all_of(c, op, IR_TYPE_F32) && op->type == IR_TYPE_F32;
        break;
    case IR_TO_F32:
        ok = a == IR_TYPE_I32 && op->type == IR_TYPE_F32;
        break;
    case IR_TO_I32:
        ok = a == IR_TYPE_F32 && op->type == IR_TYPE_I32;
        break;
    case IR_LT:
    case IR_LE:
    case IR_EQ:
        ok = number && all_of(c, op, a) && op->type == IR_TYPE_BOOL;
        break;
    case IR_AND:
    case IR_OR:
    case IR_NOT:
        ok = all_of(c, op, IR_TYPE_BOOL) && op->type == IR_TYPE_BOOL;
        break;
    case IR_SELECT:
        ok = a == IR_TYPE_BOOL && type_of(c, op->arg[1]) == type_of(c, op->arg[2]) &&
             op->type == type_of(c, op->arg[1]) && op->type != IR_TYPE_NONE;
        break;
    default:
        break;
    }
    if (!ok)
        bad(c, "arguments of the wrong type");
    if (op->code == IR_CLAMP && (op->imm == 0 || op->imm < IR_DIM_LOWEST))
        bad(c, "clamp to no size");
}

static void check_load(struct check *c, const struct ir_op *op)
{
    static const char *const outside = "an index may lie outside of the operand";
    if (op->imm < 0 || (uint32_t)op->imm >= c->scope->operands ||
        c->scope->operand[op->imm].elem == IR_ELEM_VOID) {
        bad(c, "loads an operand that does not exist");
        return;
    }
    const struct ir_shape *s = &c->scope->operand[op->imm];
    uint32_t indices = op->arg[1] == IR_NONE ? 1 : op->arg[2] == IR_NONE ? 2 : 3;
    if (op->type != (uint32_t)ir_elem_type(s->elem))
        bad(c, "load of the wrong type");
    for (uint32_t i = 0; i < indices; i++) {
        if (type_of(c, op->arg[i]) != IR_TYPE_I32)
            bad(c, "an index is no i32");
    }
    int32_t cols = s->rank == 3 ? (int32_t)ir_shape_width(s) : s->dim[1];
    if ((s->rank == 1) != (indices == 1) || (indices == 3 && s->rank != 3) ||
        (indices == 2 && cols == 0)) {
        bad(c, "number of indices does not fit the operand");
        return;
    }
    in_range(c, op->arg[0], s->dim[0], outside);
    if (indices == 2)
        in_range(c, op->arg[1], cols, outside);
    for (uint32_t i = 1; indices == 3 && i < 3; i++)
        in_range(c, op->arg[i], s->dim[i], outside);
}

/* Rows and columns of a slot, or of a delta's A and B; 0 = symbolic rank. */
static bool slot_size(const struct check *c, int32_t slot, int32_t *rows, int32_t *cols)
{
    if (slot == IR_SLOT_A || slot == IR_SLOT_B) {
        /* The delta's own slot bounds the other dimension; its definition is made from it. */
        *rows = slot == IR_SLOT_A ? IR_DIM_RANK : (int32_t)ir_shape_width(c->shape);
        *cols = slot == IR_SLOT_B ? IR_DIM_RANK : INT32_MAX;
        return true;
    }
    const struct rdu_slot_info *s = ir_slot(c->scope->graph, c->scope->section, (uint32_t)slot);
    if (slot < 0 || s == NULL)
        return false;
    *rows = (int32_t)s->rows;
    *cols = (int32_t)s->cols;
    return true;
}

static void check_weight(struct check *c, const struct ir_op *op)
{
    int32_t rows, cols;
    if (!slot_size(c, op->imm, &rows, &cols)) {
        bad(c, "uses a weight slot that does not exist");
        return;
    }
    if (!all_of(c, op, IR_TYPE_I32) ||
        op->type != (uint32_t)(op->code == IR_WEIGHT_Q ? IR_TYPE_I32 : IR_TYPE_F32)) {
        bad(c, "arguments of the wrong type");
        return;
    }
    if (op->code == IR_VECTOR) {
        if (rows != 1)
            bad(c, "a vector slot must have one row");
        in_range(c, op->arg[0], cols, "a column may lie outside of the slot");
        return;
    }
    int32_t per = op->code == IR_WEIGHT_D ? IR_RUN : op->code == IR_WEIGHT_M ? IR_RUN / 2 : 1;
    in_range(c, op->arg[0], rows, "a row may lie outside of the slot");
    in_range(c, op->arg[1], cols < 0 ? cols : cols / per, "a column may lie outside of the slot");
}

static void check_kv(struct check *c, const struct ir_op *op)
{
    bool put = op->code == IR_KV_PUT_K || op->code == IR_KV_PUT_V;
    enum ir_type last = put ? IR_TYPE_F32 : IR_TYPE_BOOL;
    for (uint32_t i = 0; i < 4; i++) {
        if (type_of(c, op->arg[i]) != IR_TYPE_I32)
            bad(c, "an index is no i32");
    }
    if (type_of(c, op->arg[4]) != last || op->type != (uint32_t)(put ? IR_TYPE_NONE : IR_TYPE_F32))
        bad(c, "arguments of the wrong type");
    if (c->scope->kv_heads == 0)
        bad(c, "touches KV pages outside of attention");
    if (!(c->scope->effect & (put ? IR_WRITES_KV : IR_READS_KV)))
        bad(c, "an effect its node does not declare");
    in_range(c, op->arg[0], RDU_DIM_TOKENS, "a token may not exist");
    in_range(c, op->arg[1], (int32_t)c->scope->kv_heads, "a kv head may not exist");
    in_range(c, op->arg[3], (int32_t)c->scope->head_dim, "a dimension may lie outside of the head");
    if (put && op->parent != IR_NONE)
        bad(c, "a store inside a reduce");
}

/* ---- structure ------------------------------------------------------------------------------- */

/* May an op inside `parent` use value `id`? Only what was computed before, outside or in the same
 * region. */
static bool sees(const struct ir_body *b, uint32_t id, uint32_t parent)
{
    for (uint32_t p = parent;; p = b->ops[p].parent) {
        if (b->ops[id].parent == p)
            return true;
        if (p == IR_NONE)
            return false;
    }
}

static void check_reduce(struct check *c, const struct ir_op *op)
{
    uint32_t id = c->at;
    if (op->carried < 1 || op->carried > IR_CARRIED || op->reduce > IR_REDUCE_MAX) {
        bad(c, "malformed reduce");
        return;
    }
    bool by_value = op->arg[4] != IR_NONE;
    if (by_value ? op->imm != 0 || type_of(c, op->arg[4]) != IR_TYPE_I32
                 : op->imm == 0 || op->imm < IR_DIM_LOWEST)
        bad(c, "a reduce needs one count: a size or an i32 value");
    if (by_value && c->varies[op->arg[4]])
        bad(c, "the count of a reduce must be the same for all elements of a row");
    if (op->reduce != IR_REDUCE_SEQ && op->carried != 1)
        bad(c, "only a seq reduce carries several values");
    for (uint32_t k = 0; k < op->carried; k++) {
        uint32_t y = op->yield[k];
        if (op->arg[k] == IR_NONE || y >= op->end || !sees(c->b, y, id)) {
            bad(c, "yields what it cannot see");
            return;
        }
        if (type_of(c, op->arg[k]) != type_of(c, y) || type_of(c, y) == IR_TYPE_NONE)
            bad(c, "yields another type than it carries");
        if (op->reduce == IR_REDUCE_SUM16) {
            const struct ir_op *init = &c->b->ops[op->arg[k]];
            if (init->code != IR_CONST || init->type != IR_TYPE_F32 || init->imm != 0)
                bad(c, "a sum16 starts at 0.0");
        }
    }
}

static void check_reference(struct check *c, const struct ir_op *op)
{
    const struct ir_op *r = &c->b->ops[op->arg[0]];
    bool inside = op->code != IR_RESULT;
    if (r->code != IR_REDUCE ||
        (op->code != IR_RINDEX && (op->imm < 0 || (uint32_t)op->imm >= r->carried))) {
        bad(c, "refers to no value of a reduce");
        return;
    }
    if (inside ? c->at >= r->end : c->at < r->end)
        bad(c, inside ? "used outside of its reduce" : "a result used before its reduce ends");
    bool typed = op->code == IR_RINDEX ? op->type == IR_TYPE_I32
                                       : op->type == (uint32_t)type_of(c, r->arg[op->imm]);
    if (!typed)
        bad(c, "of another type than the reduce carries");
}

static void check_leaf(struct check *c, const struct ir_op *op)
{
    bool layer = c->scope->section == RDU_SECTION_LAYER;
    if (op->code == IR_CONST && (op->type == IR_TYPE_NONE || op->type > IR_TYPE_BOOL))
        bad(c, "a constant without type");
    if (op->code == IR_INDEX && (op->imm < 0 || (uint32_t)op->imm >= c->shape->rank))
        bad(c, "an index of no dimension of the domain");
    if (op->code == IR_DIM && (op->imm >= 0 || op->imm < IR_DIM_LOWEST))
        bad(c, "an unknown size");
    if ((op->code == IR_WINDOW || op->code == IR_DELTA_SCALE) && !layer)
        bad(c, "an argument of the layer section");
    if (op->code == IR_DELTA_SCALE ? op->type != IR_TYPE_F32
                                   : op->code != IR_CONST && op->type != IR_TYPE_I32)
        bad(c, "of the wrong type");
}

/* Reduces are nested ranges of ops, and every op names the innermost one it is in. */
static bool check_nesting(struct check *c, const struct ir_op *op)
{
    while (c->depth > 0 && c->at >= c->b->ops[c->open[c->depth - 1]].end)
        c->depth--;
    uint32_t inside = c->depth > 0 ? c->open[c->depth - 1] : IR_NONE;
    if (op->parent != inside) {
        bad(c, "is not inside the reduce it names");
        return false;
    }
    if (op->code != IR_REDUCE)
        return true;
    uint32_t last = inside == IR_NONE ? c->b->count : c->b->ops[inside].end;
    if (op->end <= c->at || op->end > last || c->depth == IR_REDUCE_DEPTH) {
        bad(c, "malformed reduce");
        return false;
    }
    c->open[c->depth++] = c->at;
    return true;
}

/* How many arguments an op must have: its first so many, and no others. */
static bool args_fit(const struct ir_op *op)
{
    uint32_t want = ir_code_args(op->code), given = 0;
    if (op->code == IR_REDUCE) {
        for (uint32_t i = 0; i < 4; i++) {
            if ((op->arg[i] != IR_NONE) != (i < op->carried))
                return false;
        }
        return true;
    }
    while (given < 5 && op->arg[given] != IR_NONE)
        given++;
    for (uint32_t i = given; i < 5; i++) {
        if (op->arg[i] != IR_NONE)
            return false;
    }
    return op->code == IR_LOAD ? given >= 1 && given <= 3 : given == want;
}

static bool check_args(struct check *c, const struct ir_op *op)
{
    uint32_t arg[5], count = ir_op_args(op, arg);
    if (op->code >= IR_CODES) {
        bad(c, "an unknown operation");
        return false;
    }
    if (!args_fit(op)) {
        bad(c, "wrong number of arguments");
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        bool region = op->code == IR_RINDEX || op->code == IR_CARRIED_VALUE;
        if (arg[i] >= c->at || !(sees(c->b, arg[i], op->parent) || region)) {
            bad(c, "uses a value that is not computed before it");
            return false;
        }
    }
    return true;
}

/* Conservative: what a reduce carries may become anything. */
static bool may_vary(const struct check *c, const struct ir_op *op)
{
    uint32_t arg[5], count = ir_op_args(op, arg);
    if (op->code == IR_RINDEX)
        return false;
    if (op->code == IR_CARRIED_VALUE || op->code == IR_RESULT || op->code == IR_REDUCE)
        return true;
    if (op->code == IR_INDEX)
        return (uint32_t)op->imm + 1 == c->shape->rank;
    for (uint32_t i = 0; i < count; i++) {
        if (c->varies[arg[i]])
            return true;
    }
    return false;
}

static void check_op(struct check *c, const struct ir_op *op)
{
    if (!check_nesting(c, op) || !check_args(c, op))
        return;
    switch (op->code) {
    case IR_CONST:
    case IR_INDEX:
    case IR_DIM:
    case IR_WINDOW:
    case IR_DELTA_SCALE:
        check_leaf(c, op);
        break;
    case IR_RINDEX:
    case IR_CARRIED_VALUE:
    case IR_RESULT:
        check_reference(c, op);
        break;
    case IR_REDUCE:
        check_reduce(c, op);
        break;
    case IR_LOAD:
        check_load(c, op);
        break;
    case IR_WEIGHT_F32:
    case IR_WEIGHT_Q:
    case IR_WEIGHT_D:
    case IR_WEIGHT_M:
    case IR_VECTOR:
        check_weight(c, op);
        break;
    case IR_KV_K:
    case IR_KV_V:
    case IR_KV_PUT_K:
    case IR_KV_PUT_V:
        check_kv(c, op);
        break;
    default:
        check_arithmetic(c, op);
    }
    if (c->rc != ERR_OK)
        return;
    c->varies[c->at] = may_vary(c, op);
    if (op->type == IR_TYPE_I32)
        c->range[c->at] = range_of(c, op);
}

static void check_result(struct check *c)
{
    const struct ir_body *b = c->b;
    c->at = b->count;
    if (c->shape->elem == IR_ELEM_VOID) {
        if (b->result != IR_NONE)
            bad(c, "a foreach loop has no value");
        return;
    }
    if (b->result >= b->count || b->ops[b->result].parent != IR_NONE)
        bad(c, "the body has no value");
    else if (b->ops[b->result].type != (uint32_t)ir_elem_type(c->shape->elem))
        bad(c, "the value is of another type than the loop");
}

static void check_shape(struct check *c)
{
    const struct ir_shape *s = c->shape;
    c->at = c->b->count;
    if (s->rank < 1 || s->rank > IR_DIMS || s->elem > IR_ELEM_I8)
        bad(c, "a domain of 1 to 3 sizes is needed");
    for (uint32_t i = 0; i < IR_DIMS && c->rc == ERR_OK; i++) {
        if (s->dim[i] == 0 || s->dim[i] < IR_DIM_LOWEST || (i >= s->rank && s->dim[i] != 1))
            bad(c, "an empty or unknown size in the domain");
    }
}

enum err_code ir_verify_body(const struct ir_body *b, const struct ir_shape *shape,
                             const struct ir_body_scope *scope, struct err *e)
{
    struct check c = {.b = b, .shape = shape, .scope = scope, .e = e};
    if (b->failed || b->depth != 0)
        return err_set(e, ERR_INVALID, "graph %s: %s: too many operations or an open reduce",
                       scope->graph->name, scope->what);
    c.range = mem_array(BASE_MAX(b->count, 1u), sizeof(*c.range));
    c.varies = mem_array(BASE_MAX(b->count, 1u), sizeof(*c.varies));
    check_shape(&c);
    for (uint32_t i = 0; i < b->count && c.rc == ERR_OK; i++) {
        c.at = i;
        c.range[i] = anything;
        check_op(&c, &b->ops[i]);
    }
    if (c.rc == ERR_OK)
        check_result(&c);
    free(c.range);
    free(c.varies);
    return c.rc;
}
