/* Numbers against the golden files: tiny models of every architecture with and without adapters, and
 * SmolLM2-135M (prompts and perplexity). Limits are those of the fixtures' README files. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/golden/rig.h"

#define IDS_MAX 2048

/* What one comparison may differ by. */
struct limits {
    double top, centred, lse, gap, equal;
};

struct tally {
    size_t tokens, equal, steps;
    double top_max, centred_max, lse_max, gap_max;
};

/* Golden steps against logits [n, vocab] whose row `first` follows the prompt. */
static void compare_steps(json_t *row, const float *logits, size_t first, size_t vocab, struct tally *t)
{
    json_t *steps = json_object_get(row, "steps");
    for (size_t i = 0; i < json_array_size(steps); i++) {
        json_t *step = json_array_get(steps, i), *top = json_object_get(step, "top");
        const float *mine = logits + (first + i) * vocab;
        double mean = 0, diff[32];
        size_t n = BASE_MIN(json_array_size(top), (size_t)32);
        for (size_t k = 0; k < n; k++) {
            json_t *pair = json_array_get(top, k);
            size_t id = (size_t)json_integer_value(json_array_get(pair, 0));
            diff[k] = (double)mine[id] - json_number_value(json_array_get(pair, 1));
            mean += diff[k] / (double)n;
            t->top_max = BASE_MAX(t->top_max, fabs(diff[k]));
        }
        for (size_t k = 0; k < n; k++)
            t->centred_max = BASE_MAX(t->centred_max, fabs(diff[k] - mean));
        double lse = fabs(logsumexp(mine, vocab) - json_number_value(json_object_get(step, "logsumexp")));
        t->lse_max = BASE_MAX(t->lse_max, lse);
        t->steps++;
    }
}

static void compare_tokens(json_t *row, const float *logits, size_t first, size_t vocab, size_t count,
                           struct tally *t)
{
    json_t *greedy = json_object_get(row, "greedy"), *gaps = json_object_get(row, "gaps");
    for (size_t i = 0; i < count; i++) {
        size_t mine = argmax(logits + (first + i) * vocab, vocab);
        t->tokens++;
        if (mine == (size_t)json_integer_value(json_array_get(greedy, i)))
            t->equal++;
        else
            t->gap_max = BASE_MAX(t->gap_max, json_number_value(json_array_get(gaps, i)));
    }
}

static void check(const char *what, const struct tally *t, const struct limits *l)
{
    double equal = t->tokens ? (double)t->equal / (double)t->tokens : 1;
    print_message("%-44s top %.4f (%.4f) centred %.4f lse %.4f equal %.2f %% (%zu) gap %.4f\n", what, t->top_max,
                  l->top, t->centred_max, t->lse_max, 100 * equal, t->tokens, t->gap_max);
    if (t->top_max > l->top || t->centred_max > l->centred || t->lse_max > l->lse)
        fail_msg("%s: logits differ by %.4f (centred %.4f, logsumexp %.4f)", what, t->top_max, t->centred_max,
                 t->lse_max);
    if (t->gap_max >= l->gap || equal < l->equal)
        fail_msg("%s: %.2f %% of the tokens equal, one differs at a gap of %.4f", what, 100 * equal, t->gap_max);
}

/* Prompt + the reference's greedy tokens but the last, in one pass. Returns the number of tokens. */
static size_t fed_ids(json_t *row, size_t greedy, int32_t *ids, size_t *ret_first)
{
    size_t n = rig_ids(json_object_get(row, "ids"), ids, IDS_MAX);
    json_t *follow = json_object_get(row, "greedy");
    *ret_first = n - 1;
    for (size_t i = 0; i + 1 < greedy; i++)
        ids[n++] = (int32_t)json_integer_value(json_array_get(follow, i));
    return n;
}

static void compare_row(struct rig *r, json_t *row, size_t greedy, bool by_token, struct tally *t)
{
    int32_t ids[IDS_MAX];
    size_t first, n = fed_ids(row, greedy, ids, &first), vocab = rig_vocab(r);
    float *logits = rig_logits(r, ids, n, 0);
    if (greedy >= 8)
        compare_steps(row, logits, first, vocab, t);
    compare_tokens(row, logits, first, vocab, greedy, t);
    if (by_token) {
        float *again = rig_logits(r, ids, n, 1);
        if (memcmp(logits, again, n * vocab * sizeof(float)) != 0)
            fail_msg("one pass and token by token differ");
        free(again);
    }
    free(logits);
}

/* ---- tiny models ---------------------------------------------------------------------------------------- */

static bool is_quantised(const char *model)
{
    return strstr(model, "q8_0") || strstr(model, "q4_") ? true : false;
}

struct tiny_case {
    const char *numerics, *exec, *cpu;
    bool by_token;
};

static struct limits tiny_limits(const char *model, bool f32, bool adapter)
{
    if (f32)
        return (struct limits){0.002, 0.002, 0.002, 0.002, 0.98};
    if (!is_quantised(model))
        return (struct limits){0.03, 0.03, 0.03, 0.03, 0.98};
    return adapter ? (struct limits){0.6, 0.6, 0.6, 0.4, 0.97} : (struct limits){0.5, 0.5, 0.5, 0.4, 0.98};
}

static bool same_value(json_t *a, json_t *b, const char *key)
{
    json_t *x = json_object_get(a, key), *y = json_object_get(b, key);
    return x == NULL || y == NULL ? x == y : json_equal(x, y);
}

static bool same_adapters(json_t *a, json_t *b)
{
    return same_value(a, b, "adapters") && same_value(a, b, "model");
}

/* Rows with the same model and adapters follow each other; each such run opens one rig. */
static void run_tiny(const char *file, const struct tiny_case *c)
{
    json_t *rows = rig_jsonl(file);
    if (rows == NULL)
        skip();
    bool f32 = strcmp(c->numerics, "f32") == 0;
    struct tally all = {0};
    for (size_t i = 0; i < json_array_size(rows);) {
        json_t *head = json_array_get(rows, i), *adapters = json_object_get(head, "adapters");
        const char *model = json_string_value(json_object_get(head, "model"));
        char name[160], *paths[4] = {0};
        struct rig r;
        struct rig_options o = {.numerics = c->numerics, .exec = c->exec, .cpu = c->cpu,
                                .kv = f32 ? "f32" : "f16"};
        snprintf(name, sizeof(name), "tiny/%s", model);
        char *path = rig_fixture(name);
        o.model = path;
        for (size_t k = 0; k < json_array_size(adapters); k++) {
            json_t *a = json_array_get(adapters, k);
            char file_name[160];
            snprintf(file_name, sizeof(file_name), "tiny/%s", json_string_value(json_object_get(a, "file")));
            o.adapters[k] = paths[k] = rig_fixture(file_name);
            o.scales[k] = json_number_value(json_object_get(a, "scale"));
        }
        rig_open(&r, &o);
        struct tally t = {0};
        size_t from = i;
        for (; i < json_array_size(rows) && same_adapters(head, json_array_get(rows, i)); i++)
            compare_row(&r, json_array_get(rows, i), 32, c->by_token && i == from, &t);
        snprintf(name, sizeof(name), "%s %s %s%s", model, c->numerics, c->exec, o.adapters[0] ? " +lora" : "");
        struct limits l = tiny_limits(model, f32, o.adapters[0] != NULL);
        l.equal = 0.9; /* of a few rows; the share over all of them is checked below */
        check(name, &t, &l);
        all.equal += t.equal;
        all.tokens += t.tokens;
        rig_close(&r);
        free(path);
        for (int k = 0; k < 4; k++)
            free(paths[k]);
    }
    json_decref(rows);
    print_message("%s: %zu of %zu tokens equal\n", file, all.equal, all.tokens);
    assert_true((double)all.equal >= 0.975 * (double)all.tokens);
}

static void tiny_models_f32_scalar(void **state)
{
    run_tiny("tiny/golden.jsonl", &(struct tiny_case){"f32", "fused", "scalar", true});
}

static void tiny_models_f32_interpreted(void **state)
{
    run_tiny("tiny/golden.jsonl", &(struct tiny_case){"f32", "interp", NULL, false});
}

static void tiny_models_int8(void **state)
{
    run_tiny("tiny/golden.jsonl", &(struct tiny_case){"int8", "fused", NULL, true});
}

static void tiny_models_int8_unfused(void **state)
{
    run_tiny("tiny/golden.jsonl", &(struct tiny_case){"int8", "unfused", NULL, false});
}

static void tiny_adapters_f32(void **state)
{
    run_tiny("tiny/golden_lora.jsonl", &(struct tiny_case){"f32", "fused", NULL, true});
}

static void tiny_adapters_int8(void **state)
{
    run_tiny("tiny/golden_lora.jsonl", &(struct tiny_case){"int8", "fused", NULL, true});
}

static void tiny_adapters_interpreted(void **state)
{
    run_tiny("tiny/golden_lora.jsonl", &(struct tiny_case){"f32", "interp", NULL, false});
}

/* ---- SmolLM2-135M ----------------------------------------------------------------------------------------- */

static const char *real_model(void)
{
    const char *path = getenv("SWITCHYARD_MODEL");
    if (path == NULL || *path == 0)
        print_message("skipped: SWITCHYARD_MODEL names no SmolLM2-135M-Instruct.Q4_1.gguf\n");
    return path && *path ? path : NULL;
}

static void run_smollm2(const char *numerics, const char *exec, const char *cpu, size_t prompts, size_t greedy,
                        const struct limits *l)
{
    json_t *rows = rig_jsonl("golden/smollm2.jsonl");
    if (real_model() == NULL || rows == NULL)
        skip();
    struct rig r;
    bool f32 = strcmp(numerics, "f32") == 0;
    rig_open(&r, &(struct rig_options){.model = real_model(), .numerics = numerics, .exec = exec, .cpu = cpu,
                                       .kv = f32 ? "f32" : "f16", .threads = 2});
    struct tally t = {0};
    size_t done = 0;
    for (size_t i = 0; i < json_array_size(rows) && done < prompts; i++) {
        json_t *row = json_array_get(rows, i);
        /* The interpreter takes the short prompts; a lone token is left out of the int8 limits. */
        size_t ids = json_array_size(json_object_get(row, "ids"));
        if (prompts < json_array_size(rows) && ids > 13)
            continue;
        if (!f32 && ids == 1)
            continue;
        compare_row(&r, row, greedy, false, &t);
        done++;
    }
    char name[80];
    snprintf(name, sizeof(name), "SmolLM2 %s %s, %zu prompts", numerics, exec, done);
    check(name, &t, l);
    rig_close(&r);
    json_decref(rows);
}

static void smollm2_int8(void **state)
{
    run_smollm2("int8", "fused", NULL, 100, 32, &(struct limits){2.0, 1.5, 1.5, 0.5, 0.95});
}

static void smollm2_f32_scalar(void **state)
{
    run_smollm2("f32", "fused", "scalar", 100, 32, &(struct limits){0.002, 0.002, 0.002, 0.002, 0.98});
}

static void smollm2_f32_interpreted(void **state)
{
    run_smollm2("f32", "interp", NULL, 2, 4, &(struct limits){0.002, 0.002, 0.002, 0.002, 0.75});
}

/* Every logit of step 0 of the first 8 prompts. */
static void smollm2_first_logits_f32(void **state)
{
    json_t *rows = rig_jsonl("golden/smollm2.jsonl");
    char *path = rig_fixture("golden/smollm2_first_logits.f32");
    struct buf golden = {0};
    struct err e = {0};
    if (real_model() == NULL || rows == NULL || path == NULL)
        skip();
    assert_int_equal(file_read(path, 64 * BASE_MIB, &golden, &e), ERR_OK);
    struct rig r;
    rig_open(&r, &(struct rig_options){.model = real_model(), .numerics = "f32", .kv = "f32", .threads = 2});
    size_t vocab = rig_vocab(&r);
    double worst = 0;
    for (size_t i = 0; i < 8; i++) {
        int32_t ids[IDS_MAX];
        size_t n = rig_ids(json_object_get(json_array_get(rows, i), "ids"), ids, IDS_MAX);
        float *logits = rig_logits(&r, ids, n, 0);
        const float *mine = logits + (n - 1) * vocab, *want = (const float *)(void *)golden.data + i * vocab;
        for (size_t k = 0; k < vocab; k++)
            worst = BASE_MAX(worst, fabs((double)mine[k] - (double)want[k]));
        free(logits);
    }
    print_message("SmolLM2 f32, all first logits: largest difference %.6f\n", worst);
    assert_true(worst < 0.006); /* a lone end-of-text token: the reference itself is 5e-3 off float64 */
    rig_close(&r);
    buf_done(&golden);
    free(path);
    json_decref(rows);
}

struct passage {
    int32_t ids[IDS_MAX];
    size_t count;
    json_t *json;
};

static void perplexity_row(const float *row, size_t vocab, int32_t next, double want, double *total,
                           double *worst)
{
    double p = (double)row[next] - logsumexp(row, vocab);
    *total += p;
    *worst = BASE_MAX(*worst, fabs(p - want));
}

static double kl(const float *p, const float *q, size_t n)
{
    double lp = logsumexp(p, n), lq = logsumexp(q, n), sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)p[i] - lp) * (((double)p[i] - lp) - ((double)q[i] - lq));
    return sum;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static float *passage_logits(struct passage *s, const char *numerics)
{
    struct rig r;
    bool f32 = strcmp(numerics, "f32") == 0;
    rig_open(&r, &(struct rig_options){.model = real_model(), .numerics = numerics, .kv = f32 ? "f32" : "f16",
                                       .threads = 2});
    float *logits = rig_logits(&r, s->ids, s->count, 0);
    rig_close(&r);
    return logits;
}

static void check_perplexity(struct passage *s, const float *logits, size_t vocab, double rel, double token_max,
                             const char *name)
{
    json_t *want = json_object_get(s->json, "per_token_logprob");
    double reference = json_number_value(json_object_get(s->json, "perplexity")), total = 0, worst = 0;
    for (size_t i = 0; i + 1 < s->count; i++)
        perplexity_row(logits + i * vocab, vocab, s->ids[i + 1], json_number_value(json_array_get(want, i)),
                       &total, &worst);
    double mine = exp(-total / (double)(s->count - 1)), off = mine / reference - 1;
    print_message("perplexity %s: %.4f (reference %.4f, %+.3f %%), largest change of one token %.4f\n", name,
                  mine, reference, 100 * off, worst);
    assert_true(fabs(off) <= rel);
    assert_true(worst <= token_max);
}

/* int8 against our own f32 program, which the reference pins down to 0.002 a token just before. */
static void check_divergence(const float *p, const float *q, size_t rows, size_t vocab)
{
    double *d = mem_array(rows, sizeof(*d)), mean = 0, squares = 0;
    size_t equal = 0;
    for (size_t i = 0; i < rows; i++) {
        d[i] = kl(p + i * vocab, q + i * vocab, vocab);
        mean += d[i] / (double)rows;
        equal += argmax(p + i * vocab, vocab) == argmax(q + i * vocab, vocab);
        for (size_t k = 0; k < vocab; k++) {
            double diff = (double)p[i * vocab + k] - (double)q[i * vocab + k];
            squares += diff * diff;
        }
    }
    qsort(d, rows, sizeof(*d), by_value);
    double rms = sqrt(squares / ((double)rows * (double)vocab)), p99 = d[(size_t)(0.99 * (double)rows)];
    double same = (double)equal / (double)rows;
    print_message("int8 against f32 over %zu positions: mean KL %.5f, p99 %.4f, RMS %.3f, best equal %.2f %%\n",
                  rows, mean, p99, rms, 100 * same);
    free(d);
    assert_true(mean <= 0.0036);
    assert_true(p99 <= 0.035);
    assert_true(rms <= 0.30);
    assert_true(same >= 0.96);
}

static void smollm2_perplexity(void **state)
{
    char *path = rig_fixture("golden/smollm2_perplexity.json");
    struct passage s = {0};
    if (real_model() == NULL || path == NULL)
        skip();
    s.json = json_load_file(path, 0, NULL);
    s.count = rig_ids(json_object_get(s.json, "ids"), s.ids, IDS_MAX);
    float *f32 = passage_logits(&s, "f32"), *int8 = passage_logits(&s, "int8");
    size_t vocab = 49152;
    check_perplexity(&s, f32, vocab, 0.005 / 20.4447, 0.002, "f32");
    check_perplexity(&s, int8, vocab, 0.009, 0.8, "int8");
    check_divergence(f32, int8, s.count - 1, vocab);
    free(f32);
    free(int8);
    json_decref(s.json);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_models_f32_scalar),   cmocka_unit_test(tiny_models_f32_interpreted),
        cmocka_unit_test(tiny_models_int8),         cmocka_unit_test(tiny_models_int8_unfused),
        cmocka_unit_test(tiny_adapters_f32),        cmocka_unit_test(tiny_adapters_int8),
        cmocka_unit_test(tiny_adapters_interpreted), cmocka_unit_test(smollm2_int8),
        cmocka_unit_test(smollm2_first_logits_f32), cmocka_unit_test(smollm2_perplexity),
        cmocka_unit_test(smollm2_f32_scalar),       cmocka_unit_test(smollm2_f32_interpreted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
