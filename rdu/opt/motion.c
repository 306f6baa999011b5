/* Motion of take_outs: rows are chosen before the work on them instead of after, so that a prompt
 * pays for logits (and the norm before them) of its wanted tokens only. Legal through everything
 * that makes a row from the same row of its operands: element-wise and row-wise loops, matmuls. */
#include <stdlib.h>
#include <string.h>

#include "rdu/opt/opt.h"

static bool is_row_operand(const struct rdu_graph *g, uint32_t id)
{
    const struct ir_shape *s = &g->nodes[id].key.shape;
    return s->rank > 1 && s->dim[0] == RDU_DIM_TOKENS;
}

/* Is the row index used for nothing but reading that row of row operands? */
static bool is_row_local(const struct rdu_graph *g, const struct ir_node *n)
{
    const struct ir_body *b = &n->body;
    for (uint32_t i = 0; i < b->count; i++) {
        const struct ir_op *op = &b->ops[i];
        uint32_t arg[5], count = ir_op_args(op, arg);
        if ((op->code == IR_DIM || op->code == IR_CLAMP) && op->imm == RDU_DIM_TOKENS)
            return false;
        for (uint32_t k = 0; k < count; k++) {
            const struct ir_op *from = &b->ops[arg[k]];
            if (from->code != IR_INDEX || from->imm != 0)
                continue;
            if (op->code != IR_LOAD || k != 0 || count < 2 ||
                !is_row_operand(g, n->key.operand[op->imm]))
                return false;
        }
        /* A row read by anything but the row index is another row. */
        if (op->code == IR_LOAD && is_row_operand(g, n->key.operand[op->imm]) &&
            (b->ops[arg[0]].code != IR_INDEX || b->ops[arg[0]].imm != 0))
            return false;
    }
    return b->result != IR_NONE && b->ops[b->result].code != IR_INDEX;
}

/* The rows `outs` of x as they are. */
static uint32_t take(struct rdu_graph *g, uint32_t x, const struct ir_key *like)
{
    struct ir_key key = *like;
    struct ir_body plain, simple;
    key.operand[0] = x;
    key.shape =
        ir_shape2(IR_ELEM_F32, RDU_DIM_OUTS, (int32_t)ir_shape_width(&g->nodes[x].key.shape));
    ir_body_init(&plain);
    ir_oper_body(&key.hint, &key.shape, &plain);
    ir_body_simplify(&plain, &simple, NULL);
    ir_body_done(&plain);
    return ir_node_add(g, &key, &simple);
}

static uint32_t at_outs(struct rdu_graph *g, uint32_t x, const struct ir_key *take_key,
                        uint32_t *memo)
{
    const struct ir_node *n = &g->nodes[x];
    bool loop = n->key.kind == IR_LOOP && is_row_local(g, n);
    bool matmul = n->key.kind == IR_EXTERNAL && n->key.which == IR_EXT_MATMUL;
    if (memo[x] != IR_NONE)
        return memo[x];
    if (n->key.shape.dim[0] != RDU_DIM_TOKENS || (!loop && !matmul))
        return memo[x] = take(g, x, take_key);
    struct ir_key key = n->key;
    struct ir_body body;
    key.shape.dim[0] = RDU_DIM_OUTS;
    for (uint32_t k = 0; k < key.operands; k++) {
        if (is_row_operand(g, key.operand[k]))
            key.operand[k] = at_outs(g, key.operand[k], take_key, memo);
    }
    g->counts.hoisted++;
    ir_body_init(&body);
    if (loop) /* n may have moved */
        ir_body_copy(&body, &g->nodes[x].body);
    return memo[x] = ir_node_add(g, &key, loop ? &body : NULL);
}

uint32_t opt_at_outs(struct rdu_graph *g, uint32_t x, const struct ir_key *take_key)
{
    uint32_t *memo = mem_array(g->count, sizeof(*memo));
    memset(memo, 0xff, g->count * sizeof(*memo));
    uint32_t y = at_outs(g, x, take_key, memo);
    free(memo);
    return y;
}
