/* From logits to one token: penalties and bias, temperature, top-k, typical, top-p, min-p, one draw. The
 * random state is the sequence's own and moves by one draw per token, so a seed gives the same text alone
 * and in any batch. Candidates are cut with partial sorts: the common top-k 40 of 49,152 costs a scan. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "experts/grammar.h"
#include "experts/serve.h"

struct candidate {
    float logit, p, surprise;
    int32_t id;
};

struct sampler_scratch {
    uint32_t vocab;
    float *logits;               /* a copy where penalties or bias change them */
    struct candidate *candidate; /* [vocab] */
    uint32_t *count;             /* [vocab] occurrences in the history, zero between calls */
};

struct sampler_scratch *sampler_scratch_open(uint32_t vocab)
{
    struct sampler_scratch *s = mem_alloc(sizeof(*s));
    s->vocab = vocab;
    s->logits = mem_array(vocab, sizeof(*s->logits));
    s->candidate = mem_array(vocab, sizeof(*s->candidate));
    s->count = mem_array(vocab, sizeof(*s->count));
    return s;
}

void sampler_scratch_close(struct sampler_scratch **sp)
{
    struct sampler_scratch *s = *sp;
    if (s == NULL)
        return;
    free(s->logits);
    free(s->candidate);
    free(s->count);
    free(s);
    *sp = NULL;
}

void sampling_init(struct sampling *s)
{
    *s = (struct sampling){.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
}

static bool changes_logits(const struct sequence *s)
{
    const struct sampling *p = &s->sampling;
    return p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0 ||
           p->bias_count > 0 || p->ignore_eos || p->min_tokens > 0 || s->grammar != NULL;
}

static void ban_end_tokens(const struct sequence *s, float *logits, uint32_t vocab)
{
    const struct tokenizer *t = s->expert->base->tokenizer;
    for (uint32_t i = 0; i < vocab; i++)
        if (tokenizer_is_eog(t, (int32_t)i))
            logits[i] = -INFINITY;
}

/* Last of all changes, so that no bias brings back what the grammar forbids. */
static void ban_unfitting(const struct sequence *s, float *logits, uint32_t vocab)
{
    uint32_t known = (uint32_t)tokenizer_vocab(s->expert->base->tokenizer), count;
    uint32_t left = s->max_tokens - (uint32_t)(s->tokens_count - s->prompt_count);
    /* Towards the limit only what can still be completed may come, this token and the end token aside by a
     * token for each byte: half a JSON object is of no use to anyone. */
    const uint32_t *bits = grammar_mask_within(s->grammar, left > 2 ? left - 2 : 0, &count);
    for (uint32_t i = 0; i < vocab; i++)
        if (i >= known || !(bits[i / 32] >> (i % 32) & 1))
            logits[i] = -INFINITY;
}

/* Repetition: divide or multiply, over prompt and answer (Keskar et al. 2019, 4.1); frequency and
 * presence: subtract, over the answer only, as the OpenAI API defines them. */
static void penalise(const struct sequence *s, float *logits)
{
    const struct sampling *p = &s->sampling;
    uint32_t *count = s->scratch->count;
    for (size_t i = 0; i < s->tokens_count; i++) {
        int32_t id = s->tokens[i];
        if (p->repetition_penalty != 1 && count[id] == 0)
            logits[id] = logits[id] > 0 ? logits[id] / p->repetition_penalty
                                        : logits[id] * p->repetition_penalty;
        count[id]++;
    }
    memset(count, 0, sizeof(*count) * s->scratch->vocab);
    for (size_t i = s->prompt_count; i < s->tokens_count; i++)
        count[s->tokens[i]]++;
    for (size_t i = s->prompt_count; i < s->tokens_count; i++) {
        int32_t id = s->tokens[i];
        if (count[id])
            logits[id] -= (float)count[id] * p->frequency_penalty + p->presence_penalty;
        count[id] = 0;
    }
}

static const float *adjusted(struct sequence *s, const float *logits, uint32_t vocab)
{
    const struct sampling *p = &s->sampling;
    if (!changes_logits(s))
        return logits;
    float *mine = s->scratch->logits;
    memcpy(mine, logits, vocab * sizeof(float));
    if (p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0)
        penalise(s, mine);
    for (size_t i = 0; i < p->bias_count; i++)
        if (p->bias[i].id >= 0 && (uint32_t)p->bias[i].id < vocab)
            mine[p->bias[i].id] += p->bias[i].bias;
    if (p->ignore_eos || s->tokens_count - s->prompt_count < p->min_tokens)
        ban_end_tokens(s, mine, vocab);
    if (s->grammar != NULL)
        ban_unfitting(s, mine, vocab);
    return mine;
}

static int32_t argmax(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return (int32_t)best;
}

/* A total order, ties by rising id, so that results do not depend on how it is sorted. */
typedef bool candidate_order(const struct candidate *a, const struct candidate *b);

static bool by_logit(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static bool by_surprise(const struct candidate *a, const struct candidate *b)
{
    return a->surprise < b->surprise || (a->surprise == b->surprise && a->id < b->id);
}

static void swap(struct candidate *c, size_t i, size_t j)
{
    struct candidate t = c[i];
    c[i] = c[j];
    c[j] = t;
}

static void sift_down(struct candidate *c, size_t root, size_t n, candidate_order *before)
{
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && before(&c[child], &c[child + 1]))
            child++;
        if (!before(&c[root], &c[child]))
            return;
        swap(c, root, child);
    }
}

/* In place: the C library's qsort takes memory for what is longer than a kilobyte. */
static void sort(struct candidate *c, size_t n, candidate_order *before)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(c, i, n, before);
    for (size_t i = n; i-- > 1;) {
        swap(c, 0, i);
        sift_down(c, 0, i, before);
    }
}

/* The first k of n candidates to the front, in order: Hoare's selection, then a sort of the k. */
static void select_first(struct candidate *c, size_t n, size_t k, candidate_order *before)
{
    ptrdiff_t lo = 0, hi = (ptrdiff_t)n - 1, nth = (ptrdiff_t)k - 1;
    while (lo < hi) {
        struct candidate pivot = c[lo + (hi - lo) / 2];
        ptrdiff_t i = lo, j = hi;
        while (i <= j) {
            while (before(&c[i], &pivot))
                i++;
            while (before(&pivot, &c[j]))
                j--;
            if (i <= j)
                swap(c, (size_t)i++, (size_t)j--);
        }
        if (nth <= j)
            hi = j;
        else if (nth >= i)
            lo = i;
        else
            break;
    }
    sort(c, BASE_MIN(k, n), before);
}

static void softmax(struct candidate *c, size_t n, float best, float temperature)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        c[i].p = expf((c[i].logit - best) / temperature);
        sum += (double)c[i].p;
    }
    for (size_t i = 0; i < n; i++)
        c[i].p = (float)((double)c[i].p / sum);
}

/* How many of the first `sorted` candidates are kept until their mass is reached, or one is below min_p of
 * the first. `sorted` itself when they do not decide it. */
static size_t keep_mass(const struct candidate *c, size_t sorted, double mass, float min_p)
{
    double sum = 0;
    for (size_t i = 0; i < sorted; i++) {
        if (i > 0 && c[i].p < min_p * c[0].p)
            return i;
        sum += (double)c[i].p;
        if (sum >= mass)
            return i + 1;
    }
    return sorted;
}

/* The same over all n, of which as few are sorted as decide it: a whole vocabulary takes longer to sort than
 * a small model takes to compute it. */
#define SORTED_FIRST 64
static size_t keep_first(struct candidate *c, size_t n, candidate_order *before, double mass, float min_p)
{
    for (size_t k = SORTED_FIRST;; k *= 8) {
        size_t sorted = BASE_MIN(k, n);
        select_first(c, n, sorted, before);
        size_t kept = keep_mass(c, sorted, mass, min_p);
        if (kept < sorted || sorted == n)
            return kept;
    }
}

/* Locally typical sampling (Meister et al. 2022): keep what is closest to the entropy. */
static size_t keep_typical(struct candidate *c, size_t n, float mass)
{
    float entropy = 0;
    for (size_t i = 0; i < n; i++)
        if (c[i].p > 0)
            entropy -= c[i].p * logf(c[i].p);
    for (size_t i = 0; i < n; i++)
        c[i].surprise = fabsf(-logf(BASE_MAX(c[i].p, 1e-30f)) - entropy);
    return keep_first(c, n, by_surprise, (double)mass, 0);
}

static double total_of(const struct candidate *c, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)c[i].p;
    return sum;
}

static int32_t draw(struct sequence *s, const struct candidate *c, size_t n)
{
    double at = rng_f64(&s->rng) * total_of(c, n);
    for (size_t i = 0; i < n; i++) {
        at -= (double)c[i].p;
        if (at < 0)
            return c[i].id;
    }
    return c[n - 1].id;
}

/* Each filter works on what the one before it left, as if that were everything. */
static int32_t sample_random(struct sequence *s, const float *logits, uint32_t vocab)
{
    const struct sampling *p = &s->sampling;
    struct candidate *c = s->scratch->candidate;
    size_t n = 0, top_k = p->top_k > 0 ? (size_t)p->top_k : vocab;
    /* What is 20 temperatures below the best has no mass a float could see. */
    float best = logits[argmax(logits, vocab)], floor_logit = best - 20 * p->temperature;
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] >= floor_logit)
            c[n++] = (struct candidate){.logit = logits[i], .id = (int32_t)i};
    if (n == 0) /* every logit is not a number */
        return argmax(logits, vocab);
    if (top_k < n) {
        select_first(c, n, top_k, by_logit);
        n = top_k;
    }
    softmax(c, n, best, p->temperature);
    if (p->typical_p < 1 && p->typical_p > 0)
        n = keep_typical(c, n, p->typical_p);
    if (p->top_p < 1 || p->min_p > 0) {
        double mass = p->top_p < 1 ? (double)p->top_p * total_of(c, n) : (double)INFINITY;
        n = keep_first(c, n, by_logit, mass, p->min_p);
    }
    return draw(s, c, n);
}

/* `top` is sorted; the last one falls out when it is full. Most rows' tokens end at the first comparison. */
static uint32_t insert_top(struct token_logprob *top, uint32_t count, uint32_t want, int32_t id, float logit)
{
    uint32_t at = count < want ? count : want - 1;
    if (count == want && !(logit > top[at].logprob))
        return count;
    for (; at > 0 && logit > top[at - 1].logprob; at--)
        top[at] = top[at - 1];
    top[at] = (struct token_logprob){id, logit};
    return BASE_MIN(count + 1, want);
}

uint32_t sample_logprobs(const float *logits, uint32_t vocab, int32_t id, uint32_t want, float *ret_logprob,
                         struct token_logprob *ret_top)
{
    float best = logits[argmax(logits, vocab)];
    double sum = 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)(logits[i] - best));
    double lse = (double)best + log(sum);
    *ret_logprob = (float)((double)logits[id] - lse);
    for (uint32_t i = 0; want > 0 && i < vocab; i++)
        if (!isnan(logits[i]))
            count = insert_top(ret_top, count, want, (int32_t)i, logits[i]);
    for (uint32_t i = 0; i < count; i++)
        ret_top[i].logprob = (float)((double)ret_top[i].logprob - lse);
    return count;
}

/* Log-probabilities are the model's own (before penalties and temperature), as the API reports them. */
static void note_logprobs(struct sequence *s, const float *logits, uint32_t vocab, int32_t chosen)
{
    uint32_t want = s->logprobs == 255 ? 0 : BASE_MIN(s->logprobs, (uint32_t)BASE_COUNT(s->top));
    s->top_count = sample_logprobs(logits, vocab, chosen, want, &s->chosen_logprob, s->top);
}

/* Nothing may be chosen: the grammar is complete but end tokens were banned, or the vocabulary cannot spell
 * what must come. The answer ends here. */
static int32_t end_stuck(struct sequence *s)
{
    int32_t end = tokenizer_eos(s->expert->base->tokenizer);
    s->grammar_stuck = true;
    return end >= 0 ? end : 0;
}

static int32_t sample_fitting(struct sequence *s, const float *logits, uint32_t vocab)
{
    int32_t id = argmax(logits, vocab);
    if (!isfinite(logits[id]))
        return end_stuck(s);
    if (s->sampling.temperature > 0)
        id = sample_random(s, logits, vocab);
    return grammar_accept(s->grammar, id) ? id : end_stuck(s);
}

int32_t sample_token(struct sequence *s, const float *logits, uint32_t vocab)
{
    const float *mine = adjusted(s, logits, vocab);
    int32_t id;
    if (s->grammar != NULL)
        id = sample_fitting(s, mine, vocab);
    else
        id = s->sampling.temperature <= 0 ? argmax(mine, vocab) : sample_random(s, mine, vocab);
    if (s->logprobs)
        note_logprobs(s, logits, vocab, id);
    return id;
}
