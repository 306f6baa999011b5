/* Random programs: any mix of what the builder offers, any number of sockets and threads, all
 * passes: the interpreter's bits. SWITCHYARD_GRAPHS=1000 runs more of them; a failure prints its
 * seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "tests/unit/rdu/ir_model.h"

static bool coin(struct rng *r)
{
    return rng_below(r, 2) == 1;
}

static uint32_t among(struct rng *r, const uint32_t *list, size_t count)
{
    return list[rng_below(r, count)];
}

static struct model_spec random_spec(struct rng *r)
{
    static const uint32_t widths[] = {32, 64, 96, 84}, head_dims[] = {8, 16, 32},
                          kv_heads[] = {1, 2, 3}, shares[] = {1, 2, 3}, ffns[] = {32, 64, 150, 96},
                          vocabs[] = {50, 101, 64};
    static const enum rdu_type types[] = {RDU_F32, RDU_F16, RDU_Q8_0, RDU_Q4_0, RDU_Q4_1};
    struct model_spec s = model_spec_tiny();
    s.numerics = coin(r) ? RDU_NUMERICS_INT8 : RDU_NUMERICS_F32;
    s.width = among(r, widths, BASE_COUNT(widths));
    s.head_dim = among(r, head_dims, BASE_COUNT(head_dims));
    s.kv_heads = among(r, kv_heads, BASE_COUNT(kv_heads));
    s.heads = s.kv_heads * among(r, shares, BASE_COUNT(shares));
    s.rot = coin(r) ? s.head_dim : s.head_dim / 2;
    s.ffn = among(r, ffns, BASE_COUNT(ffns));
    s.vocab = among(r, vocabs, BASE_COUNT(vocabs));
    s.layers = 1 + (uint32_t)rng_below(r, 2);
    bool blocks = s.width % 32 == 0 && s.ffn % 32 == 0 && s.heads * s.head_dim % 32 == 0;
    s.matrix = blocks ? types[rng_below(r, BASE_COUNT(types))] : types[rng_below(r, 2)];
    s.head = s.width % 32 == 0 ? types[rng_below(r, BASE_COUNT(types))] : RDU_F32;
    s.rope = coin(r) ? RDU_ROPE_PAIRS : RDU_ROPE_HALVES;
    s.bias = coin(r);
    s.qk_norm = coin(r);
    s.post_norm = coin(r);
    s.windowed = coin(r);
    s.attn_softcap = coin(r) ? 20.0f : 0.0f;
    s.softcap = coin(r) ? 30.0f : 0.0f;
    s.parallel = !s.post_norm && coin(r);
    s.chunk_rows = rng_below(r, 4) == 0 ? 24 : 0;
    s.adapters = rng_below(r, 3) == 0 ? 1 : 0;
    s.rank = s.adapters ? 4 + (uint32_t)rng_below(r, 3) * 18 : 0;
    s.kv = coin(r) ? RDU_KV_F16 : RDU_KV_F32;
    return s;
}

static struct rdu_program *open_program(const struct model_spec *s, enum rdu_exec exec,
                                        uint32_t sockets, uint64_t seed)
{
    struct rdu_graph *g = model_graph(s);
    struct rdu_program_options o = {.exec = exec, .sockets = sockets};
    struct rdu_program *p = NULL;
    struct err e = {0};
    if (rdu_program_open(&g, &o, &p, &e) != ERR_OK)
        fail_msg("seed %llu: %s", (unsigned long long)seed, e.msg);
    return p;
}

/* A prompt and a step after it. */
static void run(struct model *m, const struct rdu_program *p, struct rdu_node *n, uint64_t seed,
                float *logits)
{
    struct model_step s;
    struct err e = {0};
    size_t row = (m->spec.vocab + 7u) & ~7u;
    rng_init(&m->rng, seed + 1);
    model_clear_kv(m);
    if (n && rdu_node_prepare(n, p, 64, 64, &e) != ERR_OK)
        fail_msg("seed %llu: %s", (unsigned long long)seed, e.msg);
    model_step_make(m, &s, 10, 2, 0);
    model_run(m, p, &s, n, logits);
    model_step_make(m, &s, 1 + (uint32_t)(seed % 5), 1, 5);
    model_run(m, p, &s, n, logits + 2 * row);
}

static void one_graph(uint64_t seed)
{
    struct rng r;
    rng_init(&r, seed);
    struct model_spec s = random_spec(&r);
    uint32_t sockets = 1 + (uint32_t)rng_below(&r, 16), threads = 1 + (uint32_t)rng_below(&r, 3);
    struct rdu_program *interp = open_program(&s, RDU_EXEC_INTERP, sockets, seed);
    struct model m;
    model_open(&m, &s, interp, seed);
    size_t row = (s.vocab + 7u) & ~7u, bytes = (3 * row * sizeof(float) + 63) & ~(size_t)63;
    float *want = aligned_alloc(64, bytes), *got = aligned_alloc(64, bytes);
    run(&m, interp, NULL, seed, want);
    for (int fused = 0; fused < 2; fused++) {
        struct rdu_program *p =
            open_program(&s, fused ? RDU_EXEC_FUSED : RDU_EXEC_UNFUSED, sockets, seed);
        struct rdu_node_options o = {.sockets = sockets,
                                     .threads = BASE_MIN(threads, sockets),
                                     .cpu = coin(&r) ? "scalar" : NULL,
                                     .max_tokens = 64};
        struct rdu_node *n = NULL;
        assert_int_equal(rdu_node_open(&o, &n, NULL), ERR_OK);
        run(&m, p, n, seed, got);
        for (size_t i = 0; i < 3; i++)
            if (memcmp(want + i * row, got + i * row, s.vocab * sizeof(float)) != 0)
                fail_msg("seed %llu: %s on %u sockets and %u threads differs from the interpreter "
                         "in row %zu",
                         (unsigned long long)seed, fused ? "fused" : "unfused", sockets, o.threads,
                         i);
        rdu_node_close(&n);
        rdu_program_close(&p);
    }
    free(want);
    free(got);
    model_close(&m);
    rdu_program_close(&interp);
}

static void every_level_and_socket_count_gives_the_interpreters_bits(void **state)
{
    const char *wanted = getenv("SWITCHYARD_GRAPHS");
    uint64_t count = wanted ? strtoull(wanted, NULL, 10) : 60;
    print_message("seeds 1..%llu\n", (unsigned long long)count);
    for (uint64_t seed = 1; seed <= count; seed++)
        one_graph(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_level_and_socket_count_gives_the_interpreters_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
