/* Every execution level gives the same bits: interpreter, one launch per operator, fused launches;
 * for the shapes of llama, qwen2, qwen3 and gemma2, all weight types, adapters, windows, chunks,
 * batches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/rdu/ir_model.h"

#define SEED 20250101u

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

static struct rdu_node *open_node(const char *cpu, uint32_t threads)
{
    struct rdu_node_options o = {.sockets = 8, .threads = threads, .cpu = cpu, .max_tokens = 64};
    struct rdu_node *n = NULL;
    struct err e = {0};
    if (rdu_node_open(&o, &n, &e) != ERR_OK)
        fail_msg("node: %s", e.msg);
    return n;
}

/* A prompt of both sequences, then two decode steps; all logits. */
static size_t run_all(struct model *m, const struct rdu_program *p, struct rdu_node *n,
                      float *logits)
{
    struct model_step s;
    struct err e = {0};
    size_t row = (m->spec.vocab + 7u) & ~7u, at = 0;
    rng_init(&m->rng, SEED + 1);
    model_clear_kv(m);
    if (n && rdu_node_prepare(n, p, 64, 64, &e) != ERR_OK)
        fail_msg("prepare: %s", e.msg);
    model_step_make(m, &s, 64, 3, 0);
    model_run(m, p, &s, n, logits + at * row);
    at += 3;
    model_step_make(m, &s, 12, 5, 32);
    model_run(m, p, &s, n, logits + at * row);
    at += 5;
    model_step_make(m, &s, 1, 1, 38);
    model_run(m, p, &s, n, logits + at * row);
    at += 1;
    return at;
}

static void same_logits(const struct model_spec *s, const float *a, const float *b, size_t rows,
                        const char *what)
{
    size_t stride = (s->vocab + 7u) & ~7u;
    for (size_t i = 0; i < rows; i++) {
        for (uint32_t v = 0; v < s->vocab; v++) {
            float x = a[i * stride + v], y = b[i * stride + v];
            if (memcmp(&x, &y, sizeof(x)) != 0)
                fail_msg("%s: logits row %zu, token %u: %.9g instead of %.9g (seed %u)", what, i, v,
                         (double)y, (double)x, SEED);
        }
    }
}

static void check_all_levels(const struct model_spec *s)
{
    struct rdu_program *interp = open_program(s, RDU_EXEC_INTERP);
    struct model m;
    model_open(&m, s, interp, SEED);
    size_t floats = 16 * ((s->vocab + 7u) & ~7u);
    float *want = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    float *got = aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    size_t rows = run_all(&m, interp, NULL, want);
    for (int fused = 0; fused < 2; fused++) {
        struct rdu_program *p = open_program(s, fused ? RDU_EXEC_FUSED : RDU_EXEC_UNFUSED);
        for (uint32_t threads = 1; threads <= 2; threads++) {
            struct rdu_node *n = open_node(threads == 1 ? "scalar" : NULL, threads);
            run_all(&m, p, n, got);
            same_logits(s, want, got, rows, fused ? "fused" : "unfused");
            rdu_node_close(&n);
        }
        rdu_program_close(&p);
    }
    float sum = 0;
    for (uint32_t v = 0; v < s->vocab; v++)
        sum += want[v] * want[v];
    assert_true(sum > 0.0f && sum < 1e12f); /* real logits, not zeros or not-a-number */
    free(want);
    free(got);
    model_close(&m);
    rdu_program_close(&interp);
}

static void llama_gives_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    check_all_levels(&s);
    s.numerics = RDU_NUMERICS_F32;
    s.rope = RDU_ROPE_PAIRS;
    s.kv = RDU_KV_F32;
    check_all_levels(&s);
}

static void qwen2_gives_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.bias = true;
    check_all_levels(&s);
}

static void qwen3_gives_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.qk_norm = true;
    check_all_levels(&s);
    s.numerics = RDU_NUMERICS_F32;
    check_all_levels(&s);
}

static void gemma2_gives_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.post_norm = true;
    s.windowed = true;
    s.attn_softcap = 50.0f;
    s.softcap = 30.0f;
    check_all_levels(&s);
    s.numerics = RDU_NUMERICS_F32;
    check_all_levels(&s);
}

static void partial_rope_gives_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.rot = 8;
    check_all_levels(&s);
    s.rope = RDU_ROPE_PAIRS;
    check_all_levels(&s);
}

static void a_residual_that_is_read_later_gives_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.parallel = true;
    check_all_levels(&s);
}

static void adapters_give_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.adapters = 2;
    s.rank = 8;
    check_all_levels(&s);
    s.rank = 40; /* B's rows are longer than one run */
    s.numerics = RDU_NUMERICS_F32;
    check_all_levels(&s);
}

static void chunked_weights_give_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.chunk_rows = 24;
    check_all_levels(&s);
}

static void widths_that_are_no_whole_blocks_give_the_same_bits(void **state)
{
    struct model_spec s = model_spec_tiny();
    s.width = 84;
    s.heads = 7;
    s.kv_heads = 1;
    s.head_dim = 12;
    s.rot = 12;
    s.ffn = 52;
    s.vocab = 101;
    s.matrix = RDU_F16;
    s.head = RDU_F32;
    check_all_levels(&s);
}

static void every_weight_type_gives_the_same_bits(void **state)
{
    for (int type = 0; type < RDU_TYPES; type++) {
        struct model_spec s = model_spec_tiny();
        s.matrix = s.head = (enum rdu_type)type;
        s.width = 256;
        s.heads = 4;
        s.head_dim = 64;
        s.rot = 64;
        s.ffn = 256;
        s.vocab = 50;
        s.layers = 1;
        check_all_levels(&s);
        s.numerics = RDU_NUMERICS_F32;
        check_all_levels(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_gives_the_same_bits),
        cmocka_unit_test(qwen2_gives_the_same_bits),
        cmocka_unit_test(qwen3_gives_the_same_bits),
        cmocka_unit_test(gemma2_gives_the_same_bits),
        cmocka_unit_test(partial_rope_gives_the_same_bits),
        cmocka_unit_test(a_residual_that_is_read_later_gives_the_same_bits),
        cmocka_unit_test(adapters_give_the_same_bits),
        cmocka_unit_test(chunked_weights_give_the_same_bits),
        cmocka_unit_test(widths_that_are_no_whole_blocks_give_the_same_bits),
        cmocka_unit_test(every_weight_type_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
