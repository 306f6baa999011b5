/* What sockets read and gather is what was predicted, byte for byte, for any number of sockets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "rdu/node/node.h"
#include "rdu/opt/opt.h"
#include "tests/unit/rdu/ir_model.h"

/* Exactly one thread for each socket, so that a thread's counters are its socket's. */
static void expect_predicted(const struct model_spec *spec, enum rdu_exec exec, uint32_t sockets,
                             uint32_t tokens)
{
    struct err e = {0};
    struct rdu_graph *g = model_graph(spec);
    struct rdu_program *p = NULL;
    struct rdu_program_options o = {.exec = exec, .sockets = sockets};
    struct rdu_node_options no = {.sockets = sockets, .threads = sockets, .max_tokens = tokens};
    struct rdu_node *n = NULL;
    assert_int_equal(rdu_program_open(&g, &o, &p, &e), ERR_OK);
    assert_int_equal(rdu_node_open(&no, &n, &e), ERR_OK);
    assert_int_equal(rdu_node_prepare(n, p, tokens, 2, &e), ERR_OK);
    struct model m;
    struct model_step step;
    model_open(&m, spec, p, 7);
    model_step_make(&m, &step, tokens, BASE_MIN(tokens, 2u), 3);
    float *logits = mem_array((size_t)2 * ((spec->vocab + 7u) & ~7u), sizeof(*logits));
    model_run(&m, p, &step, n, logits);
    struct rdu_args a = {.n_tokens = tokens,
                         .n_outs = step.n_outs,
                         .n_layers = spec->layers,
                         .globals = m.globals,
                         .layers = m.layers};
    struct opt_traffic want;
    opt_traffic_of(p, &a, sockets, &want);
    uint64_t gathered = 0, weights = 0;
    for (uint32_t s = 0; s < sockets; s++) {
        gathered += n->worker[s].gather_bytes;
        weights += n->worker[s].weight_bytes;
        if (n->worker[s].weight_bytes != want.weight_bytes[s])
            fail_msg("exec %d, %u tokens, socket %u of %u: %llu bytes of weights, %llu predicted",
                     (int)exec, tokens, s, sockets, (unsigned long long)n->worker[s].weight_bytes,
                     (unsigned long long)want.weight_bytes[s]);
    }
    if (gathered != want.gather_bytes)
        fail_msg("exec %d, %u tokens, %u sockets: %llu bytes gathered, %llu predicted", (int)exec,
                 tokens, sockets, (unsigned long long)gathered,
                 (unsigned long long)want.gather_bytes);
    struct rdu_node_stats stats;
    rdu_node_stats(n, &stats);
    assert_int_equal(stats.weight_bytes, weights); /* nothing read twice, nothing left out */
    assert_true((gathered > 0) == (sockets > 1));
    free(logits);
    model_close(&m);
    rdu_node_close(&n);
    rdu_program_close(&p);
}

static void sockets_read_and_gather_exactly_what_was_predicted(void **state)
{
    struct model_spec s = model_spec_tiny();
    for (uint32_t sockets = 1; sockets <= 16; sockets++) {
        expect_predicted(&s, RDU_EXEC_FUSED, sockets, 1 + sockets % 5);
        expect_predicted(&s, RDU_EXEC_UNFUSED, sockets, 1 + sockets % 3 * 20);
    }
}

static void so_do_other_shapes_and_numerics(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.numerics = RDU_NUMERICS_F32;
    s.ffn = 150;
    s.chunk_rows = 32;
    expect_predicted(&s, RDU_EXEC_FUSED, 7, 41);
    s = model_spec_tiny();
    s.qk_norm = true;
    s.bias = true;
    s.adapters = 1;
    s.rank = 4;
    expect_predicted(&s, RDU_EXEC_FUSED, 8, 2);
    s = model_spec_tiny();
    s.post_norm = true;
    s.softcap = 30.0f;
    expect_predicted(&s, RDU_EXEC_FUSED, 5, 3);
    s = model_spec_tiny();
    s.parallel = true;
    expect_predicted(&s, RDU_EXEC_FUSED, 3, 17);
}

static void shares_cover_all_rows_once(void **state)
{
    for (int kernel = 0; kernel < 2; kernel++) {
        struct rdu_launch l = {.kernel = kernel ? RDU_KERNEL_GATE_UP : RDU_KERNEL_MATMUL};
        for (uint32_t rows = 1; rows < 300; rows += 7) {
            for (uint32_t sockets = 1; sockets <= 16; sockets++) {
                uint32_t next = 0;
                for (uint32_t s = 0; s < sockets; s++) {
                    uint32_t from, to;
                    opt_share(&l, rows, sockets, s, &from, &to);
                    assert_int_equal(from, next);
                    assert_true(to >= from);
                    next = to;
                }
                assert_int_equal(next, rows);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sockets_read_and_gather_exactly_what_was_predicted),
        cmocka_unit_test(so_do_other_shapes_and_numerics),
        cmocka_unit_test(shares_cover_all_rows_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
