/* Every operator as the body of a Loop: the one place that says, in the IR, what rdu/README.md says
 * in words. A body is a function of the hint and the domain alone, so that a pass can make it again
 * and compare: that is how a leaf is proven to stand for a Loop. */
#include <string.h>

#include "rdu/ir/ir.h"
#include "rdu/kernels/math.h"

const char *ir_oper_name(uint32_t oper)
{
    static const char *const name[IR_OPERS] = {
        "loop", "embed",     "norm",   "quantize_d", "quantize_q", "quantize_s",
        "add",  "add_bias",  "scale",  "softcap",    "silu_mul",   "gelu_mul",
        "rope", "take_outs", "center", "gelu",       "mean_pool"};
    return oper < IR_OPERS ? name[oper] : "?";
}

/* Column of the flattened row: the index itself, or i1 * dim[2] + i2. */
static uint32_t flat_column(struct ir_body *b, const struct ir_shape *s)
{
    if (s->rank < 3)
        return ir_index(b, 1);
    uint32_t base = ir_op2(b, IR_MUL, ir_index(b, 1), ir_i32(b, s->dim[2]));
    return ir_op2(b, IR_ADD, base, ir_index(b, 2));
}

static uint32_t load_here(struct ir_body *b, const struct ir_shape *s, uint32_t operand)
{
    return ir_load2(b, operand, IR_TYPE_F32, ir_index(b, 0), flat_column(b, s));
}

static uint32_t embed(struct ir_body *b, const struct ir_hint *h)
{
    uint32_t token = ir_load1(b, 0, IR_TYPE_I32, ir_index(b, 0));
    uint32_t row = ir_clamp(b, token, (int32_t)h->slot_rows);
    return ir_weight(b, IR_WEIGHT_F32, (int32_t)h->slot, row, ir_index(b, 1));
}

static uint32_t vector(struct ir_body *b, uint32_t slot, uint32_t col)
{
    return ir_emit(b, IR_VECTOR, IR_TYPE_F32, (int32_t)slot, &col, 1);
}

/* Rule 3. Rank 2: one group; rank 3: [rows, groups, width of a group]. */
static uint32_t norm(struct ir_body *b, const struct ir_hint *h, const struct ir_shape *s)
{
    bool grouped = s->rank == 3;
    int32_t n = s->dim[grouped ? 2 : 1];
    uint32_t init = ir_f32(b, 0.0f);
    uint32_t r = ir_reduce_over(b, IR_REDUCE_SUM16, n, init);
    uint32_t col = ir_reduce_index(b, r);
    if (grouped)
        col = ir_op2(b, IR_ADD, ir_op2(b, IR_MUL, ir_index(b, 1), ir_i32(b, n)), col);
    uint32_t x = ir_load2(b, 0, IR_TYPE_F32, ir_index(b, 0), col);
    uint32_t acc = ir_fma(b, x, x, ir_reduce_carried(b, r, 0));
    ir_reduce_end(b, r, &acc);
    uint32_t mean = ir_op2(b, IR_DIV, ir_reduce_result(b, r, 0), ir_f32(b, (float)n));
    uint32_t root = ir_op1(b, IR_SQRT, ir_op2(b, IR_ADD, mean, ir_f32(b, h->f)));
    uint32_t inverse = ir_op2(b, IR_DIV, ir_f32(b, 1.0f), root);
    uint32_t scaled = ir_op2(b, IR_MUL, load_here(b, s, 0), inverse);
    return ir_op2(b, IR_MUL, scaled, vector(b, h->slot, ir_index(b, grouped ? 2 : 1)));
}

/* Rule 4, scale of a block: amax / 127, or 0 when the whole block is (nearly) 0. */
static uint32_t quant_d(struct ir_body *b)
{
    uint32_t init = ir_f32(b, 0.0f);
    uint32_t r = ir_reduce_over(b, IR_REDUCE_MAX, IR_RUN, init);
    uint32_t base = ir_op2(b, IR_MUL, ir_index(b, 1), ir_i32(b, IR_RUN));
    uint32_t col = ir_op2(b, IR_ADD, base, ir_reduce_index(b, r));
    uint32_t v = ir_op1(b, IR_ABS, ir_load2(b, 0, IR_TYPE_F32, ir_index(b, 0), col));
    ir_reduce_end(b, r, &v);
    uint32_t amax = ir_reduce_result(b, r, 0);
    uint32_t d = ir_op2(b, IR_DIV, amax, ir_f32(b, 127.0f));
    uint32_t tiny = ir_op2(b, IR_LT, amax, ir_f32(b, 0x1p-119f));
    return ir_select(b, tiny, ir_f32(b, 0.0f), d);
}

static uint32_t quant_q(struct ir_body *b, const struct ir_shape *s)
{
    uint32_t d = ir_load2(b, 1, IR_TYPE_F32, ir_index(b, 0), ir_index(b, 1));
    uint32_t inverse = ir_op2(b, IR_DIV, ir_f32(b, 1.0f), d);
    uint32_t v = ir_op1(b, IR_RINT, ir_op2(b, IR_MUL, load_here(b, s, 0), inverse));
    uint32_t number =
        ir_op2(b, IR_EQ, v, v); /* not a number gives 0, as does a block without scale */
    uint32_t kept = ir_op2(b, IR_AND, number, ir_op2(b, IR_LT, ir_f32(b, 0.0f), d));
    v = ir_op2(b, IR_MAX, ir_op2(b, IR_MIN, v, ir_f32(b, 127.0f)), ir_f32(b, -127.0f));
    return ir_op1(b, IR_TO_I32, ir_select(b, kept, v, ir_f32(b, 0.0f)));
}

static uint32_t quant_s(struct ir_body *b)
{
    uint32_t init = ir_i32(b, 0);
    uint32_t r = ir_reduce_over(b, IR_REDUCE_SEQ, IR_RUN, init);
    uint32_t q = ir_load3(b, 0, IR_TYPE_I32, ir_index(b, 0), ir_index(b, 1), ir_reduce_index(b, r));
    uint32_t sum = ir_op2(b, IR_ADD, ir_reduce_carried(b, r, 0), q);
    ir_reduce_end(b, r, &sum);
    uint32_t d = ir_load2(b, 1, IR_TYPE_F32, ir_index(b, 0), ir_index(b, 1));
    return ir_op2(b, IR_MUL, d, ir_op1(b, IR_TO_F32, ir_reduce_result(b, r, 0)));
}

static uint32_t silu_mul(struct ir_body *b, const struct ir_shape *s)
{
    uint32_t gate = load_here(b, s, 0);
    uint32_t e = ir_op1(b, IR_EXP, ir_op1(b, IR_NEG, gate));
    uint32_t silu = ir_op2(b, IR_DIV, gate, ir_op2(b, IR_ADD, ir_f32(b, 1.0f), e));
    return ir_op2(b, IR_MUL, silu, load_here(b, s, 1));
}

static uint32_t gelu_mul(struct ir_body *b, const struct ir_shape *s)
{
    uint32_t g = load_here(b, s, 0);
    uint32_t cube = ir_op2(b, IR_MUL, ir_f32(b, 0.044715f), g);
    cube = ir_op2(b, IR_MUL, ir_op2(b, IR_MUL, cube, g), g);
    uint32_t inner = ir_op2(b, IR_MUL, ir_f32(b, 0.7978845608f), ir_op2(b, IR_ADD, g, cube));
    uint32_t one = ir_op2(b, IR_ADD, ir_f32(b, 1.0f), ir_op1(b, IR_TANH, inner));
    uint32_t half = ir_op2(b, IR_MUL, ir_f32(b, 0.5f), g);
    return ir_op2(b, IR_MUL, ir_op2(b, IR_MUL, half, one), load_here(b, s, 1));
}

/* Rule 8 over [tokens, heads, head_dim]; dimensions from `rot` on pass through. Operands: x, cos,
 * sin, positions. a is the first of a pair, b the second. */
static uint32_t rope(struct ir_body *b, const struct ir_hint *h, const struct ir_shape *s)
{
    uint32_t d = ir_index(b, 2), token = ir_index(b, 0);
    uint32_t half = ir_i32(b, (int32_t)(h->rot / 2)), two = ir_i32(b, 2), one = ir_i32(b, 1);
    uint32_t pair, is_a, a_at, b_at;
    if (h->style == RDU_ROPE_PAIRS) {
        uint32_t i = ir_op2(b, IR_DIV, d, two);
        pair = ir_clamp(b, i, (int32_t)(h->rot / 2));
        is_a = ir_op2(b, IR_EQ, ir_op2(b, IR_MOD, d, two), ir_i32(b, 0));
        a_at = ir_op2(b, IR_MUL, i, two);
        b_at = ir_op2(b, IR_ADD, a_at, one);
    } else {
        pair = ir_op2(b, IR_MOD, d, half);
        is_a = ir_op2(b, IR_LT, d, half);
        a_at = pair;
        b_at = ir_op2(b, IR_ADD, pair, half);
    }
    uint32_t base = ir_op2(b, IR_MUL, ir_index(b, 1), ir_i32(b, (int32_t)h->head_dim));
    uint32_t a = ir_load2(b, 0, IR_TYPE_F32, token, ir_op2(b, IR_ADD, base, a_at));
    uint32_t c = ir_load2(b, 0, IR_TYPE_F32, token, ir_op2(b, IR_ADD, base, b_at));
    uint32_t pos = ir_clamp(b, ir_load1(b, 3, IR_TYPE_I32, token), (int32_t)h->table_rows);
    uint32_t cosine = ir_load2(b, 1, IR_TYPE_F32, pos, pair);
    uint32_t sine = ir_load2(b, 2, IR_TYPE_F32, pos, pair);
    uint32_t new_a = ir_fma(b, a, cosine, ir_op1(b, IR_NEG, ir_op2(b, IR_MUL, c, sine)));
    uint32_t new_b = ir_fma(b, a, sine, ir_op2(b, IR_MUL, c, cosine));
    uint32_t turned = ir_select(b, is_a, new_a, new_b);
    if (h->rot == h->head_dim)
        return turned;
    uint32_t turns = ir_op2(b, IR_LT, d, ir_i32(b, (int32_t)h->rot));
    return ir_select(b, turns, turned, load_here(b, s, 0));
}

static uint32_t take_outs(struct ir_body *b)
{
    uint32_t out = ir_load1(b, 1, IR_TYPE_I32, ir_index(b, 0));
    uint32_t row = ir_clamp(b, out, RDU_DIM_TOKENS);
    return ir_load2(b, 0, IR_TYPE_F32, row, ir_index(b, 1));
}

static uint32_t softcap(struct ir_body *b, const struct ir_hint *h, const struct ir_shape *s)
{
    uint32_t cap = ir_f32(b, h->f);
    uint32_t t = ir_op1(b, IR_TANH, ir_op2(b, IR_DIV, load_here(b, s, 0), cap));
    return ir_op2(b, IR_MUL, cap, t);
}

/* The mean is a sum of rule 1. */
static uint32_t center(struct ir_body *b, const struct ir_shape *s)
{
    uint32_t init = ir_f32(b, 0.0f);
    uint32_t r = ir_reduce_over(b, IR_REDUCE_SUM16, s->dim[1], init);
    uint32_t x = ir_load2(b, 0, IR_TYPE_F32, ir_index(b, 0), ir_reduce_index(b, r));
    uint32_t acc = ir_op2(b, IR_ADD, ir_reduce_carried(b, r, 0), x);
    ir_reduce_end(b, r, &acc);
    uint32_t mean = ir_op2(b, IR_DIV, ir_reduce_result(b, r, 0), ir_f32(b, (float)s->dim[1]));
    return ir_op2(b, IR_SUB, load_here(b, s, 0), mean);
}

/* Rule 12: erf by Abramowitz and Stegun, 7.1.26 (error below 1.5e-7). */
static uint32_t gelu(struct ir_body *b, const struct ir_shape *s)
{
    static const float coefficient[4] = {RDU_ERF_A4, RDU_ERF_A3, RDU_ERF_A2, RDU_ERF_A1};
    uint32_t x = load_here(b, s, 0), one = ir_f32(b, 1.0f);
    uint32_t z = ir_op2(b, IR_MUL, ir_op1(b, IR_ABS, x), ir_f32(b, RDU_ERF_HALF_ROOT));
    uint32_t t = ir_op2(b, IR_DIV, one, ir_fma(b, ir_f32(b, RDU_ERF_P), z, one));
    uint32_t p = ir_f32(b, RDU_ERF_A5);
    for (size_t i = 0; i < BASE_COUNT(coefficient); i++)
        p = ir_fma(b, p, t, ir_f32(b, coefficient[i]));
    p = ir_op2(b, IR_MUL, p, t);
    uint32_t e = ir_op1(b, IR_EXP, ir_op1(b, IR_NEG, ir_op2(b, IR_MUL, z, z)));
    uint32_t erf = ir_op2(b, IR_SUB, one, ir_op2(b, IR_MUL, p, e));
    erf = ir_select(b, ir_op2(b, IR_LT, x, ir_f32(b, 0.0f)), ir_op1(b, IR_NEG, erf), erf);
    uint32_t half = ir_op2(b, IR_MUL, ir_f32(b, 0.5f), x);
    return ir_op2(b, IR_MUL, half, ir_op2(b, IR_ADD, one, erf));
}

/* Operands: x, outs, positions. Rows in rising order, then times 1 / count. */
static uint32_t mean_pool(struct ir_body *b)
{
    uint32_t out = ir_clamp(b, ir_load1(b, 1, IR_TYPE_I32, ir_index(b, 0)), RDU_DIM_TOKENS);
    uint32_t last = ir_load1(b, 2, IR_TYPE_I32, out);
    uint32_t count = ir_op2(b, IR_ADD, last, ir_i32(b, 1));
    struct ir_reduce_spec spec = {.kind = IR_REDUCE_SEQ,
                                  .count = 0,
                                  .count_value = count,
                                  .init = {ir_f32(b, 0.0f)},
                                  .carried = 1};
    uint32_t r = ir_reduce_begin(b, &spec);
    uint32_t at = ir_op2(b, IR_ADD, ir_op2(b, IR_SUB, out, last), ir_reduce_index(b, r));
    uint32_t x = ir_load2(b, 0, IR_TYPE_F32, ir_clamp(b, at, RDU_DIM_TOKENS), ir_index(b, 1));
    uint32_t acc = ir_op2(b, IR_ADD, ir_reduce_carried(b, r, 0), x);
    ir_reduce_end(b, r, &acc);
    uint32_t share = ir_op2(b, IR_DIV, ir_f32(b, 1.0f), ir_op1(b, IR_TO_F32, count));
    return ir_op2(b, IR_MUL, ir_reduce_result(b, r, 0), share);
}

bool ir_oper_body(const struct ir_hint *hint, const struct ir_shape *shape, struct ir_body *b)
{
    switch ((enum ir_oper)hint->oper) {
    case IR_OPER_EMBED:
        b->result = embed(b, hint);
        return true;
    case IR_OPER_NORM:
        b->result = norm(b, hint, shape);
        return true;
    case IR_OPER_QUANT_D:
        b->result = quant_d(b);
        return true;
    case IR_OPER_QUANT_Q:
        b->result = quant_q(b, shape);
        return true;
    case IR_OPER_QUANT_S:
        b->result = quant_s(b);
        return true;
    case IR_OPER_ADD:
        b->result = ir_op2(b, IR_ADD, load_here(b, shape, 0), load_here(b, shape, 1));
        return true;
    case IR_OPER_ADD_BIAS:
        b->result =
            ir_op2(b, IR_ADD, load_here(b, shape, 0), vector(b, hint->slot, flat_column(b, shape)));
        return true;
    case IR_OPER_SCALE:
        b->result = ir_op2(b, IR_MUL, load_here(b, shape, 0), ir_f32(b, hint->f));
        return true;
    case IR_OPER_SOFTCAP:
        b->result = softcap(b, hint, shape);
        return true;
    case IR_OPER_SILU_MUL:
        b->result = silu_mul(b, shape);
        return true;
    case IR_OPER_GELU_MUL:
        b->result = gelu_mul(b, shape);
        return true;
    case IR_OPER_ROPE:
        b->result = rope(b, hint, shape);
        return true;
    case IR_OPER_TAKE_OUTS:
        b->result = take_outs(b);
        return true;
    case IR_OPER_CENTER:
        b->result = center(b, shape);
        return true;
    case IR_OPER_GELU:
        b->result = gelu(b, shape);
        return true;
    case IR_OPER_MEAN_POOL:
        b->result = mean_pool(b);
        return true;
    case IR_OPER_NONE:
    case IR_OPERS:
        break;
    }
    return false;
}
