/* What comes out of the passes for the shapes that are served: which launches, where values live,
 * what fusion saves, and that explain says so in well-formed JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "rdu/opt/opt.h"
#include "tests/unit/rdu/ir_model.h"

static struct rdu_program *open_program(const struct model_spec *s, enum rdu_exec exec)
{
    struct rdu_graph *g = model_graph(s);
    struct rdu_program_options o = {.exec = exec, .sockets = 8};
    struct rdu_program *p = NULL;
    struct err e = {0};
    if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
        fail_msg("open: %s", e.msg);
    return p;
}

static void expect_launches(const struct model_spec *s, enum rdu_section section,
                            enum rdu_exec exec, const char *want)
{
    struct rdu_program *p = open_program(s, exec);
    struct buf got = {0};
    for (uint32_t i = 0; i < p->section[section].count; i++) {
        const struct rdu_launch *l = &p->section[section].launches[i];
        buf_printf(&got, "%s%s%s", i ? " " : "", rdu_kernel_name(l->kernel), l->add ? "+" : "");
        if (l->kernel == RDU_KERNEL_MATMUL && l->slots > 1)
            buf_printf(&got, "%u", l->slots);
    }
    if (strcmp(got.data ? got.data : "", want) != 0)
        fail_msg("launches are %s", got.data);
    buf_done(&got);
    rdu_program_close(&p);
}

/* The q heads of one kv head are whole blocks of 32: attention can quantise. */
static struct model_spec whole_blocks(void)
{
    struct model_spec s = model_spec_tiny();
    s.kv_heads = 3;
    return s;
}

static void llama_layers_are_eight_launches(void **state)
{
    struct model_spec s = whole_blocks();
    expect_launches(&s, RDU_SECTION_EMBED, RDU_EXEC_FUSED, "embed");
    expect_launches(&s, RDU_SECTION_LAYER, RDU_EXEC_FUSED,
                    "norm matmul3 rope_append attention matmul+ norm gate_up matmul+");
    expect_launches(&s, RDU_SECTION_HEAD, RDU_EXEC_FUSED, "take_outs norm head");
    expect_launches(&s, RDU_SECTION_LAYER, RDU_EXEC_INTERP, "");
    expect_launches(
        &s, RDU_SECTION_LAYER, RDU_EXEC_UNFUSED,
        "norm quantize matmul matmul matmul rope rope append attention quantize matmul add "
        "norm quantize matmul matmul act quantize matmul add");
}

static void other_shapes_fuse_what_they_can(void **state)
{
    struct model_spec s = whole_blocks();
    s.bias = true;
    expect_launches(
        &s, RDU_SECTION_LAYER, RDU_EXEC_FUSED,
        "norm matmul3 add_bias add_bias add_bias rope_append attention matmul+ norm gate_up "
        "matmul+");
    s = whole_blocks();
    s.qk_norm = true;
    expect_launches(&s, RDU_SECTION_LAYER, RDU_EXEC_FUSED,
                    "norm matmul3 norm norm rope_append attention matmul+ norm gate_up matmul+");
    s = whole_blocks();
    s.post_norm = true;
    s.softcap = 30.0f;
    expect_launches(&s, RDU_SECTION_EMBED, RDU_EXEC_FUSED, "embed scale");
    expect_launches(
        &s, RDU_SECTION_LAYER, RDU_EXEC_FUSED,
        "norm matmul3 rope_append attention matmul norm add norm gate_up matmul norm add");
    expect_launches(&s, RDU_SECTION_HEAD, RDU_EXEC_FUSED, "take_outs norm head softcap");
    s = whole_blocks();
    s.kv_heads = 6; /* the heads of one kv head are no whole block of 32: quantised apart */
    expect_launches(&s, RDU_SECTION_LAYER, RDU_EXEC_FUSED,
                    "norm matmul3 rope_append attention quantize matmul+ norm gate_up matmul+");
    s = whole_blocks();
    s.numerics = RDU_NUMERICS_F32;
    expect_launches(&s, RDU_SECTION_LAYER, RDU_EXEC_FUSED,
                    "norm matmul3 rope_append attention matmul+ norm gate_up matmul+");
}

/* layer(x) = f(x) with x needed after the sum: adding into x would change what is read later. */
static void a_residual_that_is_read_later_is_not_overwritten(void **state)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, 64);
    uint32_t y = rdu_add(g, x, rdu_matmul(g, x, rdu_slot(g, "w", 64, 64)));
    rdu_graph_end(g, rdu_add(g, rdu_scale(g, y, 0.5f), x));
    x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    rdu_graph_end(g, rdu_matmul(g, rdu_take_outs(g, x), rdu_slot(g, "e", 10, 64)));
    struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = 8};
    struct rdu_program *p = NULL;
    struct err e = {0};
    if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    const struct rdu_section_plan *layer = &p->section[RDU_SECTION_LAYER];
    for (uint32_t i = 0; i + 1 < layer->count; i++) {
        assert_false(layer->launches[i].add);
        assert_int_not_equal(layer->launches[i].out[0], RDU_BUF_X);
    }
    assert_int_equal(layer->launches[layer->count - 1].out[0], RDU_BUF_X);
    rdu_program_close(&p);
}

/* A layer that is its input needs nothing; one that ends elsewhere is copied into x. */
static void the_result_ends_in_x(void **state)
{
    struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)));
    rdu_graph_end(g, rdu_graph_begin(g, RDU_SECTION_LAYER, 64));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    rdu_graph_end(g, rdu_take_outs(g, x));
    struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = 8};
    struct rdu_program *p = NULL;
    struct err e = {0};
    if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    assert_int_equal(p->section[RDU_SECTION_LAYER].count, 0);
    /* Every thread may make its own rows of x: they are copied to the one place of the logits. */
    assert_int_equal(p->section[RDU_SECTION_HEAD].count, 2);
    assert_int_equal(p->section[RDU_SECTION_HEAD].launches[1].kernel, RDU_KERNEL_SCALE);
    assert_int_equal(p->section[RDU_SECTION_HEAD].launches[1].out[0], RDU_BUF_LOGITS);
    rdu_program_close(&p);
}

/* ---- placement ------------------------------------------------------------------------------- */

struct span {
    uint32_t from, to;
};

static void find_spans(const struct rdu_program *p, struct span *span, uint32_t *section_of)
{
    for (uint32_t b = 0; b < p->bufs_count; b++)
        span[b] = (struct span){UINT32_MAX, 0};
    for (uint32_t s = 0; s < RDU_SECTIONS; s++) {
        for (uint32_t i = 0; i < p->section[s].count; i++) {
            const struct rdu_launch *l = &p->section[s].launches[i];
            for (int k = 0; k < 7; k++) {
                uint32_t b = k < 3 ? l->in[k] : l->out[k - 3];
                if (b >= p->bufs_count)
                    continue;
                span[b].from = BASE_MIN(span[b].from, i);
                span[b].to = BASE_MAX(span[b].to, i);
                section_of[b] = s;
            }
        }
    }
}

static void check_placement(const struct model_spec *s, enum rdu_exec exec)
{
    struct rdu_program *p = open_program(s, exec);
    struct span span[256];
    uint32_t section_of[256];
    size_t peak = 0, sum = 0;
    assert_true(p->bufs_count <= 256);
    find_spans(p, span, section_of);
    for (uint32_t a = 0; a < p->bufs_count; a++) {
        const struct rdu_buf *x = &p->bufs[a];
        assert_true(span[a].from <= span[a].to); /* somebody uses it */
        assert_int_equal(x->row_bytes % 64, 0);
        assert_int_equal(x->row_offset % 64, 0);
        peak = BASE_MAX(peak, x->row_offset + x->row_bytes);
        sum += x->row_bytes;
        for (uint32_t b = 0; b < a; b++) {
            const struct rdu_buf *y = &p->bufs[b];
            bool together = section_of[a] == section_of[b] && span[a].from <= span[b].to &&
                            span[b].from <= span[a].to;
            bool overlap = x->row_offset < y->row_offset + y->row_bytes &&
                           y->row_offset < x->row_offset + x->row_bytes;
            if (together && overlap)
                fail_msg("buffers %s and %s share bytes while both live", x->name, y->name);
        }
    }
    assert_int_equal(peak, p->row_bytes_peak);
    assert_true(sum <= p->row_bytes_naive); /* of which fusing makes some disappear */
    assert_true(peak < sum);
    size_t naive = 0;
    assert_int_equal(rdu_program_scratch(p, 7, 2, &naive), 7 * peak);
    assert_int_equal(naive, 7 * p->row_bytes_naive);
    rdu_program_close(&p);
}

static void buffers_that_live_together_do_not_overlap(void **state)
{
    for (int exec = RDU_EXEC_UNFUSED; exec <= RDU_EXEC_FUSED; exec++) {
        for (int shape = 0; shape < 5; shape++) {
            struct model_spec s = model_spec_tiny();
            s.bias = shape == 1;
            s.qk_norm = shape == 2;
            s.post_norm = shape == 3;
            s.parallel = shape == 4;
            check_placement(&s, (enum rdu_exec)exec);
        }
    }
}

/* ---- cost ------------------------------------------------------------------------------------ */

static struct opt_work total(const struct rdu_program *p, uint32_t section)
{
    struct opt_work sum = {0};
    for (uint32_t i = 0; i < p->section[section].count; i++) {
        struct opt_work w = opt_launch_work(p, &p->section[section].launches[i]);
        sum.weight_elems += w.weight_elems;
        sum.act_bytes += w.act_bytes;
        sum.kv_elems += w.kv_elems;
        sum.kv_elems_ctx += w.kv_elems_ctx;
        sum.flops += w.flops;
        sum.flops_ctx += w.flops_ctx;
    }
    return sum;
}

/* What the gate says fusion saves is what the two plans differ by. */
static void fusion_saves_what_it_predicted(void **state)
{
    for (int shape = 0; shape < 4; shape++) {
        struct model_spec s = model_spec_tiny();
        s.bias = shape == 1;
        s.qk_norm = shape == 2;
        s.post_norm = shape == 3;
        struct rdu_program *fused = open_program(&s, RDU_EXEC_FUSED);
        struct rdu_program *unfused = open_program(&s, RDU_EXEC_UNFUSED);
        for (uint32_t section = 0; section < RDU_SECTIONS; section++) {
            struct opt_section clusters;
            struct opt_saved saved;
            struct buf report = {0};
            struct err e = {0};
            assert_int_equal(opt_fuse(fused->graph, section, true, &clusters, &saved, &report, &e),
                             ERR_OK);
            struct opt_work a = total(fused, section), b = total(unfused, section);
            assert_int_equal(b.act_bytes - a.act_bytes, saved.bytes);
            assert_int_equal(unfused->section[section].count - fused->section[section].count,
                             saved.launches);
            assert_int_equal(a.weight_elems, b.weight_elems);
            assert_int_equal(a.flops, b.flops);
            assert_int_equal(a.flops_ctx, b.flops_ctx);
            assert_int_equal(a.kv_elems, b.kv_elems);
            buf_done(&report);
            free(clusters.clusters);
        }
        rdu_program_close(&fused);
        rdu_program_close(&unfused);
    }
}

/* Multiplications of a llama layer, counted by hand. */
static void work_of_a_layer_is_counted(void **state)
{
    struct model_spec s = model_spec_tiny();
    struct rdu_program *p = open_program(&s, RDU_EXEC_FUSED);
    struct opt_work w = total(p, RDU_SECTION_LAYER);
    uint64_t kv = (uint64_t)s.kv_heads * s.head_dim, q = (uint64_t)s.heads * s.head_dim;
    uint64_t weights =
        s.width * (q + 2 * kv) + q * s.width + (uint64_t)3 * s.width * s.ffn + 2 * s.width;
    assert_int_equal(w.weight_elems, weights);
    assert_int_equal(w.kv_elems, 2 * kv);
    assert_int_equal(w.kv_elems_ctx, 2 * kv);
    assert_int_equal(w.flops_ctx, 4 * q);
    assert_int_equal(total(p, RDU_SECTION_HEAD).weight_elems,
                     (uint64_t)s.vocab * s.width + s.width);
    rdu_program_close(&p);
}

/* ---- questions and explain ------------------------------------------------------------------- */

static void a_program_answers_for_its_shape(void **state)
{
    struct model_spec s = model_spec_tiny();
    struct rdu_program *p = open_program(&s, RDU_EXEC_FUSED);
    uint32_t kv_heads, head_dim;
    rdu_program_kv(p, &kv_heads, &head_dim);
    assert_int_equal(kv_heads, s.kv_heads);
    assert_int_equal(head_dim, s.head_dim);
    assert_int_equal(rdu_program_width(p), s.width);
    assert_int_equal(rdu_program_vocab(p), s.vocab);
    assert_int_equal(rdu_program_exec(p), RDU_EXEC_FUSED);
    assert_int_equal(rdu_program_numerics(p), s.numerics);
    assert_int_equal(rdu_program_slots(p, RDU_SECTION_LAYER), 9);
    assert_int_equal(rdu_program_slots(p, RDU_SECTION_HEAD), 2);
    const struct rdu_slot_info *e = rdu_program_slot(p, RDU_SECTION_EMBED, 0);
    assert_string_equal(e->name, "token_embd.weight");
    assert_int_equal(e->rows, s.vocab);
    assert_null(rdu_program_slot(p, RDU_SECTION_LAYER, 9));
    rdu_program_close(&p);
    rdu_program_close(&p); /* NULL is fine */
}

static void explain_is_well_formed(void **state)
{
    for (int exec = RDU_EXEC_INTERP; exec <= RDU_EXEC_FUSED; exec++) {
        struct model_spec s = model_spec_tiny();
        struct rdu_program *p = open_program(&s, (enum rdu_exec)exec);
        struct buf out = {0};
        rdu_program_explain(p, true, &out);
        json_error_t error;
        json_t *root = json_loads(out.data, 0, &error);
        if (root == NULL)
            fail_msg("line %d: %s", error.line, error.text);
        json_t *layer = json_array_get(json_object_get(root, "sections"), RDU_SECTION_LAYER);
        json_t *launches = json_object_get(layer, "launches");
        assert_int_equal(json_array_size(launches), p->section[RDU_SECTION_LAYER].count);
        assert_int_equal(json_array_size(json_object_get(root, "buffers")), p->bufs_count);
        assert_non_null(strstr(json_string_value(json_object_get(root, "graph")), "section head"));
        json_t *simplify = json_object_get(root, "simplify");
        assert_true(json_integer_value(json_object_get(simplify, "nodes_before")) > 20);
        if (exec == RDU_EXEC_FUSED) {
            json_t *qkv = json_array_get(launches, 1);
            assert_string_equal(json_string_value(json_object_get(qkv, "name")), "attn_qkv");
            assert_string_equal(json_string_value(json_object_get(qkv, "split")), "rows");
        }
        json_decref(root);
        buf_clear(&out);
        rdu_program_explain(p, false, &out);
        assert_non_null(
            strstr(out.data, exec == RDU_EXEC_INTERP ? "exec interp" : "launches of layer"));
        buf_done(&out);
        rdu_program_close(&p);
    }
}

static void strange_names_do_not_break_explain(void **state)
{
    struct rdu_graph *g = rdu_graph_open("a\"b\\c\nd\xff", RDU_NUMERICS_F32);
    uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
    rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "\"\\\t", 10, 64)));
    rdu_graph_end(g, rdu_graph_begin(g, RDU_SECTION_LAYER, 64));
    uint32_t x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
    rdu_graph_end(g, rdu_matmul(g, rdu_take_outs(g, x), rdu_slot(g, "\"\\\t", 10, 64)));
    struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = 3};
    struct rdu_program *p = NULL;
    struct err e = {0};
    if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    struct buf out = {0};
    rdu_program_explain(p, true, &out);
    json_t *root = json_loads(out.data, 0, NULL);
    assert_non_null(root);
    json_decref(root);
    buf_done(&out);
    rdu_program_close(&p);
}

/* Loops that no leaf stands for: launched through the interpreter, refused when they do not fit a
 * launch. */
static void odd_loops_are_interpreted_or_refused(void **state)
{
    for (uint32_t operands = 2; operands <= 4; operands += 2) {
        struct rdu_graph *g = rdu_graph_open("t", RDU_NUMERICS_F32);
        uint32_t tokens = rdu_graph_begin(g, RDU_SECTION_EMBED, 0);
        rdu_graph_end(g, rdu_embed(g, tokens, rdu_slot(g, "e", 10, 64)));
        uint32_t x = rdu_graph_begin(g, RDU_SECTION_LAYER, 64);
        const uint32_t v[4] = {x, rdu_scale(g, x, 2.0f), rdu_scale(g, x, 3.0f),
                               rdu_scale(g, x, 4.0f)};
        struct ir_body b;
        ir_body_init(&b);
        uint32_t sum = ir_f32(&b, 0.0f);
        for (uint32_t i = 0; i < operands; i++)
            sum = ir_fma(&b, sum, sum,
                         ir_load2(&b, i, IR_TYPE_F32, ir_index(&b, 0), ir_index(&b, 1)));
        b.result = sum;
        rdu_graph_end(
            g, ir_node_loop(g, ir_shape2(IR_ELEM_F32, RDU_DIM_TOKENS, 64), v, operands, &b, NULL));
        x = rdu_graph_begin(g, RDU_SECTION_HEAD, 64);
        rdu_graph_end(g, rdu_matmul(g, rdu_take_outs(g, x), rdu_slot(g, "e", 10, 64)));
        struct rdu_program_options o = {.exec = RDU_EXEC_FUSED, .sockets = 8};
        struct rdu_program *p = NULL;
        struct err e = {0};
        enum err_code rc = rdu_program_open(&g, &o, &p, &e);
        assert_int_equal(rc, operands > 3 ? ERR_UNSUPPORTED : ERR_OK);
        if (rc != ERR_OK)
            assert_non_null(strstr(e.msg, "RDU_EXEC_INTERP"));
        else
            assert_int_equal(p->section[RDU_SECTION_LAYER].launches[1].kernel, RDU_KERNEL_LOOP);
        rdu_program_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_layers_are_eight_launches),
        cmocka_unit_test(other_shapes_fuse_what_they_can),
        cmocka_unit_test(a_residual_that_is_read_later_is_not_overwritten),
        cmocka_unit_test(the_result_ends_in_x),
        cmocka_unit_test(buffers_that_live_together_do_not_overlap),
        cmocka_unit_test(fusion_saves_what_it_predicted),
        cmocka_unit_test(work_of_a_layer_is_counted),
        cmocka_unit_test(a_program_answers_for_its_shape),
        cmocka_unit_test(explain_is_well_formed),
        cmocka_unit_test(strange_names_do_not_break_explain),
        cmocka_unit_test(odd_loops_are_interpreted_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
