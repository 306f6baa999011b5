/* Sequences: the tokens of one generation, its KV pages, its sampler state. Pages are taken as the tokens come,
 * so that what may be long does not cost what is long; who finds no room waits, or gives its pages back and
 * computes them again later (sequence_yield), which nobody can see in its tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "experts/grammar.h"
#include "experts/serve.h"

static size_t page_bytes_of(const struct experts *x, const struct expert *ex)
{
    uint32_t kv_heads, head_dim;
    rdu_program_kv(ex->base->program, &kv_heads, &head_dim);
    return rdu_kv_page_bytes(kv_type_of(x->opt.kv_type), ex->base->set->shape.layers, kv_heads, head_dim,
                             x->opt.kv_page_tokens);
}

static uint32_t pages_for(const struct experts *x, size_t tokens)
{
    return (uint32_t)((tokens + x->opt.kv_page_tokens - 1) / x->opt.kv_page_tokens);
}

uint64_t experts_kv_bytes(const struct experts *x, const struct expert *ex, size_t tokens)
{
    return pages_for(x, tokens) * memtier_footprint(page_bytes_of(x, ex));
}

enum err_code experts_check_fit(const struct experts *x, const struct expert *ex, size_t prompt_tokens,
                                uint32_t max_tokens, struct err *e)
{
    struct memtier_stats st;
    if (prompt_tokens == 0)
        return err_set(e, ERR_INVALID, "the prompt has no tokens");
    size_t need = prompt_tokens + max_tokens;
    if (need > expert_context(ex))
        return err_set(e, ERR_CONTEXT, "%zu prompt tokens and %u more exceed the context of %u tokens",
                       prompt_tokens, max_tokens, expert_context(ex));
    uint64_t kv = experts_kv_bytes(x, ex, need);
    memtier_stats(x->opt.memtier, &st);
    if (kv + expert_footprint(ex) <= st.hbm_budget)
        return ERR_OK;
    return err_set(e, ERR_NO_MEMORY,
                   "%llu bytes of KV cache and %llu of weights exceed tiers.hbm of %llu bytes; ask for fewer "
                   "tokens or raise the budget",
                   (unsigned long long)kv, (unsigned long long)expert_footprint(ex),
                   (unsigned long long)st.hbm_budget);
}

/* The trie of a vocabulary takes about as long as a few tokens do: it is made for the first who needs it. */
static void constrain(struct sequence *s, const struct grammar *grammar)
{
    struct base *base = s->expert->base;
    if (base->vocab_trie == NULL)
        base->vocab_trie = grammar_vocab_open(base->tokenizer);
    s->grammar = grammar_state_open(grammar, base->vocab_trie);
}

/* ---- pages --------------------------------------------------------------------------------------------- */

/* What all chains of an expert begin with: experts of equal weights and adapters share their pages. */
static struct hash128 root_of(const struct expert *ex)
{
    char text[1024];
    size_t at = (size_t)snprintf(text, sizeof(text), "%s", ex->base->set_name);
    for (uint32_t i = 0; i < ex->adapters_count; i++)
        at += (size_t)snprintf(text + BASE_MIN(at, sizeof(text)), sizeof(text) - BASE_MIN(at, sizeof(text)),
                               " %s*%a", ex->adapters[i]->set_name, ex->adapters[i]->expert_scale);
    return hash128_of(text, BASE_MIN(at, sizeof(text)), 0);
}

/* Records for all pages it may take, as far as the pool could hold them. */
static void open_pages(struct sequence *s, uint32_t cap)
{
    struct experts *x = s->owner;
    struct memtier_stats st;
    memtier_stats(x->opt.memtier, &st);
    s->pages_cap = cap;
    s->kv = mem_array(BASE_MAX(cap, 1u), sizeof(struct kv_page *));
    s->pages = mem_array(BASE_MAX(cap, 1u), sizeof(void *));
    s->draft_hits = 0.6f;
    s->root = s->chain = root_of(s->expert);
    x->pages_wanted += cap;
    kv_expect(x->kv, BASE_MIN(x->pages_wanted, (size_t)(st.hbm_budget / memtier_footprint(s->page_bytes)) + 1));
}

static bool push_page(struct sequence *s, struct kv_page *p)
{
    if (p == NULL)
        return false;
    s->kv[s->pages_count] = p;
    s->pages[s->pages_count++] = kv_page_data(s->owner->kv, p);
    return true;
}

enum err_code sequence_grow(struct sequence *s, uint32_t n, struct err *e)
{
    uint32_t need = pages_for(s->owner, s->run_count + n), had = s->pages_count;
    while (s->pages_count < need && push_page(s, kv_page_open(s->owner->kv, s->page_bytes)))
        ;
    if (s->pages_count >= need)
        return ERR_OK;
    while (s->pages_count > had)
        kv_page_unref(s->owner->kv, s->kv[--s->pages_count]);
    return err_set_param(e, ERR_BUSY, "kv", "no room for %u KV pages of %zu bytes now", need - had, s->page_bytes);
}

/* The page after the named ones gets its name, with the `count` tokens that are in it. */
static void name_page(struct sequence *s, uint32_t count)
{
    struct experts *x = s->owner;
    uint32_t i = s->named;
    const struct kv_name n = {.parent = s->chain, .tokens = s->tokens + (size_t)i * x->opt.kv_page_tokens,
                              .count = count, .depth = i,
                              .remake_seconds = count * (x->token_seconds > 0 ? x->token_seconds : 1e-3)};
    s->kv[i] = kv_page_name(x->kv, s->kv[i], &n);
    s->pages[i] = kv_page_data(x->kv, s->kv[i]);
    s->chain = s->kv[i]->name;
}

void sequence_advance(struct sequence *s, uint32_t n)
{
    s->run_count += n;
    for (; (size_t)(s->named + 1) * s->owner->opt.kv_page_tokens <= s->run_count; s->named++)
        if (s->cache)
            name_page(s, s->owner->opt.kv_page_tokens);
}

/* The last page is left to whoever goes on from here: the next turn of a conversation does. */
static void give_pages(struct sequence *s)
{
    uint32_t rest = (uint32_t)(s->run_count % s->owner->opt.kv_page_tokens);
    if (s->cache && rest > 0 && s->named < s->pages_count)
        name_page(s, rest);
    while (s->pages_count > 0)
        kv_page_unref(s->owner->kv, s->kv[--s->pages_count]);
    s->run_count = 0;
    s->named = 0;
    s->chain = s->root;
}

void sequence_yield(struct sequence *s)
{
    give_pages(s);
    s->yielded = true;
}

/* `count` positions of `from` into a page of our own; false = no room. */
static bool copy_page(struct sequence *s, const struct kv_page *from, uint32_t count)
{
    struct kv_cache *kv = s->owner->kv;
    if (!push_page(s, kv_page_open(kv, s->page_bytes)))
        return false;
    memcpy(s->pages[s->pages_count - 1], kv_page_data(kv, from), s->page_bytes);
    s->run_count += count;
    return true;
}

static void adopt_whole_pages(struct sequence *s)
{
    uint32_t page_tokens = s->owner->opt.kv_page_tokens;
    while (s->tokens_count - s->run_count > page_tokens &&
           push_page(s, kv_find(s->owner->kv, s->chain, s->tokens + s->run_count))) {
        s->chain = s->kv[s->named++]->name;
        s->run_count += page_tokens;
    }
}

static void adopt_part(struct sequence *s)
{
    uint32_t count, most = (uint32_t)BASE_MIN(s->tokens_count - s->run_count - 1,
                                              (size_t)s->owner->opt.kv_page_tokens);
    struct kv_page *p = kv_find_longest(s->owner->kv, s->chain, s->tokens + s->run_count, most, &count);
    if (p == NULL)
        return;
    (void)copy_page(s, p, count);
    kv_page_unref(s->owner->kv, p);
    sequence_advance(s, 0); /* it may have been a whole one */
}

static size_t note_cached(struct sequence *s, size_t before)
{
    size_t n = s->run_count - before;
    if (!s->yielded)
        s->cached_count += n;
    return n;
}

/* A page that was begun is finished first: what is in it would have to be moved. */
size_t sequence_adopt(struct sequence *s)
{
    size_t before = s->run_count;
    if (!s->cache || s->busy || s->tokens_count - s->run_count < 2 ||
        s->run_count != (size_t)s->named * s->owner->opt.kv_page_tokens)
        return 0;
    while (s->pages_count > s->named) /* taken for a step that was given up */
        kv_page_unref(s->owner->kv, s->kv[--s->pages_count]);
    adopt_whole_pages(s);
    adopt_part(s);
    return note_cached(s, before);
}

static size_t pages_ahead(const struct sequence *s)
{
    return (s->tokens_count - s->run_count - 1) / s->owner->opt.kv_page_tokens;
}

void sequence_fetch(struct sequence *s, uint64_t now_ns, struct memtier_lease **ret)
{
    struct experts *x = s->owner;
    size_t count = pages_ahead(s), away = 0;
    if (!s->cache || count == 0 || s->run_count != (size_t)s->named * x->opt.kv_page_tokens)
        return;
    uint32_t *pages = mem_array(count, sizeof(*pages));
    count = kv_list_chain(x->kv, s->chain, s->tokens + s->run_count, count, pages, &away);
    double rate = memtier_load_rate(x->opt.memtier);
    double read_s = rate > 0 ? (double)(away * s->page_bytes) / rate : 0;
    double make_s = (double)(away * x->opt.kv_page_tokens) * x->token_seconds;
    /* Refused for lack of room: then it is computed, page by page. */
    if (away > 0 && (make_s <= 0 || read_s < make_s))
        (void)!memtier_reserve(x->opt.memtier, pages, count, now_ns, ret, NULL);
    free(pages);
}

void sequence_fetch_failed(struct sequence *s)
{
    kv_forget_away(s->owner->kv, s->chain, s->tokens + s->run_count, pages_ahead(s));
}

size_t sequence_fork(struct sequence *s, const struct sequence *from)
{
    uint32_t page_tokens = s->owner->opt.kv_page_tokens;
    size_t n = 0, most = BASE_MIN(s->tokens_count - 1, from->run_count);
    if (s->run_count > 0 || s->expert != from->expert)
        return 0;
    while (n < most && s->tokens[n] == from->tokens[n])
        n++;
    for (; s->named < n / page_tokens; s->named++) {
        kv_page_ref(s->owner->kv, from->kv[s->named]);
        push_page(s, from->kv[s->named]);
        s->run_count += page_tokens;
        if (s->cache && s->kv[s->named]->count == 0) /* a scored prompt's pages have no names */
            name_page(s, page_tokens);
        else if (s->cache)
            s->chain = s->kv[s->named]->name;
    }
    if (n % page_tokens > 0)
        (void)copy_page(s, from->kv[s->named], (uint32_t)(n % page_tokens));
    return note_cached(s, 0);
}

bool sequence_shares_next_page(const struct sequence *s, const struct sequence *ahead)
{
    size_t end = s->run_count + s->owner->opt.kv_page_tokens;
    return s->cache && ahead->cache && s->run_count == (size_t)s->named * s->owner->opt.kv_page_tokens &&
           end < s->tokens_count && end <= ahead->tokens_count && ahead->run_count < end &&
           hash128_equal(s->root, ahead->root) && memcmp(s->tokens, ahead->tokens, end * sizeof(*s->tokens)) == 0;
}

size_t sequence_cached(const struct sequence *s)
{
    return s->cached_count;
}

/* ---- guessing ahead -------------------------------------------------------------------------------------- */

#define DRAFT_NGRAM 3
#define DRAFT_REACH 4096   /* tokens looked back over */
#define DRAFT_PAUSE 48     /* tokens without guesses after bad ones */
#define DRAFT_WORTH 0.35f  /* share of right guesses below which checking costs more than it saves */

/* Where the last DRAFT_NGRAM tokens occurred before, the latest first; 0 = nowhere. The end of the match. */
static size_t find_ngram(const struct sequence *s)
{
    size_t n = s->tokens_count, from = n > DRAFT_REACH ? n - DRAFT_REACH : 0;
    const int32_t *tail = s->tokens + n - DRAFT_NGRAM;
    for (size_t at = n - 1; at >= from + DRAFT_NGRAM; at--)
        if (s->tokens[at - 1] == tail[2] && s->tokens[at - 2] == tail[1] && s->tokens[at - 3] == tail[0])
            return at;
    return 0;
}

uint32_t sequence_draft(struct sequence *s, uint32_t most)
{
    s->draft_count = 0;
    if (s->draft_pause > 0) {
        s->draft_pause--;
        return 0;
    }
    if (s->logprobs || s->tokens_count <= DRAFT_NGRAM || sequence_generated(s) == 0)
        return 0;
    size_t left = s->max_tokens - BASE_MIN(sequence_generated(s), (size_t)s->max_tokens);
    size_t at = find_ngram(s);
    most = (uint32_t)BASE_MIN(BASE_MIN(most, SEQUENCE_DRAFT_MAX), left > 0 ? left - 1 : 0);
    while (at > 0 && s->draft_count < most && at < s->tokens_count)
        s->draft[s->draft_count++] = s->tokens[at++];
    return s->draft_count;
}

void sequence_note_draft(struct sequence *s, uint32_t drafted, uint32_t accepted)
{
    s->draft_hits = 0.75f * s->draft_hits + 0.25f * (float)accepted / (float)drafted;
    if (s->draft_hits < DRAFT_WORTH) {
        s->draft_pause = DRAFT_PAUSE;
        s->draft_hits = 0.5f; /* two good tries and it goes on */
    }
}

/* ---- opening and closing -------------------------------------------------------------------------------- */

enum err_code sequence_open(struct experts *x, const struct sequence_options *opt, struct sequence **ret,
                            struct err *e)
{
    if (!expert_ok(opt->expert, e))
        return e ? e->code : ERR_INTERNAL;
    size_t need = opt->tokens_count + opt->max_tokens;
    enum err_code code = experts_check_fit(x, opt->expert, opt->tokens_count, opt->max_tokens, e);
    if (code != ERR_OK)
        return code;
    int32_t vocab = tokenizer_vocab(opt->expert->base->tokenizer);
    for (size_t i = 0; i < opt->tokens_count; i++)
        if (opt->tokens[i] < 0 || opt->tokens[i] >= vocab)
            return err_set(e, ERR_INVALID, "token %zu is %d: the vocabulary has %d", i, opt->tokens[i], vocab);

    struct sequence *s = mem_alloc(sizeof(*s));
    s->owner = x;
    s->expert = opt->expert;
    s->page_bytes = page_bytes_of(x, opt->expert);
    s->max_tokens = opt->max_tokens;
    s->logprobs = opt->logprobs;
    s->scores = opt->scores;
    s->cache = opt->cache && opt->scores == NULL;
    s->tokens = mem_array(need + 1, sizeof(*s->tokens));
    memcpy(s->tokens, opt->tokens, opt->tokens_count * sizeof(*s->tokens));
    s->tokens_count = s->prompt_count = opt->tokens_count;
    s->sampling = opt->sampling;
    if (opt->sampling.bias_count) {
        struct logit_bias *bias = mem_array(opt->sampling.bias_count, sizeof(*bias));
        memcpy(bias, opt->sampling.bias, opt->sampling.bias_count * sizeof(*bias));
        s->sampling.bias = bias;
    }
    rng_init(&s->rng, opt->sampling.seed);
    if (opt->grammar != NULL)
        constrain(s, opt->grammar);
    open_pages(s, pages_for(x, need));
    *ret = s;
    return ERR_OK;
}

void sequence_close(struct sequence **sp)
{
    struct sequence *s = *sp;
    if (s == NULL)
        return;
    give_pages(s);
    s->owner->pages_wanted -= s->pages_cap;
    if (s->sampling.bias_count)
        free((void *)s->sampling.bias);
    grammar_state_close(&s->grammar);
    free(s->kv);
    free(s->pages);
    free(s->tokens);
    free(s);
    *sp = NULL;
}

struct expert *sequence_expert(const struct sequence *s)
{
    return s->expert;
}

size_t sequence_tokens(const struct sequence *s)
{
    return s->tokens_count;
}

size_t sequence_pending(const struct sequence *s)
{
    return s->tokens_count - s->run_count;
}

size_t sequence_generated(const struct sequence *s)
{
    return s->tokens_count - s->prompt_count;
}

int32_t sequence_answer(const struct sequence *s, size_t idx)
{
    return s->tokens[s->prompt_count + idx];
}

int32_t sequence_last_token(const struct sequence *s)
{
    return s->tokens[s->tokens_count - 1];
}

bool sequence_done(const struct sequence *s, bool *ret_hit_limit)
{
    if (ret_hit_limit)
        *ret_hit_limit = s->hit_limit && !s->ended;
    return s->ended || s->hit_limit;
}

size_t sequence_logprobs(const struct sequence *s, float *ret_chosen, struct token_logprob *ret_top,
                         size_t cap)
{
    size_t n = BASE_MIN((size_t)s->top_count, cap);
    *ret_chosen = s->chosen_logprob;
    memcpy(ret_top, s->top, n * sizeof(*ret_top));
    return n;
}
