/* What an External means, in Loops: matmul (rules 5 and 6), adapter delta (7), KV append and
 * attention (9), copy. The interpreter runs these; the leaves must give the same bits. */
#include <math.h>
#include <string.h>

#include "rdu/ir/ir.h"

uint32_t ir_define_variants(const struct rdu_graph *g, const struct ir_node *n)
{
    return n->key.kind == IR_EXTERNAL && n->key.which == IR_EXT_MATMUL && n->key.operands > 1
               ? IR_MATMULS
               : 1;
}

void ir_define_done(struct ir_define *d)
{
    for (uint32_t i = 0; i < d->count; i++)
        ir_body_done(&d->loop[i].body);
    d->count = 0;
}

static struct ir_body *add_loop(struct ir_define *d, struct ir_shape shape)
{
    struct ir_loop *l = &d->loop[d->count++];
    l->shape = shape;
    ir_body_init(&l->body);
    return &l->body;
}

static uint32_t seq(struct ir_body *b, int32_t count, uint32_t init)
{
    return ir_reduce_over(b, IR_REDUCE_SEQ, count, init);
}

static uint32_t seq_value(struct ir_body *b, uint32_t count, uint32_t init)
{
    struct ir_reduce_spec spec = {
        .kind = IR_REDUCE_SEQ, .count = 0, .count_value = count, .init = {init}, .carried = 1};
    return ir_reduce_begin(b, &spec);
}

/* One run of rule 5: p over columns [base, base + count). x is row index(0) of operand `x`. */
static uint32_t run_f32(struct ir_body *b, int32_t slot, uint32_t x, uint32_t base, int32_t count)
{
    uint32_t r = seq(b, count, ir_f32(b, 0.0f));
    uint32_t col = ir_op2(b, IR_ADD, base, ir_reduce_index(b, r));
    uint32_t w = ir_weight(b, IR_WEIGHT_F32, slot, ir_index(b, 1), col);
    uint32_t p =
        ir_fma(b, w, ir_load2(b, x, IR_TYPE_F32, ir_index(b, 0), col), ir_reduce_carried(b, r, 0));
    ir_reduce_end(b, r, &p);
    return ir_reduce_result(b, r, 0);
}

/* Rule 5 for constant cols: the whole runs, then what is left. */
static uint32_t dot_f32(struct ir_body *b, int32_t slot, uint32_t x, uint32_t cols)
{
    uint32_t acc = ir_f32(b, 0.0f);
    if (cols / IR_RUN > 0) {
        uint32_t r = seq(b, (int32_t)(cols / IR_RUN), acc);
        uint32_t base = ir_op2(b, IR_MUL, ir_reduce_index(b, r), ir_i32(b, IR_RUN));
        acc = ir_op2(b, IR_ADD, ir_reduce_carried(b, r, 0), run_f32(b, slot, x, base, IR_RUN));
        ir_reduce_end(b, r, &acc);
        acc = ir_reduce_result(b, r, 0);
    }
    if (cols % IR_RUN == 0)
        return acc;
    uint32_t base = ir_i32(b, (int32_t)(cols - cols % IR_RUN));
    return ir_op2(b, IR_ADD, acc, run_f32(b, slot, x, base, (int32_t)(cols % IR_RUN)));
}

/* Rule 5 over `rank` columns, known only when the delta is. */
static uint32_t dot_rank(struct ir_body *b, int32_t slot, uint32_t x)
{
    uint32_t rank = ir_dim(b, IR_DIM_RANK), width = ir_i32(b, IR_RUN);
    uint32_t runs = ir_op2(b, IR_DIV, ir_op2(b, IR_ADD, rank, ir_i32(b, IR_RUN - 1)), width);
    uint32_t outer = seq_value(b, runs, ir_f32(b, 0.0f));
    uint32_t base = ir_op2(b, IR_MUL, ir_reduce_index(b, outer), width);
    uint32_t left = ir_op2(b, IR_MIN, ir_op2(b, IR_SUB, rank, base), width);
    uint32_t inner = seq_value(b, left, ir_f32(b, 0.0f));
    uint32_t col = ir_clamp(b, ir_op2(b, IR_ADD, base, ir_reduce_index(b, inner)), IR_DIM_RANK);
    uint32_t w = ir_weight(b, IR_WEIGHT_F32, slot, ir_index(b, 1), col);
    uint32_t p = ir_fma(b, w, ir_load2(b, x, IR_TYPE_F32, ir_index(b, 0), col),
                        ir_reduce_carried(b, inner, 0));
    ir_reduce_end(b, inner, &p);
    uint32_t acc = ir_op2(b, IR_ADD, ir_reduce_carried(b, outer, 0), ir_reduce_result(b, inner, 0));
    ir_reduce_end(b, outer, &acc);
    return ir_reduce_result(b, outer, 0);
}

/* Sum of the stored activations of half a run, as rule 6 wants it for minima per 16: d *
 * (float)sum. */
static uint32_t half_sum(struct ir_body *b, uint32_t block, int32_t half, uint32_t d)
{
    uint32_t r = seq(b, IR_RUN / 2, ir_i32(b, 0));
    uint32_t at = ir_op2(b, IR_ADD, ir_reduce_index(b, r), ir_i32(b, half * IR_RUN / 2));
    uint32_t q = ir_load3(b, 1, IR_TYPE_I32, ir_index(b, 0), block, at);
    uint32_t sum = ir_op2(b, IR_ADD, ir_reduce_carried(b, r, 0), q);
    ir_reduce_end(b, r, &sum);
    return ir_op2(b, IR_MUL, d, ir_op1(b, IR_TO_F32, ir_reduce_result(b, r, 0)));
}

/* acc with the minima of a run added: one for the whole run, or one for each half. */
static uint32_t add_minima(struct ir_body *b, int32_t slot, uint32_t block, uint32_t d,
                           uint32_t acc, enum ir_matmul variant)
{
    uint32_t row = ir_index(b, 1), first = ir_op2(b, IR_MUL, block, ir_i32(b, 2));
    uint32_t wm = ir_weight(b, IR_WEIGHT_M, slot, row, first);
    if (variant == IR_MATMUL_INT8_MIN)
        return ir_fma(b, wm, ir_load2(b, 3, IR_TYPE_F32, ir_index(b, 0), block), acc);
    acc = ir_fma(b, wm, half_sum(b, block, 0, d), acc);
    wm = ir_weight(b, IR_WEIGHT_M, slot, row, ir_op2(b, IR_ADD, first, ir_i32(b, 1)));
    return ir_fma(b, wm, half_sum(b, block, 1, d), acc);
}

/* Rule 6. Operands 1..3 are q [rows, blocks, 32], d and s [rows, blocks]. */
static uint32_t dot_int8(struct ir_body *b, int32_t slot, uint32_t cols, enum ir_matmul variant)
{
    uint32_t row = ir_index(b, 1), token = ir_index(b, 0);
    uint32_t outer = seq(b, (int32_t)(cols / IR_RUN), ir_f32(b, 0.0f));
    uint32_t block = ir_reduce_index(b, outer);
    uint32_t base = ir_op2(b, IR_MUL, block, ir_i32(b, IR_RUN));
    uint32_t inner = seq(b, IR_RUN, ir_i32(b, 0));
    uint32_t at = ir_reduce_index(b, inner);
    uint32_t wq = ir_weight(b, IR_WEIGHT_Q, slot, row, ir_op2(b, IR_ADD, base, at));
    uint32_t product = ir_op2(b, IR_MUL, wq, ir_load3(b, 1, IR_TYPE_I32, token, block, at));
    uint32_t sum = ir_op2(b, IR_ADD, ir_reduce_carried(b, inner, 0), product);
    ir_reduce_end(b, inner, &sum);
    uint32_t exact = ir_op1(b, IR_TO_F32, ir_reduce_result(b, inner, 0));
    uint32_t wd = ir_weight(b, IR_WEIGHT_D, slot, row, block);
    uint32_t d = ir_load2(b, 2, IR_TYPE_F32, token, block);
    uint32_t acc = ir_fma(b, ir_op2(b, IR_MUL, wd, d), exact, ir_reduce_carried(b, outer, 0));
    if (variant != IR_MATMUL_INT8)
        acc = add_minima(b, slot, block, d, acc, variant);
    ir_reduce_end(b, outer, &acc);
    return ir_reduce_result(b, outer, 0);
}

static void define_matmul(const struct rdu_graph *g, const struct ir_node *n, uint32_t variant,
                          struct ir_define *ret)
{
    const struct rdu_slot_info *w = ir_slot(g, n->key.section, n->key.slot);
    struct ir_body *b = add_loop(ret, n->key.shape);
    if (variant == IR_MATMUL_F32)
        b->result = dot_f32(b, (int32_t)n->key.slot, 0, w->cols);
    else
        b->result = dot_int8(b, (int32_t)n->key.slot, w->cols, (enum ir_matmul)variant);
}

/* Rule 7, run for each token group and adapter in order: operand 0 is y, 1 is x; u = A x first. */
static void define_delta(const struct rdu_graph *g, const struct ir_node *n, struct ir_define *ret)
{
    const struct rdu_slot_info *w = ir_slot(g, n->key.section, n->key.slot);
    struct ir_body *b = add_loop(ret, ir_shape2(IR_ELEM_F32, n->key.shape.dim[0], IR_DIM_RANK));
    b->result = dot_f32(b, IR_SLOT_A, 1, w->cols);
    b = add_loop(ret, n->key.shape);
    uint32_t y = ir_load2(b, 0, IR_TYPE_F32, ir_index(b, 0), ir_index(b, 1));
    uint32_t v = dot_rank(b, IR_SLOT_B, IR_OPERANDS);
    uint32_t scale = ir_emit(b, IR_DELTA_SCALE, IR_TYPE_F32, 0, NULL, 0);
    b->result = ir_fma(b, scale, v, y);
}

static void define_append(const struct ir_node *n, struct ir_define *ret)
{
    struct ir_body *b = add_loop(ret, n->key.shape);
    uint32_t token = ir_index(b, 0), head = ir_index(b, 1), d = ir_index(b, 2);
    uint32_t base = ir_op2(b, IR_MUL, head, ir_i32(b, (int32_t)n->key.head_dim));
    uint32_t col = ir_op2(b, IR_ADD, base, d);
    uint32_t pos = ir_load1(b, 2, IR_TYPE_I32, token);
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t v = ir_load2(b, i, IR_TYPE_F32, token, col);
        const uint32_t arg[5] = {token, head, pos, d, v};
        ir_emit(b, i == 0 ? IR_KV_PUT_K : IR_KV_PUT_V, IR_TYPE_NONE, 0, arg, 5);
    }
}

/* Does token index(0) see absolute position `pos`? pos <= its own, and inside the layer's window.
 */
static uint32_t visible(struct ir_body *b, const struct ir_node *n, uint32_t pos)
{
    uint32_t own = ir_load1(b, 2, IR_TYPE_I32, ir_index(b, 0));
    uint32_t seen = ir_op2(b, IR_LE, pos, own);
    if (!n->key.windowed)
        return seen;
    uint32_t window = ir_emit(b, IR_WINDOW, IR_TYPE_I32, 0, NULL, 0);
    uint32_t unlimited = ir_op2(b, IR_EQ, window, ir_i32(b, 0));
    uint32_t near = ir_op2(b, IR_LT, ir_op2(b, IR_SUB, own, pos), window);
    return ir_op2(b, IR_AND, seen, ir_op2(b, IR_OR, unlimited, near));
}

static uint32_t kv_head(struct ir_body *b, const struct ir_node *n)
{
    return ir_op2(b, IR_DIV, ir_index(b, 1), ir_i32(b, (int32_t)(n->key.heads / n->key.kv_heads)));
}

/* Scores [tokens, heads, ctx]; -inf where the token does not see the position. */
static void define_scores(const struct ir_node *n, struct ir_define *ret, struct ir_shape shape)
{
    struct ir_body *b = add_loop(ret, shape);
    uint32_t token = ir_index(b, 0), pos = ir_index(b, 2);
    uint32_t seen = visible(b, n, pos), head = kv_head(b, n);
    uint32_t hd = ir_i32(b, (int32_t)n->key.head_dim);
    uint32_t base = ir_op2(b, IR_MUL, ir_index(b, 1), hd);
    uint32_t r = seq(b, (int32_t)n->key.head_dim, ir_f32(b, 0.0f));
    uint32_t d = ir_reduce_index(b, r);
    uint32_t q = ir_load2(b, 0, IR_TYPE_F32, token, ir_op2(b, IR_ADD, base, d));
    const uint32_t arg[5] = {token, head, pos, d, seen};
    uint32_t k = ir_emit(b, IR_KV_K, IR_TYPE_F32, 0, arg, 5);
    uint32_t dot = ir_fma(b, q, k, ir_reduce_carried(b, r, 0));
    ir_reduce_end(b, r, &dot);
    uint32_t s = ir_op2(b, IR_MUL, ir_reduce_result(b, r, 0), ir_f32(b, n->key.scale));
    if (n->key.softcap > 0.0f) {
        uint32_t cap = ir_f32(b, n->key.softcap);
        s = ir_op2(b, IR_MUL, cap, ir_op1(b, IR_TANH, ir_op2(b, IR_DIV, s, cap)));
    }
    b->result = ir_select(b, seen, s, ir_f32(b, -INFINITY));
}

/* Largest score of each block [tokens, heads, blocks]; -inf if it has no visible position. */
static void define_maxima(struct ir_define *ret, struct ir_shape shape, uint32_t scores)
{
    struct ir_body *b = add_loop(ret, shape);
    uint32_t init = ir_f32(b, -INFINITY);
    uint32_t base = ir_op2(b, IR_MUL, ir_index(b, 2), ir_i32(b, IR_RUN));
    uint32_t r = ir_reduce_over(b, IR_REDUCE_MAX, IR_RUN, init);
    uint32_t at = ir_op2(b, IR_ADD, base, ir_reduce_index(b, r));
    uint32_t s = ir_load3(b, scores, IR_TYPE_F32, ir_index(b, 0), ir_index(b, 1), at);
    ir_reduce_end(b, r, &s);
    b->result = ir_reduce_result(b, r, 0);
}

/* p = exp(s - m of its block) [tokens, heads, ctx], 0 where invisible. */
static void define_weights(const struct ir_node *n, struct ir_define *ret, struct ir_shape shape,
                           uint32_t scores, uint32_t maxima)
{
    struct ir_body *b = add_loop(ret, shape);
    uint32_t token = ir_index(b, 0), head = ir_index(b, 1), pos = ir_index(b, 2);
    uint32_t s = ir_load3(b, scores, IR_TYPE_F32, token, head, pos);
    uint32_t block = ir_op2(b, IR_DIV, pos, ir_i32(b, IR_RUN));
    uint32_t m = ir_load3(b, maxima, IR_TYPE_F32, token, head, block);
    uint32_t p = ir_op1(b, IR_EXP, ir_op2(b, IR_SUB, s, m));
    b->result = ir_select(b, visible(b, n, pos), p, ir_f32(b, 0.0f));
}

static void define_sums(struct ir_define *ret, struct ir_shape shape, uint32_t weights)
{
    struct ir_body *b = add_loop(ret, shape);
    uint32_t init = ir_f32(b, 0.0f);
    uint32_t base = ir_op2(b, IR_MUL, ir_index(b, 2), ir_i32(b, IR_RUN));
    uint32_t r = ir_reduce_over(b, IR_REDUCE_SUM16, IR_RUN, init);
    uint32_t at = ir_op2(b, IR_ADD, base, ir_reduce_index(b, r));
    uint32_t p = ir_load3(b, weights, IR_TYPE_F32, ir_index(b, 0), ir_index(b, 1), at);
    uint32_t sum = ir_op2(b, IR_ADD, ir_reduce_carried(b, r, 0), p);
    ir_reduce_end(b, r, &sum);
    b->result = ir_reduce_result(b, r, 0);
}

/* o_c: the block's weighted sum of v, over its visible positions in rising order. */
static uint32_t block_output(struct ir_body *b, const struct ir_node *n, uint32_t weights,
                             uint32_t block)
{
    uint32_t token = ir_index(b, 0), head = ir_index(b, 1), d = ir_index(b, 2);
    uint32_t base = ir_op2(b, IR_MUL, block, ir_i32(b, IR_RUN));
    uint32_t kv = kv_head(b, n);
    uint32_t r = seq(b, IR_RUN, ir_f32(b, 0.0f));
    uint32_t pos = ir_op2(b, IR_ADD, base, ir_reduce_index(b, r));
    uint32_t seen = visible(b, n, pos);
    uint32_t p = ir_load3(b, weights, IR_TYPE_F32, token, head, pos);
    const uint32_t arg[5] = {token, kv, pos, d, seen};
    uint32_t v = ir_emit(b, IR_KV_V, IR_TYPE_F32, 0, arg, 5);
    uint32_t o = ir_reduce_carried(b, r, 0);
    uint32_t next = ir_select(b, seen, ir_fma(b, p, v, o), o);
    ir_reduce_end(b, r, &next);
    return ir_reduce_result(b, r, 0);
}

/* The merge of rule 9 over blocks in rising order, carrying (m, l, o); then o / l. Blocks without a
 * visible position (m of the block is -inf) leave the three as they are. */
static void define_merge(const struct ir_node *n, struct ir_define *ret, uint32_t maxima,
                         uint32_t weights, uint32_t sums)
{
    struct ir_body *b = add_loop(ret, ir_shape3(IR_ELEM_F32, RDU_DIM_TOKENS, (int32_t)n->key.heads,
                                                (int32_t)n->key.head_dim));
    uint32_t token = ir_index(b, 0), head = ir_index(b, 1);
    uint32_t zero = ir_f32(b, 0.0f), none = ir_f32(b, -INFINITY);
    struct ir_reduce_spec spec = {.kind = IR_REDUCE_SEQ,
                                  .count = IR_DIM_CTX_BLOCKS,
                                  .count_value = IR_NONE,
                                  .init = {none, zero, zero},
                                  .carried = 3};
    uint32_t r = ir_reduce_begin(b, &spec);
    uint32_t block = ir_reduce_index(b, r);
    uint32_t m = ir_reduce_carried(b, r, 0), l = ir_reduce_carried(b, r, 1);
    uint32_t o = ir_reduce_carried(b, r, 2);
    uint32_t mc = ir_load3(b, maxima, IR_TYPE_F32, token, head, block);
    uint32_t lc = ir_load3(b, sums, IR_TYPE_F32, token, head, block);
    uint32_t oc = block_output(b, n, weights, block);
    uint32_t top = ir_op2(b, IR_MAX, m, mc);
    uint32_t a = ir_op1(b, IR_EXP, ir_op2(b, IR_SUB, m, top));
    a = ir_select(b, ir_op2(b, IR_EQ, m, none), zero, a);
    uint32_t c = ir_op1(b, IR_EXP, ir_op2(b, IR_SUB, mc, top));
    uint32_t skip = ir_op2(b, IR_EQ, mc, none);
    const uint32_t next[3] = {
        ir_select(b, skip, m, top),
        ir_select(b, skip, l, ir_fma(b, l, a, ir_op2(b, IR_MUL, lc, c))),
        ir_select(b, skip, o, ir_fma(b, o, a, ir_op2(b, IR_MUL, oc, c))),
    };
    ir_reduce_end(b, r, next);
    b->result = ir_op2(b, IR_DIV, ir_reduce_result(b, r, 2), ir_reduce_result(b, r, 1));
}

static void define_attention(const struct ir_node *n, struct ir_define *ret)
{
    int32_t heads = (int32_t)n->key.heads;
    struct ir_shape each = ir_shape3(IR_ELEM_F32, RDU_DIM_TOKENS, heads, RDU_DIM_CTX);
    struct ir_shape block = ir_shape3(IR_ELEM_F32, RDU_DIM_TOKENS, heads, IR_DIM_CTX_BLOCKS);
    define_scores(n, ret, each);
    define_maxima(ret, block, IR_OPERANDS);
    define_weights(n, ret, each, IR_OPERANDS, IR_OPERANDS + 1);
    define_sums(ret, block, IR_OPERANDS + 2);
    define_merge(n, ret, IR_OPERANDS + 1, IR_OPERANDS + 2, IR_OPERANDS + 3);
}

void ir_define(const struct rdu_graph *g, const struct ir_node *n, uint32_t variant,
               struct ir_define *ret)
{
    memset(ret, 0, sizeof(*ret));
    switch ((enum ir_external)n->key.which) {
    case IR_EXT_MATMUL:
        define_matmul(g, n, variant, ret);
        break;
    case IR_EXT_DELTA:
        define_delta(g, n, ret);
        break;
    case IR_EXT_KV_APPEND:
        define_append(n, ret);
        break;
    case IR_EXT_ATTENTION:
        define_attention(n, ret);
        break;
    case IR_EXT_COPY: {
        struct ir_body *b = add_loop(ret, n->key.shape);
        b->result = ir_load2(b, 0, IR_TYPE_F32, ir_index(b, 0), ir_index(b, 1));
        break;
    }
    }
}
