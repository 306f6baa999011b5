/* What is refused, and that it is refused with a reason: wrong builder calls, and graphs that no
 * builder makes (bad types, indices that may leave their operand, effects out of order). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/rdu/ir_model.h"

/* ---- a minimal whole graph around one loop body ---------------------------------------------- */

/* Layer = the loop `b` over `shape` with x as operand 0; everything else is the least that is
 * legal. */
static struct rdu_graph *graph_around(struct ir_shape shape, struct ir_body *b, bool x_operand)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, 64);
    rdu_slot(g, "vector", 1, 64);
    rdu_slot(g, "matrix", 64, 64);
    uint32_t operand[2] = {x, ir_node_input(g, IR_INPUT_POS)};
    uint32_t y = ir_node_loop(g, shape, operand, x_operand ? 2 : 0, b, NULL);
    rdu_graph_end(g,
                  ir_shape_width(&shape) == 64 && shape.elem == IR_ELEM_F32 ? rdu_add(g, x, y) : x);
    x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    rdu_graph_end(g, rdu_matmul(g, rdu_take_outs(g, x), rdu_slot(g, "e", 10, 64)));
    return g;
}

static void refused(struct rdu_graph *g, enum err_code want, const char *why)
{
    struct err e = {0};
    enum err_code rc = ir_verify(g, &e);
    rdu_graph_close(&g);
    assert_int_equal(rc, want);
    if (strstr(e.msg, why) == NULL)
        fail_msg("refused for another reason: %s", e.msg);
}

static struct ir_shape rows64(void)
{
    return ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, 64);
}

static uint32_t load_x(struct ir_body *b, uint32_t col)
{
    return ir_load2(b, 0, IR_TYPE_F32, ir_index(b, 0), col);
}

static void refuse_body(struct ir_body *b, const char *why)
{
    refused(graph_around(rows64(), b, true), ERR_INVALID, why);
}

static void the_minimal_graph_is_accepted(void **state)
{
    struct ir_body b;
    struct err e = {0};
    ir_body_init(&b);
    b.result = load_x(&b, ir_index(&b, 1));
    struct rdu_graph *g = graph_around(rows64(), &b, true);
    if (ir_verify(g, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    rdu_graph_close(&g);
}

static void an_index_beyond_the_operand_is_refused(void **state)
{
    for (int shift = -1; shift <= 1; shift += 2) {
        struct ir_body b;
        ir_body_init(&b);
        b.result = load_x(&b, ir_op2(&b, IR_ADD, ir_index(&b, 1), ir_i32(&b, shift)));
        refuse_body(&b, "outside of the operand");
    }
}

static void a_gathered_index_without_clamp_is_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    uint32_t pos = ir_load1(&b, 1, IR_TYPE_I32, ir_index(&b, 0));
    b.result = load_x(&b, pos);
    refuse_body(&b, "outside of the operand");
    ir_body_init(&b);
    pos = ir_load1(&b, 1, IR_TYPE_I32, ir_index(&b, 0));
    b.result = load_x(&b, ir_clamp(&b, pos, 65));
    refuse_body(&b, "outside of the operand");
}

static void a_row_of_another_dimension_is_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    b.result = ir_load2(&b, 0, IR_TYPE_F32, ir_index(&b, 1), ir_index(&b, 1));
    refuse_body(&b, "outside of the operand");
}

static void weights_beyond_their_slot_are_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    uint32_t two = ir_op2(&b, IR_MUL, ir_index(&b, 1), ir_i32(&b, 2));
    b.result = ir_weight(&b, IR_WEIGHT_F32, 1, two, ir_index(&b, 1));
    refuse_body(&b, "a row may lie outside");
    ir_body_init(&b);
    b.result = ir_weight(&b, IR_WEIGHT_D, 1, ir_index(&b, 1), ir_i32(&b, 2));
    refuse_body(&b, "a column may lie outside");
    ir_body_init(&b);
    b.result = ir_weight(&b, IR_WEIGHT_F32, 7, ir_index(&b, 1), ir_index(&b, 1));
    refuse_body(&b, "slot that does not exist");
    ir_body_init(&b);
    uint32_t col = ir_index(&b, 1);
    b.result = ir_emit(&b, IR_VECTOR, IR_TYPE_F32, 1, &col, 1);
    refuse_body(&b, "one row");
}

static void operands_of_unlike_types_are_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    b.result = ir_op2(&b, IR_ADD, load_x(&b, ir_index(&b, 1)), ir_i32(&b, 1));
    refuse_body(&b, "wrong type");
    ir_body_init(&b);
    b.result = ir_op1(&b, IR_SQRT, ir_index(&b, 1));
    refuse_body(&b, "wrong type");
    ir_body_init(&b);
    uint32_t x = load_x(&b, ir_index(&b, 1));
    b.result = ir_select(&b, x, x, x);
    refuse_body(&b, "wrong type");
    ir_body_init(&b);
    b.result = ir_load2(&b, 0, IR_TYPE_I32, ir_index(&b, 0), ir_index(&b, 1));
    refuse_body(&b, "wrong type");
    ir_body_init(&b);
    b.result = ir_index(&b, 1);
    refuse_body(&b, "another type than the loop");
}

static void a_body_without_value_is_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    ir_index(&b, 1);
    refuse_body(&b, "no value");
}

static void an_operand_that_is_not_there_is_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    b.result = ir_load2(&b, 2, IR_TYPE_F32, ir_index(&b, 0), ir_index(&b, 1));
    refuse_body(&b, "does not exist");
    ir_body_init(&b);
    b.result = load_x(&b, ir_index(&b, 1));
    refused(graph_around(rows64(), &b, false), ERR_INVALID, "does not exist");
    ir_body_init(&b);
    b.result = ir_load3(&b, 0, IR_TYPE_F32, ir_index(&b, 0), ir_index(&b, 1), ir_i32(&b, 0));
    refuse_body(&b, "number of indices");
}

static uint32_t begin(struct ir_body *b, enum ir_reduce kind, int32_t count, uint32_t value,
                      uint32_t init)
{
    struct ir_reduce_spec s = {
        .kind = kind, .count = count, .count_value = value, .init = {init}, .carried = 1};
    return ir_reduce_begin(b, &s);
}

static void malformed_reduces_are_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    uint32_t r = begin(&b, IR_REDUCE_SEQ, 4, IR_NONE, ir_f32(&b, 0)), y = ir_reduce_index(&b, r);
    ir_reduce_end(&b, r, &y);
    b.result = ir_reduce_result(&b, r, 0);
    refuse_body(&b, "yields another type");
    ir_body_init(&b);
    r = begin(&b, IR_REDUCE_SUM16, 4, IR_NONE, ir_f32(&b, 1.0f));
    y = ir_reduce_carried(&b, r, 0);
    ir_reduce_end(&b, r, &y);
    b.result = ir_reduce_result(&b, r, 0);
    refuse_body(&b, "sum16 starts at 0.0");
    ir_body_init(&b);
    r = begin(&b, IR_REDUCE_SEQ, 0, IR_NONE, ir_f32(&b, 0));
    y = ir_reduce_carried(&b, r, 0);
    ir_reduce_end(&b, r, &y);
    b.result = ir_reduce_result(&b, r, 0);
    refuse_body(&b, "one count");
    ir_body_init(&b);
    r = begin(&b, IR_REDUCE_SEQ, 65, IR_NONE, ir_f32(&b, 0));
    y = load_x(&b, ir_reduce_index(&b, r));
    ir_reduce_end(&b, r, &y);
    b.result = ir_reduce_result(&b, r, 0);
    refuse_body(&b, "outside of the operand");
    ir_body_init(&b);
    begin(&b, IR_REDUCE_SEQ, 4, IR_NONE, ir_f32(&b, 0));
    b.result = 0;
    struct rdu_graph *g = graph_around(rows64(), &b, true);
    refused(g, ERR_INVALID, "open reduce");
}

static void a_count_that_differs_along_a_row_is_refused(void **state)
{
    for (uint32_t dim = 0; dim < 2; dim++) {
        struct ir_body b;
        ir_body_init(&b);
        uint32_t count = ir_op2(&b, IR_MIN, ir_index(&b, dim), ir_i32(&b, 3));
        uint32_t r = begin(&b, IR_REDUCE_SEQ, 0, count, ir_f32(&b, 1.0f));
        uint32_t next = ir_op1(&b, IR_NEG, ir_reduce_carried(&b, r, 0));
        ir_reduce_end(&b, r, &next);
        b.result = ir_reduce_result(&b, r, 0);
        struct rdu_graph *g = graph_around(rows64(), &b, true);
        struct err e = {0};
        assert_int_equal(ir_verify(g, &e), dim == 0 ? ERR_OK : ERR_INVALID);
        rdu_graph_close(&g);
    }
}

static void values_from_inside_a_reduce_are_refused_outside(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    uint32_t r = begin(&b, IR_REDUCE_SEQ, 4, IR_NONE, ir_f32(&b, 0));
    uint32_t inside = ir_op2(&b, IR_ADD, ir_reduce_carried(&b, r, 0), ir_f32(&b, 2.0f));
    ir_reduce_end(&b, r, &inside);
    b.result = ir_op1(&b, IR_NEG, inside);
    refuse_body(&b, "not computed before it");
    ir_body_init(&b);
    r = begin(&b, IR_REDUCE_SEQ, 4, IR_NONE, ir_f32(&b, 0));
    inside = ir_op2(&b, IR_ADD, ir_reduce_carried(&b, r, 0), ir_f32(&b, 2.0f));
    ir_reduce_end(&b, r, &inside);
    b.result = inside;
    refuse_body(&b, "no value");
}

static void kv_in_a_plain_loop_is_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    uint32_t zero = ir_i32(&b, 0);
    const uint32_t arg[5] = {ir_index(&b, 0), zero, zero, zero, ir_op2(&b, IR_EQ, zero, zero)};
    b.result = ir_emit(&b, IR_KV_K, IR_TYPE_F32, 0, arg, 5);
    refuse_body(&b, "KV pages outside of attention");
}

static void an_empty_domain_is_refused(void **state)
{
    struct ir_body b;
    ir_body_init(&b);
    b.result = ir_f32(&b, 1.0f);
    refused(graph_around(ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, 0), &b, true), ERR_INVALID,
            "empty");
    ir_body_init(&b);
    b.result = ir_f32(&b, 1.0f);
    refused(graph_around(ir_shape2(IR_ELEM_F32, -9, 32), &b, true), ERR_INVALID, "unknown size");
}

/* ---- nodes ----------------------------------------------------------------------------------- */

/* The spec's graph with one field of one node changed before verification. */
static void refuse_changed(enum ir_external which,
                           void (*change)(struct rdu_graph *, struct ir_key *), const char *why)
{
    struct model_spec s = model_spec_tiny();
    struct rdu_graph *g = model_graph(&s);
    for (uint32_t i = 0; i < g->count; i++) {
        struct ir_key *key = &g->nodes[i].key;
        if (key->kind == IR_EXTERNAL && key->which == (uint32_t)which &&
            key->section == RDU_SECTION_LAYER) {
            change(g, key);
            refused(g, ERR_INVALID, why);
            return;
        }
    }
    fail_msg("no such node");
}

static void drop_effect(struct rdu_graph *g, struct ir_key *key)
{
    key->effect = IR_PURE;
}

static void read_before_append(struct rdu_graph *g, struct ir_key *key)
{
    key->operand[1] = key->operand[0];
}

static void wrong_heads(struct rdu_graph *g, struct ir_key *key)
{
    key->heads++;
}

static void wrong_slot(struct rdu_graph *g, struct ir_key *key)
{
    key->slot = 900;
}

static void other_slot(struct rdu_graph *g, struct ir_key *key)
{
    key->slot = key->slot == 0 ? 1 : 0;
}

static void use_later(struct rdu_graph *g, struct ir_key *key)
{
    key->operand[0] = g->count - 1;
}

static void use_of_other_section(struct rdu_graph *g, struct ir_key *key)
{
    key->operand[0] = g->section[RDU_SECTION_EMBED].result;
}

static void swap_d_and_q(struct rdu_graph *g, struct ir_key *key)
{
    uint32_t q = key->operand[1];
    key->operand[1] = key->operand[2];
    key->operand[2] = q;
}

static void changed_externals_are_refused(void **state)
{
    refuse_changed(IR_EXT_KV_APPEND, drop_effect, "declare that it writes");
    refuse_changed(IR_EXT_ATTENTION, drop_effect, "declare that it reads");
    refuse_changed(IR_EXT_ATTENTION, read_before_append, "before the append");
    refuse_changed(IR_EXT_ATTENTION, wrong_heads, "do not fit the heads");
    refuse_changed(IR_EXT_MATMUL, wrong_slot, "no slot");
    refuse_changed(IR_EXT_MATMUL, swap_d_and_q, "int8 activations");
    refuse_changed(IR_EXT_MATMUL, use_later, "not computed before it");
    refuse_changed(IR_EXT_MATMUL, use_of_other_section, "another section");
    refuse_changed(IR_EXT_DELTA, other_slot, "must follow the matmul");
}

static void two_appends_are_refused(void **state)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, 64);
    struct rdu_attention_options o = {.heads = 2, .kv_heads = 2, .head_dim = 32, .scale = 1};
    uint32_t a = rdu_attention(g, x, x, x, &o);
    rdu_graph_end(g, rdu_attention(g, x, a, x, &o));
    x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    rdu_graph_end(g, rdu_matmul(g, rdu_take_outs(g, x), rdu_slot(g, "e", 10, 64)));
    refused(g, ERR_INVALID, "second KV append");
}

static void a_second_x_is_refused(void **state)
{
    struct model_spec s = model_spec_tiny();
    struct rdu_graph *g = model_graph(&s);
    g->current = RDU_SECTION_LAYER;
    g->section[RDU_SECTION_LAYER].width = 32;
    ir_node_input(g, IR_INPUT_X);
    g->section[RDU_SECTION_LAYER].width = s.width;
    g->current = -1;
    refused(g, ERR_INVALID, "second x");
}

static void missing_sections_are_refused(void **state)
{
    refused(rdu_graph_open("t", RDU_NUMERICS_F32), ERR_INVALID, "embed is missing");
    struct model_spec s = model_spec_tiny();
    struct rdu_graph *g = model_graph(&s);
    g->section[RDU_SECTION_HEAD].result = g->section[RDU_SECTION_HEAD].input;
    refused(g, ERR_INVALID, "rdu_take_outs");
    g = model_graph(&s);
    g->section[RDU_SECTION_LAYER].result = g->section[RDU_SECTION_EMBED].result;
    refused(g, ERR_INVALID, "its own value");
    g = rdu_graph_open("t", RDU_NUMERICS_F32);
    rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    refused(g, ERR_INVALID, "not ended");
}

/* ---- builder calls --------------------------------------------------------------------------- */

struct builder {
    struct rdu_graph *g;
    uint32_t x; /* [tokens, 64] of the layer */
};

static struct builder layer_of(enum rdu_numerics numerics)
{
    struct builder b = {rdu_graph_open("t", numerics), 0};
    uint32_t tokens = rdu_graph_begin(b.g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(b.g, rdu_embed(b.g, tokens, rdu_slot(b.g, "e", 10, 64)));
    b.x = rdu_graph_begin(b.g, RDU_SECTION_LAYER, 64);
    return b;
}

static void refuse_builder(struct builder b, const char *why)
{
    struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = 8};
    struct rdu_program *p = NULL;
    struct err e = {0};
    assert_int_equal(rdu_program_open(&b.g, &o, &p, &e), ERR_INVALID);
    assert_null(b.g);
    assert_null(p);
    if (strstr(e.msg, why) == NULL)
        fail_msg("refused for another reason: %s", e.msg);
}

static void wrong_builder_calls_are_refused(void **state)
{
    struct builder b = layer_of(RDU_NUMERICS_INT8);
    rdu_matmul(b.g, b.x, rdu_slot(b.g, "w", 8, 65));
    refuse_builder(b, "64 columns, slot w is [8, 65]");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_matmul(b.g, 999, rdu_slot(b.g, "w", 8, 64));
    refuse_builder(b, "does not exist");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_matmul(b.g, b.x, 5);
    refuse_builder(b, "weight slot 5");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_slot(b.g, "w", 8, 64);
    rdu_slot(b.g, "w", 8, 32);
    refuse_builder(b, "slot w is used as");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_rms_norm(b.g, b.x, rdu_slot(b.g, "n", 1, 64), 1e-5f, 3);
    refuse_builder(b, "3 groups");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_rms_norm(b.g, b.x, rdu_slot(b.g, "n", 1, 32), 1e-5f, 1);
    refuse_builder(b, "needs slot n as [1, 64]");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_add(b.g, b.x, rdu_matmul(b.g, b.x, rdu_slot(b.g, "w", 32, 64)));
    refuse_builder(b, "unlike shapes");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_softcap(b.g, b.x, 0.0f);
    refuse_builder(b, "above 0");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_take_outs(b.g, b.x);
    refuse_builder(b, "head section");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_embed(b.g, b.x, 0);
    refuse_builder(b, "embed section");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_add(b.g, b.x, b.g->section[RDU_SECTION_EMBED].result);
    refuse_builder(b, "another section");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_graph_end(b.g, b.x);
    rdu_scale(b.g, b.x, 2.0f);
    refuse_builder(b, "outside a section");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_graph_begin(b.g, RDU_SECTION_HEAD, 64);
    refuse_builder(b, "begun twice or inside");
    b = layer_of(RDU_NUMERICS_INT8);
    rdu_slot(b.g, "empty", 0, 64);
    refuse_builder(b, "empty or too large");
}

static void wrong_rope_and_attention_are_refused(void **state)
{
    float table[8 * 16] = {0};
    struct builder b = layer_of(RDU_NUMERICS_F32);
    uint32_t t = rdu_const(b.g, "cos", table, 8, 16);
    rdu_rope(b.g, b.x, t, t, 3, 32, 32, RDU_ROPE_PAIRS);
    refuse_builder(b, "3 * 32");
    b = layer_of(RDU_NUMERICS_F32);
    t = rdu_const(b.g, "cos", table, 8, 16);
    rdu_rope(b.g, b.x, t, t, 2, 32, 30, RDU_ROPE_PAIRS);
    refuse_builder(b, "constants of 15 columns");
    b = layer_of(RDU_NUMERICS_F32);
    t = rdu_const(b.g, "cos", table, 8, 16);
    rdu_rope(b.g, b.x, t, t, 2, 32, 34, RDU_ROPE_PAIRS);
    refuse_builder(b, "rot 34");
    b = layer_of(RDU_NUMERICS_F32);
    rdu_rope(b.g, b.x, b.x, b.x, 2, 32, 32, RDU_ROPE_PAIRS);
    refuse_builder(b, "constants");
    struct rdu_attention_options o = {.heads = 3, .kv_heads = 2, .head_dim = 32, .scale = 1};
    b = layer_of(RDU_NUMERICS_F32);
    rdu_attention(b.g, b.x, b.x, b.x, &o);
    refuse_builder(b, "3 heads do not share 2");
    o.heads = 2;
    o.head_dim = 16;
    b = layer_of(RDU_NUMERICS_F32);
    rdu_attention(b.g, b.x, b.x, b.x, &o);
    refuse_builder(b, "columns for 2 and 2 heads of 16");
    o.head_dim = 32;
    o.softcap = -1;
    b = layer_of(RDU_NUMERICS_F32);
    rdu_attention(b.g, b.x, b.x, b.x, &o);
    refuse_builder(b, "softcap");
}

static void unknown_levels_are_refused(void **state)
{
    struct model_spec s = model_spec_tiny();
    const struct {
        struct rdu_program_options o;
        enum err_code code;
        const char *why;
    } bad[] = {{{(enum rdu_exec)17, 8}, ERR_INVALID, "does not exist"},
               {{RDU_EXEC_FUSED, 0}, ERR_INVALID, "1 to 16"},
               {{RDU_EXEC_FUSED, 17}, ERR_INVALID, "1 to 16"}};
    for (size_t i = 0; i < BASE_COUNT(bad); i++) {
        struct rdu_graph *g = model_graph(&s);
        struct rdu_program *p = NULL;
        struct err e = {0};
        assert_int_equal(rdu_program_open(&g, &bad[i].o, &p, &e), bad[i].code);
        assert_non_null(strstr(e.msg, bad[i].why));
        assert_null(g);
    }
}

static void equal_nodes_are_one_node(void **state)
{
    struct builder b = layer_of(RDU_NUMERICS_INT8);
    uint32_t w = rdu_slot(b.g, "w", 64, 64), v = rdu_slot(b.g, "v", 64, 64);
    assert_int_equal(rdu_matmul(b.g, b.x, w), rdu_matmul(b.g, b.x, w));
    uint32_t before = b.g->count;
    rdu_matmul(b.g, b.x, v); /* the quantised x is there already: matmul and delta only */
    assert_int_equal(b.g->count, before + 2);
    assert_int_equal(rdu_scale(b.g, b.x, 2.0f), rdu_scale(b.g, b.x, 2.0f));
    assert_int_not_equal(rdu_scale(b.g, b.x, 2.0f), rdu_scale(b.g, b.x, 3.0f));
    assert_int_not_equal(rdu_scale(b.g, b.x, 0.0f), rdu_scale(b.g, b.x, -0.0f));
    const float one[2] = {1, 2}, other[2] = {1, 3};
    assert_int_equal(rdu_const(b.g, "a", one, 1, 2), rdu_const(b.g, "b", one, 1, 2));
    assert_int_not_equal(rdu_const(b.g, "a", one, 1, 2), rdu_const(b.g, "a", other, 1, 2));
    assert_int_not_equal(rdu_const(b.g, "a", one, 1, 2), rdu_const(b.g, "a", one, 2, 1));
    rdu_graph_close(&b.g);
}

static void printing_shows_nodes_shapes_and_bodies(void **state)
{
    struct model_spec s = model_spec_tiny();
    struct rdu_graph *g = model_graph(&s);
    struct buf text = {0};
    rdu_graph_print(g, &text);
    static const char *const want[] = {"section layer, for each row of the argument table",
                                       "input x : [tokens, 96] f32",
                                       "table rope.cos : [128, 8] f32",
                                       "loop norm",
                                       "REDUCE sum16 over 96",
                                       "matmul attn_q.weight [96, 96]",
                                       "kv_append, writes KV",
                                       "reads KV",
                                       "loop take_outs"};
    for (size_t i = 0; i < BASE_COUNT(want); i++) {
        if (strstr(text.data, want[i]) == NULL)
            fail_msg("missing: %s", want[i]);
    }
    buf_done(&text);
    rdu_graph_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_minimal_graph_is_accepted),
        cmocka_unit_test(an_index_beyond_the_operand_is_refused),
        cmocka_unit_test(a_gathered_index_without_clamp_is_refused),
        cmocka_unit_test(a_row_of_another_dimension_is_refused),
        cmocka_unit_test(weights_beyond_their_slot_are_refused),
        cmocka_unit_test(operands_of_unlike_types_are_refused),
        cmocka_unit_test(a_body_without_value_is_refused),
        cmocka_unit_test(an_operand_that_is_not_there_is_refused),
        cmocka_unit_test(malformed_reduces_are_refused),
        cmocka_unit_test(a_count_that_differs_along_a_row_is_refused),
        cmocka_unit_test(values_from_inside_a_reduce_are_refused_outside),
        cmocka_unit_test(kv_in_a_plain_loop_is_refused),
        cmocka_unit_test(an_empty_domain_is_refused),
        cmocka_unit_test(changed_externals_are_refused),
        cmocka_unit_test(two_appends_are_refused),
        cmocka_unit_test(a_second_x_is_refused),
        cmocka_unit_test(missing_sections_are_refused),
        cmocka_unit_test(wrong_builder_calls_are_refused),
        cmocka_unit_test(wrong_rope_and_attention_are_refused),
        cmocka_unit_test(unknown_levels_are_refused),
        cmocka_unit_test(equal_nodes_are_one_node),
        cmocka_unit_test(printing_shows_nodes_shapes_and_bodies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
