/* Sampling against a straightforward double implementation: which tokens each filter leaves and how often
 * they come; ties, penalties, bias, seeds, log-probabilities. */
#include "tests/unit/experts/unit.h"

#include <math.h>

#include "experts/serve.h"

#define VOCAB_MAX 3000

struct rig {
    struct sequence seq;
    int32_t tokens[64];
    float logits[VOCAB_MAX];
    uint32_t vocab;
};

static void rig_open(struct rig *r, uint32_t vocab)
{
    *r = (struct rig){.vocab = vocab};
    r->seq.tokens = r->tokens;
    r->seq.scratch = sampler_scratch_open(vocab);
    sampling_init(&r->seq.sampling);
}

static void rig_close(struct rig *r)
{
    sampler_scratch_close(&r->seq.scratch);
}

static int32_t sample(struct rig *r)
{
    int32_t id = sample_token(&r->seq, r->logits, r->vocab);
    assert_in_range(id, 0, r->vocab - 1);
    return id;
}

static void fill(struct rig *r, struct rng *rng, double spread)
{
    for (uint32_t i = 0; i < r->vocab; i++)
        r->logits[i] = (float)(spread * (rng_f64(rng) + rng_f64(rng) + rng_f64(rng) - 1.5));
}

/* ---- the reference ---------------------------------------------------------------------------------------- */

struct ref {
    double logit, p, key;
    int32_t id;
};

static int by_key(const void *a, const void *b)
{
    const struct ref *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->id - y->id;
}

static void normalise(struct ref *r, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += r[i].p;
    for (size_t i = 0; i < n; i++)
        r[i].p /= sum;
}

static size_t cut_mass(struct ref *r, size_t n, double mass)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        if ((sum += r[i].p) >= mass)
            return i + 1;
    return n;
}

static void sort_likely(struct ref *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        r[i].key = -r[i].logit;
    qsort(r, n, sizeof(*r), by_key);
}

/* Probability of each token [vocab]. */
static void reference(const struct rig *t, double *ret)
{
    static struct ref r[VOCAB_MAX];
    const struct sampling *s = &t->seq.sampling;
    size_t n = t->vocab;
    for (uint32_t i = 0; i < t->vocab; i++)
        r[i] = (struct ref){.logit = (double)t->logits[i], .id = (int32_t)i};
    sort_likely(r, n);
    if (s->top_k > 0)
        n = BASE_MIN(n, (size_t)s->top_k);
    for (size_t i = 0; i < n; i++)
        r[i].p = exp((r[i].logit - r[0].logit) / (double)s->temperature);
    normalise(r, n);
    if (s->typical_p < 1) {
        double entropy = 0;
        for (size_t i = 0; i < n; i++)
            entropy -= r[i].p * log(r[i].p);
        for (size_t i = 0; i < n; i++)
            r[i].key = fabs(-log(r[i].p) - entropy);
        qsort(r, n, sizeof(*r), by_key);
        n = cut_mass(r, n, (double)s->typical_p);
        normalise(r, n);
        sort_likely(r, n);
    }
    if (s->top_p < 1)
        n = cut_mass(r, n, (double)s->top_p);
    for (size_t i = 1; i < n; i++)
        if (r[i].p < (double)s->min_p * r[0].p)
            n = i;
    normalise(r, n);
    memset(ret, 0, t->vocab * sizeof(*ret));
    for (size_t i = 0; i < n; i++)
        ret[r[i].id] = r[i].p;
}

static void compare(struct rig *r, uint32_t draws)
{
    static double want[VOCAB_MAX];
    static uint32_t got[VOCAB_MAX];
    memset(got, 0, sizeof(got));
    reference(r, want);
    for (uint32_t i = 0; i < draws; i++)
        got[sample(r)]++;
    for (uint32_t i = 0; i < r->vocab; i++) {
        double mean = want[i] * draws, off = 6 * sqrt(mean * (1 - want[i])) + 1;
        if ((want[i] <= 0 && got[i] > 0) || fabs(got[i] - mean) > off)
            fail_msg("token %u came %u times of %u, expected %.1f +- %.1f", i, got[i], draws, mean, off);
    }
}

/* ---- tests ------------------------------------------------------------------------------------------------- */

static void filters_leave_what_the_reference_leaves(void **state)
{
    static const struct {
        uint32_t vocab;
        float temperature, top_p, min_p, typical_p;
        int32_t top_k;
    } cases[] = {
        {40, 1, 1, 0, 1, 0},          {40, 0.5f, 1, 0, 1, 0},      {40, 2, 1, 0, 1, 0},
        {40, 1, 1, 0, 1, 7},          {40, 1, 1, 0, 1, 1},         {40, 1, 1, 0, 1, 400},
        {40, 1, 0.5f, 0, 1, 0},       {40, 1, 0.9f, 0, 1, 0},      {40, 1, 0, 0, 1, 0},
        {40, 1, 1, 0.1f, 1, 0},       {40, 1, 1, 0, 0.6f, 0},      {40, 1, 0.8f, 0.05f, 0.9f, 20},
        {1, 1, 0.5f, 0.5f, 0.5f, 1},  {2, 1, 0.99f, 0, 1, 0},      {3000, 1, 0.95f, 0, 1, 0},
        {3000, 1, 1, 0.2f, 1, 0},     {3000, 0.7f, 0.9f, 0, 1, 0}, {3000, 1, 1, 0, 0.5f, 0},
        {3000, 1, 0.9f, 0, 0.8f, 70}, {3000, 1, 1, 0, 1, 64},      {3000, 1, 1, 0, 1, 65},
    };
    const uint64_t seed = 1; /* fixed: a mass that ends within a float's rounding may go either way */
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct rig r;
        struct rng rng;
        rig_open(&r, cases[i].vocab);
        rng_init(&rng, seed + i);
        rng_init(&r.seq.rng, seed * 31 + i);
        fill(&r, &rng, r.vocab > 1000 ? 1 : 3);
        struct sampling *s = &r.seq.sampling;
        s->temperature = cases[i].temperature;
        s->top_p = cases[i].top_p;
        s->min_p = cases[i].min_p;
        s->typical_p = cases[i].typical_p;
        s->top_k = cases[i].top_k;
        compare(&r, r.vocab > 1000 ? 4000 : 8000);
        rig_close(&r);
    }
}

static void greedy_takes_the_lowest_id_of_equals(void **state)
{
    struct rig r;
    rig_open(&r, 50);
    r.seq.sampling.temperature = 0;
    r.logits[7] = r.logits[8] = r.logits[49] = 2;
    assert_int_equal(sample(&r), 7);
    /* And a filter that keeps one of equals keeps the lowest too. */
    r.seq.sampling.temperature = 1;
    r.seq.sampling.top_k = 1;
    assert_int_equal(sample(&r), 7);
    r.seq.sampling.top_k = 0;
    r.seq.sampling.top_p = 0;
    assert_int_equal(sample(&r), 7);
    rig_close(&r);
}

static void logits_that_are_not_numbers_still_give_a_token(void **state)
{
    const float odd[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < BASE_COUNT(odd); k++)
        for (int some = 0; some < 2; some++) {
            struct rig r;
            rig_open(&r, 100);
            for (uint32_t i = some ? 50 : 0; i < r.vocab; i++)
                r.logits[i] = odd[k];
            r.seq.logprobs = 20;
            sample(&r);
            r.seq.sampling.top_p = 0.5f;
            r.seq.sampling.typical_p = 0.5f;
            r.seq.sampling.top_k = 30;
            sample(&r);
            r.seq.sampling.temperature = 0;
            sample(&r);
            rig_close(&r);
        }
}

static void penalties_and_bias_move_logits_as_defined(void **state)
{
    struct rig r;
    rig_open(&r, 10);
    struct sampling *s = &r.seq.sampling;
    s->temperature = 0;
    r.logits[1] = 4; /* in the prompt */
    r.logits[2] = 3; /* twice in the answer */
    r.logits[3] = 2.5f; /* once in the answer */
    r.logits[4] = 1;
    memcpy(r.tokens, (int32_t[]){1, 1, 2, 3, 2}, 5 * sizeof(int32_t));
    r.seq.tokens_count = 5;
    r.seq.prompt_count = 2;
    assert_int_equal(sample(&r), 1);
    s->repetition_penalty = 5; /* once, however often it occurred: 0.8, 0.6, 0.5, 1 */
    assert_int_equal(sample(&r), 4);
    s->repetition_penalty = 1;
    r.logits[1] = 0;
    s->frequency_penalty = 0.6f; /* 3 - 1.2 < 2.5 - 0.6 */
    assert_int_equal(sample(&r), 3);
    s->frequency_penalty = 0;
    s->presence_penalty = 1.6f; /* 1.4, 0.9, 1: the prompt is not the answer */
    assert_int_equal(sample(&r), 2);
    s->presence_penalty = 2.2f;
    assert_int_equal(sample(&r), 4);
    s->presence_penalty = 0;
    const struct logit_bias bias[] = {{2, -100}, {9, 100}, {-1, 100}, {10, 100}};
    s->bias = bias;
    s->bias_count = 4;
    assert_int_equal(sample(&r), 9);
    s->bias_count = 1;
    assert_int_equal(sample(&r), 3);
    /* Negative logits move away from zero too. */
    s->bias_count = 0;
    for (int i = 0; i < 10; i++)
        r.logits[i] = -9;
    r.logits[1] = -1;
    r.logits[5] = -1.5f;
    s->repetition_penalty = 2;
    assert_int_equal(sample(&r), 5);
    rig_close(&r);
}

static void a_seed_gives_the_same_tokens_beside_others(void **state)
{
    struct rig a, b, other;
    struct rng rng;
    uint32_t differ = 0;
    rig_open(&a, 200);
    rig_open(&b, 200);
    rig_open(&other, 200);
    rng_init(&rng, 5);
    rng_init(&a.seq.rng, 42);
    rng_init(&b.seq.rng, 42);
    rng_init(&other.seq.rng, 43);
    b.seq.logprobs = 5; /* looking does not change what is drawn */
    for (int i = 0; i < 200; i++) {
        fill(&a, &rng, 2);
        memcpy(b.logits, a.logits, sizeof(a.logits));
        memcpy(other.logits, a.logits, sizeof(a.logits));
        int32_t id = sample(&a);
        differ += sample(&other) != id;
        assert_int_equal(sample(&b), id);
    }
    assert_true(differ > 100);
    rig_close(&a);
    rig_close(&b);
    rig_close(&other);
}

static void log_probabilities_are_the_models_own(void **state)
{
    struct rig r;
    struct rng rng;
    rig_open(&r, 500);
    rng_init(&rng, 11);
    fill(&r, &rng, 0.2);
    r.logits[300] = r.logits[20] = r.logits[21] = 0.5f;
    r.logits[400] = nextafterf(0.5f, 1); /* differs by less than a log-probability can show */
    r.seq.sampling.temperature = 0.3f; /* neither it nor the bias shows */
    const struct logit_bias bias = {77, 100};
    r.seq.sampling.bias = &bias;
    r.seq.sampling.bias_count = 1;
    r.seq.logprobs = 20;
    double sum = 0;
    for (uint32_t i = 0; i < r.vocab; i++)
        sum += exp((double)r.logits[i]);
    assert_int_equal(sample(&r), 77);
    assert_true(fabs((double)r.seq.chosen_logprob - ((double)r.logits[77] - log(sum))) < 1e-5);
    assert_int_equal(r.seq.top_count, 20);
    const int32_t first[] = {400, 20, 21, 300};
    for (uint32_t i = 0; i < 20; i++) {
        const struct token_logprob *t = &r.seq.top[i];
        if (i < 4)
            assert_int_equal(t->id, first[i]);
        assert_true(fabs((double)t->logprob - ((double)r.logits[t->id] - log(sum))) < 1e-5);
        assert_true(i == 0 || r.logits[t->id] <= r.logits[r.seq.top[i - 1].id]);
    }
    r.seq.logprobs = 255;
    sample(&r);
    assert_int_equal(r.seq.top_count, 0);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(filters_leave_what_the_reference_leaves),
        cmocka_unit_test(greedy_takes_the_lowest_id_of_equals),
        cmocka_unit_test(logits_that_are_not_numbers_still_give_a_token),
        cmocka_unit_test(penalties_and_bias_move_logits_as_defined),
        cmocka_unit_test(a_seed_gives_the_same_tokens_beside_others),
        cmocka_unit_test(log_probabilities_are_the_models_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
