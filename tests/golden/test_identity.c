/* Within one numerics every way to run a program gives the same bits: execution level, ISA, sockets, threads,
 * prefill chunk, and whatever else is in the batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "experts/serve.h"
#include "tests/golden/rig.h"

#define TOKENS 45

struct way {
    const char *exec, *cpu;
    uint32_t sockets, threads, chunk;
};

static void make_ids(int32_t *ids, size_t n, size_t vocab, uint64_t seed)
{
    struct rng rng;
    rng_init(&rng, seed);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)rng_below(&rng, vocab);
}

static bool cpu_has(const char *cpu)
{
    struct rdu_node *n = NULL;
    struct rdu_node_options o = {.sockets = 1, .threads = 1, .cpu = cpu, .max_tokens = 1};
    bool has = rdu_node_open(&o, &n, NULL) == ERR_OK;
    rdu_node_close(&n);
    return has;
}

static bool has_compiler(void)
{
    char dir[] = "/tmp/switchyard-native-XXXXXX";
    struct rdu_native *n = NULL;
    assert_non_null(mkdtemp(dir));
    struct rdu_native_options o = {.compiler = "cc", .dir = dir};
    bool has = rdu_native_open(&o, &n, NULL) == ERR_OK && rdu_native_compiler(n) != NULL;
    rdu_native_close(&n);
    rmdir(dir);
    return has;
}

static float *logits_of(const char *model, const char *adapter, const char *numerics, const struct way *w,
                        size_t tokens, size_t *ret_bytes)
{
    struct rig r;
    int32_t ids[256];
    rig_open(&r, &(struct rig_options){.model = model, .adapters = {adapter}, .scales = {1}, .exec = w->exec,
                                       .numerics = numerics, .cpu = w->cpu, .sockets = w->sockets,
                                       .threads = w->threads});
    make_ids(ids, tokens, rig_vocab(&r), 7);
    float *logits = rig_logits(&r, ids, tokens, w->chunk);
    *ret_bytes = tokens * rig_vocab(&r) * sizeof(float);
    rig_close(&r);
    return logits;
}

static void all_ways(const char *model, const char *adapter, const char *numerics, const struct way *ways,
                     size_t count, size_t tokens)
{
    size_t bytes, again_bytes;
    float *first = logits_of(model, adapter, numerics, &ways[0], tokens, &bytes);
    for (size_t i = 1; i < count; i++) {
        const struct way *w = &ways[i];
        if (strcmp(w->exec, "native") == 0 && !has_compiler()) {
            print_message("this machine has no C compiler\n");
            continue;
        }
        if (w->cpu && !cpu_has(w->cpu)) {
            print_message("this machine has no %s\n", w->cpu);
            continue;
        }
        float *again = logits_of(model, adapter, numerics, w, tokens, &again_bytes);
        if (memcmp(first, again, bytes) != 0)
            fail_msg("%s %s %s: exec %s cpu %s sockets %u threads %u chunk %u differs from the first way", model,
                     adapter ? adapter : "", numerics, w->exec, w->cpu ? w->cpu : "best", w->sockets, w->threads,
                     w->chunk);
        free(again);
    }
    free(first);
}

static const struct way ways[] = {
    {"fused", "scalar", 8, 1, 0}, {"interp", NULL, 8, 1, 0},     {"fused", "avx2", 8, 1, 0},
    {"fused", "avx512", 8, 1, 0}, {"unfused", NULL, 8, 2, 0},    {"fused", NULL, 1, 1, 3},
    {"fused", NULL, 2, 2, 0},     {"fused", NULL, 3, 2, 5},      {"fused", NULL, 4, 2, 1},
    {"fused", NULL, 8, 2, 0},     {"fused", NULL, 8, 2, 2},      {"fused", NULL, 8, 8, 16},
    {"fused", NULL, 16, 5, 0},    {"native", NULL, 8, 1, 0},     {"native", NULL, 8, 2, 1},
    {"native", "avx2", 3, 2, 5},  {"native", "scalar", 8, 2, 0},
};

static void tiny(const char *file, const char *lora, const char *numerics)
{
    char *model = rig_fixture(file), *adapter = lora ? rig_fixture(lora) : NULL;
    if (model == NULL)
        skip();
    all_ways(model, adapter, numerics, ways, BASE_COUNT(ways), TOKENS);
    free(model);
    free(adapter);
}

static void tiny_llama_every_type(void **state)
{
    const char *files[] = {"tiny/tiny-llama-f32.gguf", "tiny/tiny-llama-f16.gguf", "tiny/tiny-llama-q8_0.gguf",
                           "tiny/tiny-llama-q4_0.gguf", "tiny/tiny-llama-q4_1.gguf"};
    for (size_t i = 0; i < BASE_COUNT(files); i++) {
        tiny(files[i], NULL, "int8");
        tiny(files[i], NULL, "f32");
    }
}

static void tiny_other_architectures(void **state)
{
    const char *files[] = {"tiny/tiny-qwen2-q8_0.gguf", "tiny/tiny-qwen3-q8_0.gguf",
                           "tiny/tiny-gemma2-q8_0.gguf"};
    for (size_t i = 0; i < BASE_COUNT(files); i++)
        tiny(files[i], NULL, "int8");
}

static void tiny_llama_with_adapter(void **state)
{
    tiny("tiny/tiny-llama-q4_1.gguf", "tiny/lora-psalms.gguf", "int8");
    tiny("tiny/tiny-llama-f32.gguf", "tiny/lora-random-f16.gguf", "f32");
}

/* The real model has 9 heads and 3 KV heads: nothing divides by 8. */
static void smollm2_every_way(void **state)
{
    static const struct way real[] = {
        {"fused", "scalar", 8, 2, 0}, {"fused", "avx2", 8, 2, 0}, {"fused", "avx512", 8, 1, 0},
        {"fused", NULL, 1, 1, 1},     {"fused", NULL, 2, 2, 7},   {"fused", NULL, 3, 2, 0},
        {"fused", NULL, 4, 2, 0},     {"fused", NULL, 8, 2, 0},   {"unfused", NULL, 8, 2, 0},
        {"native", NULL, 8, 2, 7},    {"native", NULL, 8, 1, 0},
    };
    const char *model = getenv("SWITCHYARD_MODEL");
    if (model == NULL || *model == 0) {
        print_message("skipped: SWITCHYARD_MODEL is not set\n");
        skip();
    }
    all_ways(model, NULL, "int8", real, BASE_COUNT(real), 40);
    all_ways(model, NULL, "f32", real, BASE_COUNT(real), 12);
}

/* ---- batches ---------------------------------------------------------------------------------------------- */

#define LANES 6
#define NEW_TOKENS 24

static void run_alone(struct rig *r, const struct sequence_options *o, int32_t *out)
{
    struct err e = {0};
    struct sequence *s = NULL;
    assert_int_equal(sequence_open(r->stack.experts, o, &s, &e), ERR_OK);
    while (sequence_generated(s) < NEW_TOKENS) {
        struct expert_step *step = NULL;
        struct step_item item = {s, (uint32_t)sequence_pending(s)};
        assert_int_equal(expert_step_open(r->stack.experts, &item, 1, &step, &e), ERR_OK);
        while (expert_step_advance(step, &e) == STEP_BLOCKED)
            ;
        expert_step_close(&step);
        out[sequence_generated(s) - 1] = sequence_last_token(s);
    }
    sequence_close(&s);
}

/* Random mixes: each round takes a random subset, prompts in random chunks. */
static void run_mixed(struct rig *r, const struct sequence_options *o, int32_t out[LANES][NEW_TOKENS],
                      struct rng *rng)
{
    struct err e = {0};
    struct sequence *s[LANES];
    size_t left = LANES;
    for (int i = 0; i < LANES; i++)
        assert_int_equal(sequence_open(r->stack.experts, &o[i], &s[i], &e), ERR_OK);
    while (left > 0) {
        struct step_item items[LANES];
        struct expert_step *step = NULL;
        size_t n = 0;
        for (int i = 0; i < LANES; i++)
            if (sequence_generated(s[i]) < NEW_TOKENS && rng_below(rng, 3) > 0)
                items[n++] = (struct step_item){s[i], 1 + (uint32_t)rng_below(rng, sequence_pending(s[i]))};
        if (n == 0)
            continue;
        assert_int_equal(expert_step_open(r->stack.experts, items, n, &step, &e), ERR_OK);
        while (expert_step_advance(step, &e) == STEP_BLOCKED)
            ;
        expert_step_close(&step);
        left = 0;
        for (int i = 0; i < LANES; i++) {
            size_t made = sequence_generated(s[i]);
            if (made > 0)
                out[i][made - 1] = sequence_last_token(s[i]);
            left += made < NEW_TOKENS;
        }
    }
    for (int i = 0; i < LANES; i++)
        sequence_close(&s[i]);
}

/* Sampled at temperature 1 with different adapters: any change of a bit would show within a few tokens. */
static void tokens_do_not_depend_on_the_batch(void **state)
{
    char *model = rig_fixture("tiny/tiny-llama-q4_1.gguf"), *lora[2] = {rig_fixture("tiny/lora-upper.gguf"),
                                                                        rig_fixture("tiny/lora-psalms.gguf")};
    uint64_t seed = 20240507;
    if (model == NULL || lora[0] == NULL)
        skip();
    struct rig r;
    rig_open(&r, &(struct rig_options){.model = model, .adapters = {lora[0], lora[1]}, .scales = {1, 1},
                                       .threads = 2});
    const char *names[] = {"model", "adapter-0", "adapter-1"};
    struct sequence_options o[LANES] = {0};
    int32_t prompt[LANES][40], alone[LANES][NEW_TOKENS], mixed[LANES][NEW_TOKENS];
    for (int i = 0; i < LANES; i++) {
        o[i] = (struct sequence_options){.expert = experts_find(r.stack.experts, names[i % 3]),
                                         .tokens = prompt[i], .tokens_count = 3 + 7 * (size_t)i,
                                         .max_tokens = NEW_TOKENS};
        make_ids(prompt[i], o[i].tokens_count, rig_vocab(&r), 100 + (uint64_t)i);
        sampling_init(&o[i].sampling);
        o[i].sampling.seed = 5 + (uint64_t)i;
        o[i].sampling.ignore_eos = true;
        run_alone(&r, &o[i], alone[i]);
    }
    for (int round = 0; round < 40; round++) {
        struct rng rng;
        rng_init(&rng, seed + (uint64_t)round);
        memset(mixed, 0, sizeof(mixed));
        run_mixed(&r, o, mixed, &rng);
        if (memcmp(alone, mixed, sizeof(alone)) != 0)
            fail_msg("seed %llu: tokens differ from those of the sequences alone",
                     (unsigned long long)(seed + (uint64_t)round));
    }
    rig_close(&r);
    free(model);
    free(lora[0]);
    free(lora[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_llama_every_type),
        cmocka_unit_test(tiny_other_architectures),
        cmocka_unit_test(tiny_llama_with_adapter),
        cmocka_unit_test(smollm2_every_way),
        cmocka_unit_test(tokens_do_not_depend_on_the_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
